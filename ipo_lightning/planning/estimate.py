"""What a run would take, from configs alone: memory of a GPU by part, operations by stage, disk.

The step of the module, the forwards of sampling, the text encoder and the VAE are run on fake
tensors (see `tracing`), so that the estimate follows the code. A network's blocks are alike: two
sizes of a deep one are run, and what its blocks add is counted on. Computed, not measured: kernels'
own workspaces, the CUDA context and the critics are not known here.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ipo_lightning.draws.batch import PairBatch, PointBatch, Videos
from ipo_lightning.module import PreferenceModule
from ipo_lightning.planning.tracing import GpuRules, backward, weightless
from ipo_lightning.policy import Policy, Sampling
from ipo_lightning.references import MovingReference

T = TypeVar("T")

GIB = 2**30
FEW_BLOCKS = 8
"""Networks of up to so many blocks are run whole."""
SAMPLES = (2, 3)
"""Numbers of blocks that stand for a deeper network: its first block may differ from the rest."""
CLIPS = (17, 25)
"""Frames of the videos whose decoding stands for a longer one's; both of an even number of latent
frames beyond the first."""
OVERLAP = 1.5
"""Of a VAE's tiles: their operations to those of the whole video; 1.4 to 1.65 in diffusers."""
GRID = 16
"""Pixels of which a video's height and width are multiples; tiles are rounded up to them."""
CPU = torch.device("cpu")


class Optimizer(NamedTuple):
    """What an optimizer holds for each trained parameter."""

    moments: int
    """Numbers kept."""
    bits: int | None = None
    """Of each; None: as many as the parameter has."""
    block: int = 0
    """Numbers that share a float32 scale; 0: no scales."""
    update: int = 0
    """Numbers that an update holds besides, where it works on all tensors at once, as torch's do on
    a GPU unless they are fused."""

    def state(self, itemsize: int) -> float:
        """Bytes a parameter of so many bytes."""
        each = itemsize if self.bits is None else self.bits / 8
        return self.moments * (each + (4 / self.block if self.block else 0))


ADAM = Optimizer(2, update=1)
OPTIMIZERS = {
    "torch.optim.AdamW": ADAM,
    "torch.optim.Adam": ADAM,
    "torch.optim.NAdam": ADAM,
    "torch.optim.RAdam": ADAM,
    "torch.optim.SGD": Optimizer(1),
    "torch.optim.RMSprop": Optimizer(1, update=1),
    "bitsandbytes.optim.AdamW": Optimizer(2, 32),
    "bitsandbytes.optim.AdamW8bit": Optimizer(2, 8, 256),
    "bitsandbytes.optim.Adam8bit": Optimizer(2, 8, 256),
    "bitsandbytes.optim.PagedAdamW8bit": Optimizer(2, 8, 256),
    "bitsandbytes.optim.Lion8bit": Optimizer(1, 8, 256),
    "torchao.optim.AdamW8bit": Optimizer(2, 8, 256),
    "torchao.optim.AdamW4bit": Optimizer(2, 4, 128),
    "torchao.optim.AdamWFp8": Optimizer(2, 8, 256),
}
"""By target; any other is taken to hold what AdamW does."""


@dataclass(frozen=True)
class Job:
    """What a run asks of its devices."""

    policy: Policy
    make: Callable[[Policy], PreferenceModule]
    """The training module of the run's settings, over another policy."""
    sampling: Sampling
    candidates: int
    """Videos of a prompt, at most."""
    batch_size: int
    """Pairs or points a step on each device."""
    accumulate: int
    optimizer_steps: int
    """Optimizer updates a round."""
    reference_batch: int
    """Draws a forward where the reference is asked in advance."""
    optimizer: str
    """Its target."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the policy, by name: what its traces are told apart by. None: its identity does that."""
    fused: bool = False
    """Whether its update works in place."""
    precision: str = "32-true"
    """In Lightning's words."""
    devices: int = 1
    sharded: bool = False
    """Whether weights and what belongs to them are shared among the devices (FSDP2)."""
    gpu: bool = True
    """Whether autocast has a GPU's rules."""
    decode_batch: int = 1
    parallel_prompts: int = 1
    """Prompts whose videos a process makes at the same time."""

    @property
    def videos(self) -> int:
        """Videos denoised at once, without guidance's double; at the least where it is ``auto``."""
        size = self.sampling.batch_size
        return 1 if size == "auto" else min(int(size or self.candidates), self.candidates)

    @property
    def mixed(self) -> bool:
        """Whether matrix products are computed in bfloat16 whatever the weights are."""
        return self.precision.endswith("-mixed")


class Step(NamedTuple):
    """A training step: bytes, but for the first two and the last."""

    parameters: int
    """Of 4 bits, two lie in a byte."""
    trained: int
    weights: int
    reference: int
    gradients: int
    forward: int
    """The fullest moment of the forward beyond what is listed above; with ``forward_casts``."""
    forward_casts: int
    backward: int
    backward_casts: int
    block: int
    """Weights of the largest block."""
    flops: int

    @property
    def peak(self) -> tuple[int, int]:
        """Bytes at the fullest moment, and how many of them are casts of weights."""
        return max((self.forward, self.forward_casts), (self.backward, self.backward_casts))


class Forward(NamedTuple):
    """A forward without gradients: bytes at its fullest moment, and operations."""

    held: int
    casts: int
    flops: int


@dataclass(frozen=True)
class Stage:
    """The fullest moment of a stage on each device."""

    name: str
    parts: dict[str, float] = field(default_factory=dict)
    """Bytes by what they are for."""

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())


TEXT = frozenset({"text_dtype", "text_length"})
PIXELS = frozenset({"tiling", "decode_batch"})
NETWORK = frozenset({"lora", "checkpointing", "weights", "quantize", "compile", "attention"})
"""Settings of a policy that concern one part of it alone: a change leaves traces of others as they
are."""


class Estimate:
    """Computes a job's needs, each when it is asked for."""

    def __init__(self, job: Job) -> None:
        self.job = job

    # ---------------------------------------------------------------- what is run

    @cached_property
    def step(self) -> Step:
        """One training step."""
        job, module = self.job, self._module
        reference = (type(module.reference), module.reference.of)
        added = (module.real_weight > 0, module.safeguard is None, module.two_pass)
        key = (job.batch_size, _function(module.loss), reference, added)
        return Step(*_once(self._network("step", *key), lambda: self._grown(self._step)))

    @property
    def sampling(self) -> Forward:
        """One forward of a rollout."""
        guided = self.job.policy.guidance_videos if self.job.sampling.guided else 1
        return self._forward(self.job.videos * guided)

    @property
    def one_video(self) -> Forward:
        """A forward of one video."""
        return self._forward(1)

    @property
    def asking(self) -> Forward:
        """One forward of the reference in advance."""
        return self._forward(self.job.reference_batch * (2 if self._pairwise else 1))

    @property
    def text(self) -> Forward:
        """Encoding a prompt, with the encoder's weights."""
        return self._text[0]

    @property
    def decoding(self) -> Forward:
        """Decoding as many videos as are decoded together, with the VAE's float32 weights."""
        count = min(self.job.decode_batch, self.job.candidates)
        return _once((*self._key("decoding", PIXELS), count), lambda: self._decoding(count))

    @property
    def encoding(self) -> Forward:
        """Encoding a real clip, with the VAE's float32 weights."""
        return _once(self._key("encoding", PIXELS), self._encoding)

    @property
    def _pairwise(self) -> bool:
        return self._module.label_kind == "pairwise"

    @cached_property
    def _module(self) -> PreferenceModule:
        return self.job.make(self.job.policy)

    def _network(self, *more: Any) -> tuple[Any, ...]:
        """What a trace of the network depends on."""
        job = self.job
        return (*self._key("network", NETWORK), job.precision, job.gpu, *more)

    def _key(self, name: str, part: frozenset[str]) -> tuple[Any, ...]:
        """What a trace of a part of the policy depends on: all but the settings of other parts."""
        others = (TEXT | PIXELS | NETWORK) - part
        settings = {k: v for k, v in self.job.settings.items() if k not in others}
        policy = self.job.policy
        return (name, repr(settings) if settings else (policy.identity, repr(policy.adapter)))

    def _grown(self, work: Callable[[Policy], tuple[int, ...]]) -> tuple[int, ...]:
        """What the work gives for the whole network, from shallow ones where it is deep."""
        blocks = self.job.policy.blocks
        if blocks <= FEW_BLOCKS:
            return work(self.job.policy.outline())
        few, more = SAMPLES
        return _further(
            work(self.job.policy.outline(few)),
            work(self.job.policy.outline(more)),
            (blocks - more) / (more - few),
        )

    # ---------------------------------------------------------------- the traces

    def _step(self, policy: Policy) -> tuple[int, ...]:
        """A training step of a policy, see `Step`.

        The gradients of the step before are held throughout: Lightning drops them between forward
        and backward, and where batches are accumulated not even then.
        """
        module, _ = self.job.make(policy), self.text_shape  # a trace of its own, before this one
        with weightless() as tracer, self._rules():
            module.configure_model()
            _convert(module.network, self.job.precision)
            alone = tracer.held
            module.reference.attach(policy, module.network)
            module.reference.refresh(module.trained() if self._needs_weights(module) else None)
            reference = tracer.held - alone
            parameters = list(module.network.parameters())
            trained = [p for p in parameters if p.requires_grad]
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            batch = self.batch(policy, module)
            tracer.restart()
            with self._autocast():
                loss = total(module, batch)
            forward = tracer.next_phase()
            backward(loss)
            after = tracer.next_phase()
        return tuple(Step(
            parameters=sum(p.numel() * (2 if p.dtype is torch.uint8 else 1) for p in parameters),
            trained=sum(p.numel() for p in trained),
            weights=sum(t.nbytes for t in (*parameters, *module.network.buffers())),
            reference=reference,
            gradients=sum(p.nbytes for p in trained),
            forward=forward.held,
            forward_casts=forward.casts,
            backward=after.held,
            backward_casts=after.casts,
            block=_largest_block(module.network),
            flops=tracer.flops,
        ))  # fmt: skip

    def _needs_weights(self, module: PreferenceModule) -> bool:
        """Whether the reference keeps trained weights of its own from the second round on."""
        return module.reference.answers == "online" and module.reference.of == "round_start"

    def _forward(self, videos: int) -> Forward:
        def work() -> tuple[int, ...]:
            return self._grown(lambda policy: self._predict(policy, videos))

        return Forward(*_once(self._network("forward", videos), work))

    def _predict(self, policy: Policy, videos: int) -> tuple[int, ...]:
        """A prediction for so many videos, without gradients."""
        _ = self.text_shape
        with weightless() as tracer, self._rules(), torch.no_grad():
            network = policy.build().eval()
            _convert(network, self.job.precision)
            made = self._videos(policy, videos)
            objective = policy.objective()
            tracer.restart()
            noised = objective.noise(made.latents, made.noise, made.u)
            with self._autocast():
                policy.predict(network, noised.sample, noised.timestep, made.text)
            peak = tracer.next_phase()
        return (peak.held, peak.casts, tracer.flops)

    @property
    def _text(self) -> tuple[Forward, tuple[int, ...]]:
        return _once(self._key("text", TEXT), self._embed)

    def _embed(self) -> tuple[Forward, tuple[int, ...]]:
        policy = self.job.policy.outline()
        with weightless() as tracer:
            policy.embed(["a"], CPU)  # the encoder is made here, which takes more than it keeps
            tracer.restart()
            resident, before = tracer.held, tracer.flops
            text = policy.embed(["a"], CPU)
            peak = tracer.next_phase()
        work = Forward(resident + peak.held, 0, tracer.flops - before)
        return work, tuple(text.shape[1:])

    def _decoding(self, count: int) -> Forward:
        """Long videos from short ones: a VAE decodes a few frames at a time, all at the same cost.

        Of tiles one is decoded, and the video that they are put together to is added, twice: joined
        and in parts.
        """
        frames, height, width = self.job.policy.size
        tile = self.job.policy.tile
        if tile is None or (tile[0] >= height and tile[1] >= width):
            return self._decode(count, frames, height, width)
        tall, wide = (min(-(-part // GRID) * GRID, whole)
                      for part, whole in zip(tile, (height, width), strict=True))  # fmt: skip
        one = self._decode(count, frames, tall, wide)
        joined = 2 * count * frames * 3 * 4 * height * width
        times = OVERLAP * height * width / (tall * wide)
        return Forward(one.held + joined, 0, round(one.flops * times))

    def _decode(self, count: int, frames: int, *size: int) -> Forward:
        few, more = (length + (frames - 1) % 8 for length in CLIPS)
        if frames <= more:
            return Forward(*self._decode_whole(count, frames, *size))
        short, longer = (self._decode_whole(count, length, *size) for length in (few, more))
        return Forward(*_further(short, longer, (frames - more) / (more - few)))

    def _decode_whole(self, count: int, frames: int, height: int, width: int) -> tuple[int, ...]:
        policy = self.job.policy.outline(size=(frames, height, width))
        with weightless() as tracer:
            policy.decode(torch.empty(count, *policy.latent_shape))
            peak = tracer.next_phase()
        return (peak.held, 0, tracer.flops // count)

    def _encoding(self) -> Forward:
        policy = self.job.policy.outline()
        with weightless() as tracer:
            policy.encode(torch.empty(1, *policy.size, 3, dtype=torch.uint8))
            peak = tracer.next_phase()
        return Forward(peak.held, 0, tracer.flops)

    def _rules(self) -> AbstractContextManager[Any]:
        return GpuRules() if self.job.gpu else nullcontext()

    def _autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.job.mixed)

    # ---------------------------------------------------------------- what it is run on

    def _videos(self, policy: Policy, count: int) -> Videos:
        latents = torch.empty(count, *policy.latent_shape)
        text = torch.empty(count, *self.text_shape)
        return Videos(latents, text, torch.empty_like(latents), _places(count))

    def batch(self, policy: Policy, module: PreferenceModule) -> PairBatch | PointBatch:
        """What a step takes; contents are left as memory has them."""
        count = self.job.batch_size
        videos, one = self._videos(policy, count), torch.ones(count)
        common: dict[str, Any] = {
            "text": videos.text, "noise": videos.noise, "u": videos.u, "weight": one,
            "row": torch.zeros(count, dtype=torch.int64),
            "real": self._videos(policy, count) if module.real_weight else None,
        }  # fmt: skip
        if module.label_kind == "pairwise":
            lose = torch.empty_like(videos.latents)
            return PairBatch(win=videos.latents, lose=lose, ref_win=one, ref_lose=one, **common)
        return PointBatch(
            latents=videos.latents, desirable=one.bool(), reward=one, ref=one, **common
        )

    @property
    def text_shape(self) -> tuple[int, ...]:
        """(L, D) of a prompt's embedding."""
        return self._text[1]

    # ---------------------------------------------------------------- memory

    @cached_property
    def resident(self) -> dict[str, float]:
        """What lies on each device in every stage, by part, in bytes."""
        step, share = self.step, self._share
        copies = self.job.devices > 1 and not self.job.sharded  # what DDP sends, and keeps
        return {
            "weights": step.weights / share,
            "gradients": step.gradients if copies else 0,
            "reference": step.reference / share,
        }

    @property
    def while_training(self) -> dict[str, float]:
        """What lies there while a round trains; the rest is dropped before videos are made."""
        gradients = self.resident["gradients"] + self.step.gradients / self._share
        return {**self.resident, "gradients": gradients, "optimizer": self._state / self._share}

    @property
    def _share(self) -> int:
        """Devices that what is stored lies on."""
        return self.job.devices if self.job.sharded else 1

    @property
    def _optimizer(self) -> Optimizer:
        return OPTIMIZERS.get(self.job.optimizer, ADAM)

    @property
    def _state(self) -> float:
        """Bytes of the optimizer's state; its moments are of the trained weights' type."""
        itemsize = self.step.gradients // self.step.trained
        return self.step.trained * self._optimizer.state(itemsize)

    @cached_property
    def stages(self) -> list[Stage]:
        """The fullest moment of each stage."""
        found = [
            self._stage("text embeddings", self.text, "encoder, VAE"),
            self._stage("rollout", self.sampling, "activations", self.job.parallel_prompts),
            self._stage("VAE decoding", self.decoding, "encoder, VAE", self.job.parallel_prompts),
        ]
        if self._module.reference.answers == "precomputed":
            found.append(self._stage("reference errors", self.asking, "activations"))
        if self._module.real_weight:
            found.append(self._stage("real clips", self.encoding, "encoder, VAE"))
        return [*found, self._training(), self._update()]

    @property
    def fullest(self) -> Stage:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: stage.total)

    def _stage(self, name: str, work: Forward, kind: str, parallel_prompts: int = 1) -> Stage:
        """A stage without gradients; shards are gathered for it, see `sharding.gathered`."""
        gathered = float(self.step.weights) if self.job.sharded else 0.0
        held = parallel_prompts * (work.held - work.casts)
        parts = {"gathered": gathered, "casts": work.casts, kind: held}
        return Stage(name, {**self.resident, **parts})

    def _training(self) -> Stage:
        peak, casts = self.step.peak
        parts = {"gathered": self._unsharded(), "casts": casts, "activations": peak - casts}
        return Stage("training", {**self.while_training, **parts})

    def _unsharded(self) -> float:
        """Weights that FSDP2 holds whole during a step: what lies outside the blocks, the block at
        work and the next one, and the gradients of the block before."""
        step, job = self.step, self.job
        if not job.sharded:
            return 0.0
        outside = step.weights - step.block * job.policy.blocks
        return outside + 2 * step.block + step.block * step.gradients / step.weights

    def _update(self) -> Stage:
        """The optimizer's step: activations are gone, its own copies are there."""
        copies = 0 if self.job.fused or not self.job.gpu else self._optimizer.update
        extra = copies * self.step.gradients / self._share
        return Stage("update", {**self.while_training, "update": extra})

    # ---------------------------------------------------------------- operations

    def rollout_flops(self, prompts: int, videos: int) -> float:
        """Operations of a round's candidates, so many a prompt, on all devices together."""
        return prompts * self._prompt_flops(self.job.sampling, videos)

    def evaluation_flops(self, prompts: int, videos: int) -> float:
        """Operations of an evaluation, which shares no steps."""
        return prompts * self._prompt_flops(self.job.sampling.independent(), videos)

    def _prompt_flops(self, sampling: Sampling, videos: int) -> float:
        """A prompt's videos; a cache of the network's answers is not reckoned with."""
        own = videos * (sampling.steps - sampling.shared_steps)
        predictions = (own + sampling.shared_steps) * (2 if sampling.guided else 1)
        return predictions * self.one_video.flops + videos * self.decoding.flops

    def reference_flops(self) -> float:
        """Operations of a round's reference errors, on all devices together."""
        if self._module.reference.answers != "precomputed":
            return 0.0
        return self._draws * (2 if self._pairwise else 1) * self.one_video.flops

    def training_flops(self) -> float:
        """Operations of a round's training, on all devices together."""
        return self.job.optimizer_steps * self.job.accumulate * self.job.devices * self.step.flops

    @property
    def _draws(self) -> int:
        job = self.job
        return job.optimizer_steps * job.accumulate * job.devices * job.batch_size

    # ---------------------------------------------------------------- disk

    def checkpoint_bytes(self) -> float:
        """A checkpoint: what is trained, the optimizer's state and a reference that moves."""
        moving = isinstance(self._module.reference, MovingReference)
        return self.step.gradients * (2 if moving else 1) + self._state

    def export_bytes(self) -> float:
        """A round's policy, in float32."""
        return 4.0 * self.step.trained


_TRACED: dict[tuple[Any, ...], Any] = {}
"""Traces by what they depend on: a sweep, or a search for what fits, plans one network often."""


def _once(key: tuple[Any, ...], work: Callable[[], T]) -> T:
    if key not in _TRACED:
        _TRACED[key] = work()
    found: T = _TRACED[key]
    return found


def _further(few: Sequence[int], more: Sequence[int], times: float) -> tuple[int, ...]:
    """``more`` and so many times what it has beyond ``few``."""
    return tuple(round(b + times * (b - a)) for a, b in zip(few, more, strict=True))


def _function(loss: Any) -> str:
    """The name of a loss, without its settings: they are numbers."""
    function = getattr(loss, "func", loss)
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function))}"


def total(module: PreferenceModule, batch: PairBatch | PointBatch) -> Tensor:
    """The total that a step back-propagates."""
    if isinstance(batch, PairBatch):
        loss = module.pair_step(batch)[0]
    else:  # its loss needs all ranks; its memory is that of the errors
        loss = module.errors(batch).policy.mean()
    if batch.real is not None:
        loss = loss + module.real_weight * module.real_errors(batch.real).mean()
    return loss


def _convert(network: torch.nn.Module, precision: str) -> None:
    """What Lightning does to a network for ``bf16-true``."""
    if precision == "bf16-true":
        network.to(torch.bfloat16)


def _largest_block(network: torch.nn.Module) -> int:
    """Bytes of the largest block of a network's lists, which `sharding.shard` cuts one by one."""
    lists = [child for child in network.children() if isinstance(child, torch.nn.ModuleList)]
    sizes = [sum(p.nbytes for p in block.parameters()) for one in lists for block in one]
    return max(sizes, default=0)


def _places(count: int) -> Tensor:
    return torch.full((count,), 0.5, dtype=torch.float64)
