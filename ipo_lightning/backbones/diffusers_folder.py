"""What families of models share whose checkpoints are diffusers folders.

A folder is read from disk, a hub id from the network or the local cache. A family says what its
latents are and how it is asked; loading, adapters, pixels and exports are the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Self, cast

import torch
from huggingface_hub import hf_hub_download
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from ipo_lightning.backbones.held import DTYPES, Held, Precision
from ipo_lightning.backbones.lora_files import plain_lora
from ipo_lightning.backbones.outline import FullLength, OfConfig
from ipo_lightning.errors import InputError
from ipo_lightning.policy import LORA_FILE
from ipo_lightning.seeds import derive_seed
from ipo_lightning.settings import Count, Positive, checked
from ipo_lightning.storage.store import fingerprint, folder_fingerprint
from ipo_lightning.video import Clip

ADAPTER = "default"


@checked
@dataclass(frozen=True)
class Lora:
    """A low-rank adapter in place of full fine-tuning."""

    rank: Count
    """Rank of the update, >= 1: trainable parameters grow with it."""
    alpha: Positive
    """The update is scaled by alpha / rank; exports carry it in their metadata."""
    targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the linear layers that get an adapter; these are all of a family's attention."""
    seed: int = 0
    """Seed of the adapter's first factor (the second starts at zero)."""

    def __post_init__(self) -> None:
        if not self.targets:
            raise InputError(setting="targets", value=[], expected="give at least one layer name")


class DiffusersFolder(ABC):
    """A `Policy` but for what a family must say of itself.

    Args: see a family's own class.
    """

    family: ClassVar[str]
    """What messages call it."""
    pipeline_class: ClassVar[Any]
    transformer_class: ClassVar[Any]
    vae_class: ClassVar[Any]
    text_encoder_class: ClassVar[Any]
    scheduler_classes: ClassVar[tuple[Any, ...]]
    guidance_videos = 1
    """See `Policy.guidance_videos`."""

    def __init__(
        self,
        path: str,
        *,
        name: str,
        revision: str | None,
        num_frames: int | None,
        fps: float,
        lora: Lora | None,
        held: Held,
        text_dtype: Precision,
        decode_batch: int,
        tiling: bool,
    ) -> None:
        self.path, self.name, self.revision, self.fps, self.lora = path, name, revision, fps, lora
        self.held, self.text_dtype, self.decode_batch = held, text_dtype, decode_batch
        self.tiling, self._tiling = tiling, tiling
        self._slicing = self._offload = False
        self._loading = Lock()
        self._vae_turn: AbstractContextManager[Any] = nullcontext()
        """Entered while the VAE is at work: a family whose VAE keeps state gives a lock."""
        if lora is not None and not isinstance(lora, Lora):
            ours = f"{type(self).__module__}.Lora"
            raise InputError(setting="lora", value=lora, expected=f"give it _target_={ours}")
        check_path(path)
        if num_frames is not None and num_frames % 4 != 1:
            frames = f"{self.family} makes 4k + 1 frames"
            raise InputError(setting="num_frames", value=num_frames, expected=frames)

    # ---------------------------------------------------------------- what a family says

    @property
    @abstractmethod
    def size(self) -> tuple[int, int, int]:
        """See `Policy.size`."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """See `Policy.latent_shape`."""

    @property
    @abstractmethod
    def _spatial_ratio(self) -> int:
        """Pixels of height or width to one latent."""

    @property
    @abstractmethod
    def _latent_channels(self) -> int:
        """Channels of the VAE's latents."""

    @abstractmethod
    def _from_vae(self, mean: Tensor) -> Tensor:
        """Latents (B, ...) of the VAE's (B, C, F, H, W)."""

    @abstractmethod
    def _to_vae(self, latents: Tensor) -> Tensor:
        """The VAE's (B, C, F, H, W) of latents (B, ...)."""

    def _check_index(self, index: dict[str, Any]) -> None:
        """Refuse checkpoints of another pipeline by name; ``index`` is model_index.json."""
        found, wanted = index["_class_name"], self.pipeline_class.__name__
        if found != wanted:
            raise InputError(f"backbone.path={self.path} is a {found}; {self.family} is a {wanted}")

    def _settle_scheduler(self, scheduler: Any) -> Any:
        """The checkpoint's scheduler with the policy's own settings."""
        return scheduler

    def _own_settings(self) -> list[Any]:
        """Plain JSON: settings beside the size that samples depend on."""
        return []

    # ---------------------------------------------------------------- what it is

    @property
    def adapter(self) -> dict[str, Any] | None:
        """See `Policy.adapter`."""
        return None if self.lora is None else {**asdict(self.lora), "targets": [*self.lora.targets]}

    @property
    def diffusers_classes(self) -> tuple[str, str]:
        """See `Policy.diffusers_classes`."""
        return self.pipeline_class.__name__, self.transformer_class.__name__

    @cached_property
    def identity(self) -> str:
        """See `Policy.identity`; a folder counts by its contents, a hub id by its commit."""
        if Path(self.path).is_dir():
            files = [folder_fingerprint(self.path)]
        else:
            with named(self.path):
                index = hf_hub_download(self.path, "model_index.json", revision=self.revision)
            files = [self.path, Path(index).parent.name]
        parts = [*files, list(self.latent_shape), *self._own_settings()]
        own = self.held.settings
        if self.text_dtype != "float32":
            own["text_dtype"] = self.text_dtype
        if self.tiling:
            own["tiling"] = True
        return fingerprint([*parts, own] if own else parts)

    @cached_property
    def index(self) -> dict[str, Any]:
        """The folder's model_index.json."""
        with named(self.path):
            index = dict(self.pipeline_class.load_config(self.path, revision=self.revision))
        self._check_index(index)
        return index

    @cached_property
    def scheduler(self) -> Any:
        """The checkpoint's own scheduler, as this policy uses it."""
        kind = self.index["scheduler"][1]
        known = {one.__name__: one for one in self.scheduler_classes}
        if kind not in known:
            raise InputError(f"{self.path}: scheduler {kind} is not one of {self.family}'s")
        with named(self.path):
            own = known[kind].from_pretrained(**self._part("scheduler"))
        return self._settle_scheduler(own)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The transformer's config."""
        with named(self.path):
            config = dict(self.transformer_class.load_config(**self._part("transformer")))
        if config["in_channels"] != self._latent_channels:
            raise InputError(
                f"backbone.path={self.path}: its transformer takes {config['in_channels']} "
                f"channels, its VAE makes {self._latent_channels}: it wants an image or a video "
                f"beside the text; {self.family} makes videos of text alone"
            )
        return config

    def _check_grid(self, height: int, width: int, patch: int) -> None:
        """Refuse sizes in pixels that are not whole patches."""
        grid = self._spatial_ratio * patch
        if height % grid or width % grid:
            raise InputError(f"backbone: {height} x {width} pixels; give multiples of {grid}")

    # ---------------------------------------------------------------- the network

    @property
    def blocks(self) -> int:
        """See `Policy.blocks`."""
        return int(self.config["num_layers"])

    @property
    def tile(self) -> tuple[int, int] | None:
        """See `Policy.tile`."""
        if not self.tiling:
            return None
        with torch.device("meta"):
            vae = self.vae_class.from_config(self._vae_config)
        return int(vae.tile_sample_min_height), int(vae.tile_sample_min_width)

    def outline(self, blocks: int | None = None, size: tuple[int, int, int] | None = None) -> Self:
        """See `Policy.outline`."""
        other: Any = copy(self)
        if size is not None:
            other._size, other.tiling, other._tiling = size, False, False
        changes = {} if blocks is None else {"num_layers": blocks}
        for name in ("config", "size", "_vae", "_text_encoder"):
            other.__dict__.pop(name, None)
        other.transformer_class = OfConfig(self.transformer_class, **changes)
        other.vae_class = OfConfig(self.vae_class)
        other.text_encoder_class = OfConfig(self.text_encoder_class)
        other.__dict__["_tokenizer"] = FullLength()
        return cast(Self, other)

    def build(self) -> Any:
        """See `Policy.build`; in float32 but for what `Held` says otherwise."""
        _ = self.config  # refuses what is not the family's before it is loaded
        with named(self.path):
            network = self.transformer_class.from_pretrained(
                **self._part("transformer"), torch_dtype=self.held.dtype
            )
        self.held.quantise(network)
        if self.lora is not None:
            self._add_adapter(network, self.lora)
        self.held.settle(network)
        return network

    def _add_adapter(self, network: Any, lora: Lora) -> None:
        network.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(lora.seed, "lora"))
            network.add_adapter(
                LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets)),
                adapter_name=ADAPTER,
            )
        for parameter in network.parameters():
            if parameter.requires_grad:  # peft takes the base's precision; an adapter is small
                parameter.data = parameter.data.float()

    # ---------------------------------------------------------------- pixels

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Clip]:
        """See `Policy.decode`."""
        vae = self._vae_on(latents.device)
        clips = []
        for some in self._to_vae(latents.float()).split(self.decode_batch):
            with self._vae_turn:
                pixels = vae.decode(some).sample.float()  # (B, C, T, H, W) in [-1, 1]
            if pixels.shape[-2:] != self.size[1:]:
                height, width = self.size[1:]
                raise InputError(
                    f"tiling=true: diffusers' tiles of this VAE do not fit {height} x {width} "
                    "pixels; give false"
                )
            frames = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            clips += [Clip(video, self.fps) for video in frames.permute(0, 2, 3, 4, 1).cpu()]
        if self._offload:
            self._vae_on(torch.device("cpu"))
        return clips

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See `Policy.encode`."""
        vae = self._vae_on(frames.device)
        pixels = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with self._vae_turn:
            mean = vae.encode(pixels).latent_dist.mean
        return self._from_vae(mean)

    def spare(self, *, tiling: bool = False, slicing: bool = False, offload: bool = False) -> None:
        """See `Policy.spare`."""
        self._tiling = tiling or self.tiling
        self._slicing, self._offload = slicing, offload
        self.release()

    def release(self) -> None:
        """See `Policy.release`."""
        for name in ("_text_encoder", "_vae"):
            self.__dict__.pop(name, None)

    # ---------------------------------------------------------------- export

    def export(self, network: nn.Module, folder: Path) -> None:
        """See `Policy.export`; in the weights' own precision: an export is the policy, no copy."""
        if self.lora is None:
            # Else its config.json would name the folder of this machine that the base lay in.
            cast(Any, network).register_to_config(_name_or_path=self.name)
            cast(Any, network).save_pretrained(folder)
            return
        self.pipeline_class.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(network, adapter_name=ADAPTER),
            transformer_lora_adapter_metadata=cast(Any, network).peft_config[ADAPTER].to_dict(),
        )

    def load_export(self, folder: Path) -> dict[str, Tensor]:
        """See `Policy.load_export`."""
        if self.lora is None:
            network = self.transformer_class.from_pretrained(folder, torch_dtype=self.held.dtype)
            return {name: parameter.detach() for name, parameter in network.named_parameters()}
        return {
            name.removeprefix("transformer.").replace(".weight", f".{ADAPTER}.weight"): tensor
            for name, tensor in load_file(folder / LORA_FILE).items()
        }

    def load_lora(self, network: nn.Module, file: Path) -> None:
        """See `Policy.load_lora`; of diffusers, peft and others, see `plain_lora`."""
        try:
            weights, metadata = self.pipeline_class.lora_state_dict(
                str(file.parent),
                weight_name=file.name,
                use_safetensors=True,
                local_files_only=True,
                return_lora_metadata=True,
            )
            layers = [name for name, _ in network.named_modules()]
            weights, metadata = plain_lora(weights, metadata, file, layers)
            if not weights:
                raise ValueError("it holds no layers of a transformer")
            cast(Any, network).load_lora_adapter(weights, prefix=None, metadata=metadata)
            _refuse_left_over(network, weights)
        except (ValueError, RuntimeError, KeyError, OSError, TypeError, SafetensorError) as error:
            raise InputError(f"{file} is no LoRA of this model: {error}") from error

    # ---------------------------------------------------------------- parts

    def _part(self, subfolder: str) -> dict[str, Any]:
        _ = self.index  # refuses other pipelines before any of their parts is read
        return {
            "pretrained_model_name_or_path": self.path,
            "subfolder": subfolder,
            "revision": self.revision,
        }

    @cached_property
    def _vae_config(self) -> dict[str, Any]:
        with named(self.path):
            return dict(self.vae_class.load_config(**self._part("vae")))

    @cached_property
    def _vae(self) -> Any:
        vae = self.vae_class.from_pretrained(**self._part("vae"), torch_dtype=torch.float32)
        if self._tiling:
            vae.enable_tiling()
        if self._slicing:
            vae.enable_slicing()
        return vae.eval().requires_grad_(False)

    def _vae_on(self, device: torch.device) -> Any:
        with self._loading:  # threads that sample side by side must not load it twice
            return self._vae.to(device)

    @cached_property
    def _text_encoder(self) -> Any:
        part = self._part("text_encoder")
        encoder = self.text_encoder_class.from_pretrained(**part, dtype=DTYPES[self.text_dtype])
        return encoder.eval().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(**self._part("tokenizer"))


def _refuse_left_over(network: Any, weights: Mapping[str, Tensor]) -> None:
    """Refuse a LoRA some of whose weights found no place; diffusers would go on without them."""
    name = list(network.peft_config)[-1]
    left = sorted(weights.keys() - get_peft_model_state_dict(network, adapter_name=name).keys())
    if left:
        raise ValueError(f"{len(left)} of its {len(weights)} weights have no place, as {left[0]}")


@contextmanager
def named(path: str) -> Iterator[None]:
    """Say whose files they were when they cannot be had: a wrong hub id, or no network."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"backbone.path={path} cannot be read: {reason} (a folder is read from disk; a hub id "
            "needs the network, or a copy in the local cache)"
        ) from error


def check_path(path: str) -> None:
    """Refuse what is neither a diffusers folder nor looks like ``owner/name`` on a hub."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"backbone.path={path}: no model_index.json there; give the folder of a diffusers "
                "pipeline or a hub id"
            )
    elif path.count("/") != 1 or path.startswith((".", "~", "/")) or folder.parent.is_dir():
        raise InputError(f"backbone.path={path}: there is no such folder, nor is it a hub id")
