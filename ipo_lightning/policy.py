"""What a model family must offer to be trained here.

A policy knows its own weights' folder, its latents and its sampler; the training module, the
rollouts and the references know only this protocol. The network itself is passed to each method:
the same policy serves the trained network and its frozen reference.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ipo_lightning.errors import InputError
from ipo_lightning.objectives import Objective
from ipo_lightning.parallel.computing import Sent
from ipo_lightning.parallel.runtime import Autocast
from ipo_lightning.parallel.sharding import placed_like, whole_tensors
from ipo_lightning.settings import Above, AtLeast, Below, Count, Null, Says, Text, checked
from ipo_lightning.storage.store import file_sha256
from ipo_lightning.video import Clip

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The file of a LoRA export: what diffusers looks for in a folder."""

SHARES = "low and high, 0 <= low <= high <= 1"
Interval = Annotated[
    Annotated[tuple[float, float], Says(SHARES)] | None, Null("guidance at every step")
]

PruneAt = Annotated[float | None, Above(0), Below(1), Null("drafts are sampled apart")]


@checked
@dataclass(frozen=True)
class Sampling:
    """How videos are sampled from a policy. All of it is part of a rollout's fingerprint.

    docs/rollouts.md says what each choice costs and changes.
    """

    steps: Count
    """Denoising steps; cost is proportional to it."""
    guidance_scale: Annotated[float, AtLeast(1)] = 1.0
    """Scale of classifier-free guidance; 1 switches it off and halves the cost."""
    negative_prompt: str = ""
    """The prompt that guidance leads away from; unused at guidance_scale 1."""
    scheduler: str | None = None
    """The family's name of a sampler, such as ``ddim``; None: the checkpoint's own scheduler."""
    dynamic_guidance: bool = False
    """A guidance scale that changes from step to step, as CogVideoX's authors have it."""
    shared: Annotated[float, AtLeast(0), Below(1)] = 0.0
    """Share of the steps, in [0, 1), that the videos of one prompt have in common."""
    batch_size: Annotated[Count | Literal["auto"] | None, Null("all of a prompt")] = None
    """Videos denoised at once; None: all of a call; ``auto``: as many as fit into GPU memory."""
    guidance_interval: Interval = None
    """The steps with guidance, as shares of all steps from the noisiest on, high excluded; None:
    all. The others take one prediction (Kynkaanniemi et al. 2024, arXiv 2404.07724)."""
    guidance_forwards: Annotated[Literal[1, 2] | None, Null("as the family's pipeline does")] = None
    """Forwards of a guided step: 1 of twice as many videos, 2 one after the other in half the
    memory. None: as diffusers' pipeline of the family does, 1 for CogVideoX and 2 for Wan, and 1
    with pyramid attention broadcast."""
    cache: Any = None
    """A cache config of diffusers, a dataclass, for this sampling alone; None: none."""
    attention: Annotated[Text | None, Null("as in training")] = None
    """An attention backend of diffusers by its name, such as ``native`` or ``sage``."""
    compile: Annotated[bool | None, Null("as in training")] = None
    """Whether each block runs compiled."""
    lora: Annotated[Text | None, Null("none")] = None
    """A LoRA's file that is laid over the policy, at scale 1."""
    weights: Annotated[Literal["int8", "fp8"] | None, Null("as in training")] = None
    """Compute with copies of the blocks' weights that are rounded to 8 bits."""
    prune_at: int | None = None
    """Stop after so many of the steps, see `Policy.foresee`; None: do not."""
    finish: int = 0
    """Steps in which a video is foreseen from there; 0: by the last prediction, at no cost."""
    resume: int = 0
    """The step at which videos go on that were stopped there."""

    def __post_init__(self) -> None:
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            object.__setattr__(self, "guidance_interval", (low, high))
            if not 0 <= low <= high <= 1:
                raise InputError(
                    setting="guidance_interval", value=[low, high], expected=f"give {SHARES}"
                )
        if self.dynamic_guidance and self.guidance_scale <= 1:
            raise InputError(
                setting="dynamic_guidance",
                value="true",
                expected="give a guidance_scale above 1, or false",
            )
        if self.cache is not None:
            _check_cache(self.cache)
        if self.compile and (self.lora or self.weights):
            raise InputError(
                setting="compile", value="true", expected="give false with lora or weights, which "
                "change layers inside the compiled blocks",
            )  # fmt: skip

    @property
    def guided(self) -> bool:
        """Whether a second prediction, of the negative prompt, is made at any step."""
        return len(self.guided_steps) > 0

    @property
    def guided_steps(self) -> range:
        """The steps at which a second prediction, of the negative prompt, is made."""
        low, high = self.guidance_interval or (0.0, 1.0)
        if self.guidance_scale <= 1:
            return range(0)
        return range(round(low * self.steps), round(high * self.steps))

    def guidance_videos(self, usual: int) -> int:
        """Videos in one forward for each that is sampled; with guidance ``usual`` of the family."""
        if not self.guided:
            return 1
        if self._mixes_forwards:
            return 2
        return usual if self.guidance_forwards is None else 2 // self.guidance_forwards

    @property
    def _mixes_forwards(self) -> bool:
        """Whether a cache takes what belongs to one of two forwards of a step for the other's: then
        a step has one, unless two are asked for."""
        mixes = type(self.cache).__name__ == "PyramidAttentionBroadcastConfig"
        return mixes and self.guided and self.guidance_forwards is None

    @property
    def shared_steps(self) -> int:
        """How many steps the videos of one prompt have in common; at least one is their own."""
        return min(round(self.shared * self.steps), self.steps - 1)

    def evaluations(self, videos: int) -> int:
        """Network evaluations (one video through the network once) for videos of one prompt."""
        shared, guided = self.shared_steps, self.guided_steps
        last = self.steps if self.prune_at is None else self.prune_at
        made = (*range(self.resume, last), *self.finishing)
        return sum((1 if i < shared else videos) * (2 if i in guided else 1) for i in made)

    @property
    def finishing(self) -> tuple[int, ...]:
        """The steps at which foreseen videos are predicted, evenly spaced from `prune_at` on."""
        if self.prune_at is None:
            return ()
        left = self.steps - self.prune_at
        return tuple(self.prune_at + i * left // self.finish for i in range(self.finish))

    @property
    def departures(self) -> dict[str, Any]:
        """The later choices where they are not the default, as plain JSON.

        What is left at its default is not named: a fingerprint made before there was a choice
        stays what it was.
        """
        later = ("scheduler", "dynamic_guidance", "shared", "batch_size", "guidance_forwards",
                 "attention", "compile", "weights", "prune_at", "finish", "resume")  # fmt: skip
        defaults = {field.name: field.default for field in fields(self)}
        chosen = {name: getattr(self, name) for name in later}
        named = {name: value for name, value in chosen.items() if value != defaults[name]}
        if self.guided and len(self.guided_steps) < self.steps:
            named["guided_steps"] = [self.guided_steps.start, self.guided_steps.stop]
        if self.cache is not None:
            if self._mixes_forwards:
                named["guidance_forwards"] = 1
            named["cache"] = [type(self.cache).__name__, _plain(asdict(self.cache))]
        if self.lora is not None:
            named["lora"] = file_content(self.lora)
        return named

    @property
    def changes_network(self) -> bool:
        """Whether the network is another while it is sampled from."""
        return self.compiles is not None or self.lora is not None or self.weights is not None

    @property
    def compiles(self) -> bool | None:
        """Whether each block runs compiled; None: as in training. What lies over the layers of a
        compiled block would not be seen."""
        return False if self.lora or self.weights else self.compile

    def independent(self) -> "Sampling":
        """This sampling as evaluations use it: the policy's own samples, as it is trained."""
        return replace(
            self, shared=0.0, cache=None, attention=None, compile=None, lora=None, weights=None
        )

    def at_guidance(self, scale: float) -> "Sampling":
        """This sampling at another guidance scale.

        Guidance that changes from step to step goes where there is none.
        """
        return replace(
            self, guidance_scale=scale, dynamic_guidance=self.dynamic_guidance and scale > 1
        )

    @checked
    def draft(self, *, prune_at: PruneAt = None, **cheaper: Any) -> "Sampling":
        """This sampling made cheaper, for drafts of videos that are made in full afterwards.

        Args:
            prune_at: share of the steps after which a draft is foreseen, in ``steps`` more; its
                video in full goes on from there. None: drafts are sampled apart.
            cheaper: its settings that differ, such as ``steps``; see `at_guidance`.

        Raises:
            InputError: the drafts would not be cheaper, or no drafts of the same videos.
        """
        if prune_at is not None:
            draft = self._pruned(prune_at, cheaper.pop("steps", 0), cheaper)
        else:
            guided = self.at_guidance(cheaper.pop("guidance_scale", self.guidance_scale))
            if cheaper.get("lora") or cheaper.get("weights"):
                cheaper = {"compile": None, **cheaper}
            draft = replace(guided, **cheaper)
        if self.shared:
            raise InputError(
                f"drafts need independent candidates, but shared={self.shared} gives them common "
                "steps; give shared=0, or no drafts"
            )
        faster = draft.cache is not None or any(
            getattr(draft, name) != getattr(self, name)
            for name in ("attention", "compile", "weights")
        )
        if draft.evaluations(1) >= self.evaluations(1) and not faster:
            raise InputError(
                f"a draft takes {draft.evaluations(1)} network evaluations, and a final video "
                f"{self.evaluations(1)}; give drafts fewer steps, or less guidance, or a cache"
            )
        return draft

    def _pruned(self, share: float, finish: int, others: Mapping[str, Any]) -> "Sampling":
        if others:
            name, value = next(iter(others.items()))
            raise InputError(
                setting=name, value=value, expected="leave it out, or give prune_at=null: the "
                "videos in full go on from these steps, which are sampled as theirs",
            )  # fmt: skip
        if self.cache is not None:
            raise InputError(
                setting="prune_at", value=share, expected="leave it out, or give rollout.cache="
                "null: a cache cannot follow the long steps to a foreseen video",
            )  # fmt: skip
        stop = min(max(round(share * self.steps), 1), self.steps - 1)
        return replace(self, prune_at=stop, finish=finish)

    def after(self, draft: "Sampling") -> "Sampling":
        """This sampling for the videos in full of such drafts."""
        return replace(self, resume=draft.prune_at or 0)


class Foreseen(NamedTuple):
    """Videos that were stopped on the way."""

    x0: Tensor
    """(B, ...) float32, the clean latents that they are foreseen to end in."""
    latents: Tensor
    """(B, ...) float32, where they stopped."""
    noise_level: float
    """Share of noise, ``sigma / (alpha + sigma)`` in [0, 1], of the latents that the last
    prediction was made for."""


def file_content(path: str) -> list[str]:
    """What a LoRA's file says: its hash, and that of peft's settings beside it, "" for none.

    Raises:
        InputError: there is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(setting="lora", value=path, expected="there is no such file: put it there")
    settings = file.with_name("adapter_config.json")
    return [_hash(one, one.stat().st_mtime_ns) if one.is_file() else "" for one in (file, settings)]


@lru_cache(maxsize=4)
def _hash(file: Path, changed: int) -> str:
    return file_sha256(file)


def _plain(value: Any) -> Any:
    """A value of a cache config as JSON has it."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Tensor):
        return value.tolist()
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value


def _check_cache(cache: Any) -> None:
    if not is_dataclass(cache) or isinstance(cache, type):
        raise InputError(
            setting="cache",
            value=cache,
            expected="give a cache config of diffusers by its _target_, or null",
        )
    called = [field.name for field in fields(cache) if callable(getattr(cache, field.name))]
    if called:
        raise InputError(
            setting="cache",
            expected=f"{type(cache).__name__} with {', '.join(called)}: functions cannot be part "
            "of a fingerprint; leave them out (the timestep is filled in)",
        )


class Policy(Protocol):
    """A family of text-to-video diffusion transformers.

    Optional: ``divide_tokens(network, mesh)`` lets a group of ranks make the forwards of a built
    network together, each on its part of a video's tokens; ``mesh`` has the dimensions ``ring`` and
    ``ulysses``. Outputs are whole on every rank, and the sum of the ranks' gradients is the
    gradient. With it come ``tokens``, the length of a video's sequence in attention, and ``heads``.
    Families without it are refused under context parallelism.
    """

    name: str
    """What people call it."""
    path: str
    """The folder or hub id of the base model."""
    revision: str | None
    """Of a hub id."""
    fps: float
    """Frames per second of its videos."""
    guidance_videos: int
    """Videos in one forward for each that is sampled with guidance, unless the sampling says it: 2
    where both predictions are made together, 1 where one after the other."""

    @property
    def identity(self) -> str:
        """Fingerprint of the base model: all that its samples depend on but the trained weights."""
        ...

    @property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of its videos, in pixels."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one video's latents, without the batch."""
        ...

    @property
    def adapter(self) -> dict[str, Any] | None:
        """Settings of the adapter (LoRA) that is trained over a frozen base; None: all weights."""
        ...

    @property
    def diffusers_classes(self) -> tuple[str, str]:
        """Names of the pipeline and of the transformer in diffusers, for model cards."""
        ...

    def build(self, device: torch.device = ..., mesh: DeviceMesh | None = None) -> nn.Module:
        """A new network with the base weights; what is trained has ``requires_grad``.

        Its state is made on the CPU, whichever device is entered: an adapter's start is the same
        everywhere. Each block leaves the CPU before the next is read.

        Args:
            device: where it goes; by default it stays on the CPU.
            mesh: over which it is then sharded.
        """
        ...

    def frame(self) -> nn.Module:
        """A new network on the CPU without base weights, which takes no memory for them.

        An adapter is there as in `build`. The rest may be replaced, but neither read nor changed in
        place.
        """
        ...

    def base_weights(self) -> Mapping[str, Tensor]:
        """The weights that are trained, as `build` gives them, each read when it is asked for."""
        ...

    @property
    def blocks(self) -> int:
        """Number of transformer blocks of its network, which all cost the same."""
        ...

    @property
    def tile(self) -> tuple[int, int] | None:
        """Height and width in pixels that its VAE decodes at once; None: a whole video's."""
        ...

    def outline(
        self, blocks: int | None = None, size: tuple[int, int, int] | None = None
    ) -> "Policy":
        """This policy with random weights, built from configs alone, to plan on fake tensors.

        Args:
            blocks: transformer blocks of its network; None: all.
            size: frames, height and width of its videos, decoded without tiles; None: unchanged.
        """
        ...

    def objective(self) -> Objective:
        """The noise schedule and the prediction target that the family is trained on."""
        ...

    def embed(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """(P, L, D) prompt embeddings at full padded length, on the CPU."""
        ...

    def predict(self, network: nn.Module, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The model output: v or a velocity, of the latents' shape.

        Args:
            sample: noised latents (B, ...). timestep: (B,). text: prompt embeddings (B, L, D).
        """
        ...

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse with `InputError` a scheduler, guidance or cache that the family does not know."""
        ...

    def sample(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        text: Tensor,
        negative: Tensor | None,
        sampling: Sampling,
        start: Tensor | None = None,
    ) -> Tensor:
        """Clean latents (B, ...), float32, of one video a seed.

        Args:
            seeds: of the videos' noise. With shared steps they are of one prompt, and the first of
                them gives the noise of these steps: it must be the same however many there are.
            text: prompt embeddings, (B, L, D), or (1, L, D) for all videos.
            negative: (1, L, D) embedding of the negative prompt; needed with guidance.
            start: (B, ...) the latents at the step ``sampling.resume`` that the videos go on from;
                None: they begin with noise.
        """
        ...

    def foresee(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        text: Tensor,
        negative: Tensor | None,
        sampling: Sampling,
    ) -> Foreseen:
        """The videos of `sample`, stopped after ``sampling.prune_at`` of their steps.

        Where they will end is foreseen in ``sampling.finish`` long steps, or without any by the
        last prediction.
        """
        ...

    def decode(self, latents: Tensor) -> list[Clip]:
        """The videos of latents (B, ...)."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Latents (B, ...), float32, of videos uint8 (B, T, H, W, C): the posterior's mean."""
        ...

    def save_memory(
        self, *, tiling: bool = False, slicing: bool = False, offload: bool = False
    ) -> None:
        """Save memory in `decode`, at the price of time.

        Args:
            tiling: the VAE decodes a video in overlapping tiles: other pixels at their seams.
            slicing: the VAE decodes one video after another.
            offload: the VAE is on the device while it decodes, and on the CPU before and after.
        """
        ...

    def release(self) -> None:
        """Give back the memory of the text encoder and the VAE."""
        ...

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the trained weights as diffusers does: a transformer folder or a LoRA file."""
        ...

    def export_merged(self, network: nn.Module, folder: Path) -> None:
        """Write all weights as a transformer folder; adapters are merged into them, for good."""
        ...

    def load_export(self, folder: Path) -> dict[str, Tensor]:
        """The weights of an `export`, named as `trained_weights` names them."""
        ...

    def load_lora(self, network: nn.Module, file: Path) -> None:
        """Put the LoRA of a safetensors file, with its own rank and alpha, on a base network."""
        ...


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """The parameters that training changes, by name; not copies, and shards where it is sharded."""
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy trained weights into a network in place; the names must be the same."""
    own = trained_weights(network)
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise InputError(f"weights do not fit the network: {len(odd)} names differ, as {odd[0]}")
    for name, tensor in own.items():
        tensor.copy_(placed_like(weights[name], tensor))


class PolicyUse:
    """A policy's network as units are computed with it, a ``Use``: here, or built elsewhere.

    Args:
        policy: the model family.
        network: with the weights of ``fingerprint``, in evaluation mode.
        autocast: entered around forwards. precision: its name.
        fingerprint: of the policy; None where it is built elsewhere.
    """

    def __init__(
        self,
        policy: Policy,
        network: nn.Module,
        autocast: Autocast,
        *,
        precision: str = "",
        fingerprint: str = "",
    ) -> None:
        self.policy, self.network, self.autocast = policy, network, autocast
        self._key = f"{policy.identity} {policy.adapter} {precision}"
        self._fingerprint = fingerprint

    def here(self) -> AbstractContextManager["PolicyUse"]:
        """Itself."""
        return nullcontext(self)

    def sent(self) -> Sent:
        """Its trained weights are sent, an adapter's alone where there is one."""
        weights = whole_tensors(trained_weights(self.network))
        builder = PolicyBuilder(self.policy, self.autocast, self.device.type)
        return Sent("policy", self._key, builder, self._fingerprint, partial(_on_cpu, weights))

    @property
    def device(self) -> torch.device:
        """Where its network lies."""
        return next(self.network.parameters()).device


class PolicyBuilder(NamedTuple):
    """Builds a policy's network from the base model's files; a ``Builder``."""

    policy: Policy
    autocast: Autocast
    """Of the sender's kind of device: on another it would do nothing."""
    kind: str
    """The sender's kind of device."""

    def build(self, device: str) -> PolicyUse:
        """With the base weights.

        Raises:
            InputError: the device is of another kind than the sender's, and has other bits.
        """
        if torch.device(device).type != self.kind:
            raise InputError(
                f"stages=ray: an actor has {device}, but the training runs on {self.kind}: results "
                "differ, and mixed precision would not hold there; give stages.gpus=1 (or 0), or "
                "trainer.accelerator of the actors' kind"
            )
        network = self.policy.build(torch.device(device)).eval()
        return PolicyUse(self.policy, network, self.autocast)

    def put(self, built: PolicyUse, weights: Mapping[str, Tensor]) -> None:
        """Give the network the trained weights."""
        put_weights(built.network, weights)

    def release(self, built: PolicyUse) -> None:
        """Give back the VAE's memory; the network goes with its last user."""
        built.policy.release()


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.cpu() for name, weight in weights.items()}
