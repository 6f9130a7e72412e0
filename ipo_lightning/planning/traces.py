"""What a training step and the forwards of a run cost, found by running them on fake tensors.

The step of the module, the forwards of sampling, the text encoder and the VAE are the run's own
(see `ipo_lightning.planning.tracing`), so that the estimate follows the code. A network's blocks
are alike: a deep one is run with a few blocks, and the rest is extrapolated.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ipo_lightning.draws.batch import PairBatch, PointBatch, Videos
from ipo_lightning.module import PreferenceModule
from ipo_lightning.planning.costs import Forward, Step, cached, extrapolated
from ipo_lightning.planning.frozen_parts import decoding_cost, embedding_cost, encoding_cost
from ipo_lightning.planning.job import Job
from ipo_lightning.planning.tracing import GpuRules, backward, weightless
from ipo_lightning.policy import Policy

FEW_BLOCKS = 8
"""Networks of up to so many blocks are run whole."""
SAMPLES = (2, 3)
"""Numbers of blocks that stand for a deeper network: its first block may differ from the rest."""

TEXT = frozenset({"text_dtype", "text_length"})
PIXELS = frozenset({"tiling", "decode_batch", "vae_dtype"})
SIZE = frozenset({"num_frames", "height", "width", "fps"})
NETWORK = frozenset({"lora", "checkpointing", "weights", "quantize", "compile", "attention",
                     "weighting", "window", "density", "shift"})  # fmt: skip
"""Settings of a policy that concern one part of it alone, or the videos alone: costs of the other
parts stay cached when they change."""


class Traces:
    """The costs of a job's pieces of work, each traced when it is first asked for."""

    def __init__(self, job: Job) -> None:
        self.job = job

    # ---------------------------------------------------------------- the pieces of work

    @cached_property
    def step(self) -> Step:
        """One training step."""
        job, module = self.job, self.module
        reference = (type(module.reference), module.reference.of)
        added = (module.real_weight > 0, module.safeguard is None, module.two_pass)
        key = (job.batch_size, _function(module.loss), reference, added)
        return Step(*cached(self._network("step", *key), lambda: self._extrapolated(self._step)))

    @property
    def sampling(self) -> Forward:
        """One forward of a rollout."""
        guided = self.job.sampling.guidance_videos(self.job.policy.guidance_videos)
        return self._forward(self.job.videos * guided)

    @property
    def one_video(self) -> Forward:
        """A forward of one video."""
        return self._forward(1)

    @property
    def reference_errors(self) -> Forward:
        """One forward of the reference where its errors are precomputed."""
        return self._forward(self.job.reference_batch * (2 if self.pairwise else 1))

    @property
    def text(self) -> Forward:
        """Encoding a prompt, with the encoder's weights."""
        return self._embedding[0]

    @property
    def text_shape(self) -> tuple[int, ...]:
        """(L, D) of a prompt's embedding."""
        return self._embedding[1]

    @property
    def _embedding(self) -> tuple[Forward, tuple[int, ...]]:
        return cached(self._key("text", TEXT), lambda: embedding_cost(self.job.policy))

    @property
    def decoding(self) -> Forward:
        """Decoding as many videos as are decoded together, with the VAE's float32 weights."""
        policy, count = self.job.policy, min(self.job.decode_batch, self.job.candidates)
        key = (*self._key("decoding", PIXELS | SIZE), count)
        return cached(key, lambda: decoding_cost(policy, count))

    @property
    def encoding(self) -> Forward:
        """Encoding a real clip, with the VAE's float32 weights."""
        return cached(self._key("encoding", PIXELS | SIZE), lambda: encoding_cost(self.job.policy))

    @cached_property
    def module(self) -> PreferenceModule:
        """The run's training module, without a network."""
        return self.job.make(self.job.policy)

    @property
    def pairwise(self) -> bool:
        """Whether the run trains on pairs."""
        return self.module.label_kind == "pairwise"

    # ---------------------------------------------------------------- what costs depend on

    def _network(self, *more: Any) -> tuple[Any, ...]:
        """The key of a cost of the network."""
        job = self.job
        return (*self._key("network", NETWORK | SIZE), job.precision, job.gpu, *more)

    def _key(self, name: str, part: frozenset[str]) -> tuple[Any, ...]:
        """The key of a cost of a part: all settings of the policy but its name and those of its
        other parts."""
        others = (TEXT | PIXELS | SIZE | NETWORK | {"name"}) - part
        settings = {k: v for k, v in self.job.settings.items() if k not in others}
        policy = self.job.policy
        return (name, repr(settings) if settings else (policy.identity, repr(policy.adapter)))

    # ---------------------------------------------------------------- the network

    def _extrapolated(self, work: Callable[[Policy], tuple[int, ...]]) -> tuple[int, ...]:
        """The cost of work with the whole network, from networks of few blocks if it is deep."""
        blocks = self.job.policy.blocks
        if blocks <= FEW_BLOCKS:
            return work(self.job.policy.outline())
        few, more = SAMPLES
        return extrapolated(
            work(self.job.policy.outline(few)),
            work(self.job.policy.outline(more)),
            (blocks - more) / (more - few),
        )

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
            module.reference.refresh(module.trained() if _needs_weights(module) else None)
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

    def _forward(self, videos: int) -> Forward:
        def work() -> tuple[int, ...]:
            return self._extrapolated(lambda policy: self._predict(policy, videos))

        return Forward(*cached(self._network("forward", videos), work))

    def _predict(self, policy: Policy, count: int) -> tuple[int, ...]:
        """A prediction for so many videos, without gradients, see `Forward`."""
        _ = self.text_shape
        with weightless() as tracer, self._rules(), torch.no_grad():
            network = policy.build().eval()
            _convert(network, self.job.precision)
            videos = self.videos(policy, count)
            objective = policy.objective()
            tracer.restart()
            noised = objective.noise(videos.latents, videos.noise, videos.u)
            with self._autocast():
                policy.predict(network, noised.sample, noised.timestep, videos.text)
            peak = tracer.next_phase()
        return (peak.held, peak.casts, tracer.flops)

    def _rules(self) -> AbstractContextManager[Any]:
        return GpuRules() if self.job.gpu else nullcontext()

    def _autocast(self) -> Any:
        """As Lightning enters it around steps, and the stages around their forwards: without a
        cache of cast weights."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.job.mixed, cache_enabled=False)

    # ---------------------------------------------------------------- its inputs

    def videos(self, policy: Policy, count: int) -> Videos:
        """Videos to predict; their contents are whatever the memory holds."""
        latents = torch.empty(count, *policy.latent_shape)
        text = torch.empty(count, *self.text_shape)
        u = torch.full((count,), 0.5, dtype=torch.float64)
        return Videos(latents, text, torch.empty_like(latents), u)

    def batch(self, policy: Policy, module: PreferenceModule) -> PairBatch | PointBatch:
        """The batch of a step; its contents are whatever the memory holds."""
        count = self.job.batch_size
        videos, one = self.videos(policy, count), torch.ones(count)
        common: dict[str, Any] = {
            "text": videos.text, "noise": videos.noise, "u": videos.u, "weight": one,
            "row": torch.zeros(count, dtype=torch.int64),
            "real": self.videos(policy, count) if module.real_weight else None,
        }  # fmt: skip
        if module.label_kind == "pairwise":
            lose = torch.empty_like(videos.latents)
            return PairBatch(win=videos.latents, lose=lose, ref_win=one, ref_lose=one, **common)
        return PointBatch(
            latents=videos.latents, desirable=one.bool(), reward=one, ref=one, **common
        )


def total(module: PreferenceModule, batch: PairBatch | PointBatch) -> Tensor:
    """The total that a step back-propagates."""
    if isinstance(batch, PairBatch):
        loss = module.pair_step(batch)[0]
    else:  # its loss needs all ranks; its memory is that of the errors
        loss = module.errors(batch).policy.mean()
    if batch.real is not None:
        loss = loss + module.real_weight * module.real_errors(batch.real).mean()
    return loss


def _needs_weights(module: PreferenceModule) -> bool:
    """Whether the reference keeps trained weights of its own from the second round on."""
    return module.reference.answers == "online" and module.reference.of == "round_start"


def _function(loss: Any) -> str:
    """The name of a loss, without its settings: they are numbers."""
    function = getattr(loss, "func", loss)
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function))}"


def _convert(network: torch.nn.Module, precision: str) -> None:
    """What Lightning does to a network for ``bf16-true``."""
    if precision == "bf16-true":
        network.to(torch.bfloat16)


def _largest_block(network: torch.nn.Module) -> int:
    """Bytes of the largest block of a network's lists, which `sharding.shard` shards one by one."""
    lists = [child for child in network.children() if isinstance(child, torch.nn.ModuleList)]
    sizes = [sum(p.nbytes for p in block.parameters()) for one in lists for block in one]
    return max(sizes, default=0)
