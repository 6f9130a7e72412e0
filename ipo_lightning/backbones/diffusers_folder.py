"""What all families share whose checkpoints are diffusers folders: a `Policy`, but for sampling.

A folder is read from disk, a hub id from the network or the local cache. A family adds the layout
of its latents, its forward and its sampler.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ipo_lightning.backbones.lora import Lora
from ipo_lightning.backbones.network import BuildsNetwork
from ipo_lightning.backbones.network_settings import (
    DTYPES,
    NetworkSettings,
    Precision,
)
from ipo_lightning.backbones.outline import FullLength, OfConfig
from ipo_lightning.backbones.parts import PipelineParts
from ipo_lightning.backbones.start import Start
from ipo_lightning.backbones.vae import VAESettings, VideoVAE
from ipo_lightning.errors import InputError, within
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip


class DiffusersFolder(BuildsNetwork, ABC):
    """Loading, adapters, pixels and exports of a `Policy`.

    Args:
        path, revision, name, fps, lora, start: see a family's own class.
        network: precision, quantisation, compilation and kernels of the network.
        vae: how videos are decoded.
        text_dtype: precision in which the text encoder is loaded.
    """

    family: ClassVar[str]
    """The family's name in messages."""
    vae_class: ClassVar[Any]
    text_encoder_class: ClassVar[Any]
    scheduler_classes: ClassVar[tuple[Any, ...]]
    guidance_videos = 1  # in one forward for each that is sampled with guidance, see `Policy`
    stateful_vae: ClassVar[bool] = False
    """Whether the VAE keeps what it has seen of a video in itself."""

    def __init__(
        self,
        path: str,
        revision: str | None,
        name: str,
        fps: float,
        *,
        lora: Lora | None,
        network: NetworkSettings,
        vae: VAESettings,
        text_dtype: Precision,
        start: Start | None,
    ) -> None:
        self.path, self.revision, self.name, self.fps, self.lora = path, revision, name, fps, lora
        self.start = start
        self.network_settings, self.text_dtype, self.vae_settings = network, text_dtype, vae
        if lora is not None and not isinstance(lora, Lora):
            ours = f"{type(self).__module__}.Lora"
            raise InputError(setting="lora", value=lora, expected=f"give it _target_={ours}")
        if lora is None and start is not None and not start.merge:
            raise InputError(
                setting="start.merge", value="false", expected="true: no lora is trained"
            )
        self.parts = PipelineParts(path, revision, self.pipeline_class, self._check_index)
        self.vae = self._new_vae(vae)

    # ---------------------------------------------------------------- what a family says

    @property
    @abstractmethod
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of the videos, in pixels."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one video's latents, without the batch."""

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
        """Refuse the model_index.json of another pipeline by name."""
        found, wanted = index["_class_name"], self.pipeline_class.__name__
        if found != wanted:
            raise InputError(f"backbone.path={self.path} is a {found}; {self.family} is a {wanted}")

    def _configured_scheduler(self, scheduler: Any) -> Any:
        """The checkpoint's scheduler with the policy's own settings."""
        return scheduler

    def _own_settings(self) -> list[Any]:
        """Plain JSON: settings, other than the size, that samples depend on."""
        return []

    # ---------------------------------------------------------------- what it is

    @property
    def adapter(self) -> dict[str, Any] | None:
        """Settings of the adapter that is trained over a frozen base; None: all weights are."""
        return None if self.lora is None else {**asdict(self.lora), "targets": [*self.lora.targets]}

    @property
    def diffusers_classes(self) -> tuple[str, str]:
        """Names of the pipeline and of the transformer in diffusers."""
        return self.pipeline_class.__name__, self.transformer_class.__name__

    @cached_property
    def identity(self) -> str:
        """Fingerprint of the base model: its folder's contents, or the commit of a hub id."""
        parts = [*self.parts.content, list(self.latent_shape), *self._own_settings()]
        own = {**self.network_settings.identity, **self.vae_settings.identity}
        if self.text_dtype != "float32":
            own["text_dtype"] = self.text_dtype
        if self.start is not None:
            with within("backbone.start"):
                own["start"] = self.start.identity
        return fingerprint([*parts, own] if own else parts)

    @cached_property
    def scheduler(self) -> Any:
        """The checkpoint's own scheduler, as this policy uses it."""
        kind = self.parts.class_of("scheduler")
        known = {one.__name__: one for one in self.scheduler_classes}
        if kind not in known:
            raise InputError(f"{self.path}: scheduler {kind} is not one of {self.family}'s")
        return self._configured_scheduler(self.parts.load(known[kind], "scheduler"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The transformer's config."""
        config = self.parts.config(self.transformer_class, "transformer")
        if config["in_channels"] != self._latent_channels:
            raise InputError(
                f"backbone.path={self.path}: its transformer takes {config['in_channels']} "
                f"channels, its VAE makes {self._latent_channels}: it needs an image or a video "
                f"besides the text; {self.family} makes videos of text alone"
            )
        return config

    @cached_property
    def _vae_config(self) -> dict[str, Any]:
        return self.parts.config(self.vae_class, "vae")

    def _check_frames(self, num_frames: int | None) -> None:
        if num_frames is not None and num_frames % 4 != 1:
            frames = f"{self.family} makes 4k + 1 frames"
            raise InputError(setting="num_frames", value=num_frames, expected=frames)

    def _check_grid(self, height: int, width: int, patch: int) -> None:
        """Refuse sizes in pixels that are not whole patches."""
        grid = self._spatial_ratio * patch
        if height % grid or width % grid:
            raise InputError(f"backbone: {height} x {width} pixels; give multiples of {grid}")

    # ---------------------------------------------------------------- the network

    @property
    def blocks(self) -> int:
        """Number of transformer blocks."""
        return int(self.config["num_layers"])

    def outline(self, blocks: int | None = None, size: tuple[int, int, int] | None = None) -> Self:
        """This policy with random weights, made of configs alone; see `Policy.outline`."""
        other: Any = copy(self)
        other.start = None  # costs nothing that a plan counts
        changes = {} if blocks is None else {"num_layers": blocks}
        other.transformer_class = OfConfig(self.transformer_class, **changes)
        other.vae_class = OfConfig(self.vae_class)
        other.text_encoder_class = OfConfig(self.text_encoder_class)
        other.__dict__["_tokenizer"] = FullLength()
        if size is not None:
            other._size, other.vae_settings = size, self.vae_settings._replace(tiling=False)
        other.vae = other._new_vae(other.vae_settings)
        for name in ("config", "size", "_text_encoder"):
            other.__dict__.pop(name, None)
        return cast(Self, other)

    # ---------------------------------------------------------------- pixels and text

    @property
    def tile(self) -> tuple[int, int] | None:
        """Height and width in pixels that the VAE decodes at once; None: a whole video's."""
        if not self.vae_settings.tiling:
            return None
        with torch.device("meta"):
            vae = self.vae_class.from_config(self._vae_config)
        return int(vae.tile_sample_min_height), int(vae.tile_sample_min_width)

    def decode(self, latents: Tensor) -> list[Clip]:
        """The videos of latents (B, ...)."""
        videos = self.vae.decode(self._to_vae(latents.float()), self.size[1:])
        return [Clip(frames, self.fps) for frames in videos]

    def encode(self, frames: Tensor) -> Tensor:
        """Latents (B, ...), float32, of videos uint8 (B, T, H, W, C): the posterior's mean."""
        return self._from_vae(self.vae.encode(frames))

    def save_memory(
        self, *, tiling: bool = False, slicing: bool = False, offload: bool = False
    ) -> None:
        """Save memory in `decode`, at the price of time; see `Policy.save_memory`."""
        self.vae.save_memory(tiling=tiling, slicing=slicing, offload=offload)
        self.release()

    def release(self) -> None:
        """Give back the memory of the text encoder and the VAE."""
        self.__dict__.pop("_text_encoder", None)
        self.vae.release()

    def _new_vae(self, settings: VAESettings) -> VideoVAE:
        def load() -> Any:
            dtype = getattr(torch, settings.dtype)
            return self.parts.load(self.vae_class, "vae", torch_dtype=dtype)

        return VideoVAE(load, settings, stateful=self.stateful_vae)

    @cached_property
    def _text_encoder(self) -> Any:
        kind, dtype = self.text_encoder_class, DTYPES[self.text_dtype]
        return self.parts.load(kind, "text_encoder", dtype=dtype).eval().requires_grad_(False)

    @cached_property
    def _tokenizer(self) -> Any:
        return self.parts.load(AutoTokenizer, "tokenizer")
