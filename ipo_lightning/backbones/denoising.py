"""From noise to clean latents: the sampling loop that the families share.

A family says how its scheduler walks and how its network is asked; batches, branches and caches are
the same for all.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from threading import Lock
from typing import Any, ClassVar, NamedTuple, cast

import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
)
from torch import Tensor, nn

from ipo_lightning.errors import InputError
from ipo_lightning.policy import Sampling
from ipo_lightning.seeds import derive_seed, gaussian

Ask = Callable[[Tensor, Tensor], Tensor]
"""Latents (B, ...) and their timestep () to the guided answer (B, ...), float32."""

CACHES = (FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig)

_log = logging.getLogger(__name__)
_cache_turn = Lock()
"""A cache keeps its state on the network: one batch at a time, whatever threads there are."""


class Walk(ABC):
    """One batch's way down a scheduler.

    Every walk has a scheduler of its own: a multistep history is never another batch's, and a
    branch starts with none.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        self.scheduler = deepcopy(scheduler)
        self.scheduler.set_timesteps(steps, device=device)

    @property
    def timesteps(self) -> Tensor:
        """(T,) what the network is told at each step, noisiest first."""
        return cast(Tensor, self.scheduler.timesteps)

    def step(self, answer: Tensor, number: int, latents: Tensor) -> Tensor:
        """The latents at step ``number + 1``, from the network's answer at step ``number``."""
        after = self.scheduler.step(answer, self.timesteps[number], latents, return_dict=False)
        return cast(Tensor, after[0])

    @abstractmethod
    def level(self, number: int) -> tuple[Tensor, Tensor]:
        """What clean latents and noise are multiplied by at a step, both ()."""

    @abstractmethod
    def clean(self, answer: Tensor, number: int, latents: Tensor) -> Tensor:
        """The clean latents that an answer stands for."""

    def renewed(self, clean: Tensor, noise: Tensor, number: int) -> Tensor:
        """Clean latents with all their noise new, at the level of a step.

        A step of Song et al. 2021 (DDIM, arXiv 2010.02502), equation 12, with the largest sigma:
        sigma^2 = 1 - a leaves nothing of the direction that points to the latents before.
        """
        signal, spread = self.level(number)
        return signal * clean + spread * noise


class Job(NamedTuple):
    """What a sampling asks of whom."""

    network: nn.Module
    text: Tensor
    """(B, L, D), one a video, or (1, L, D) for all, on the network's device."""
    negative: Tensor | None
    """(1, L, D) with guidance."""
    sampling: Sampling


class Denoising(ABC):
    """The sampling half of a family's `Policy`."""

    family: ClassVar[str]
    samplers: ClassVar[Mapping[str, Any]]
    """Classes of schedulers by the names that `Sampling.scheduler` takes."""
    scheduler: Any
    """The checkpoint's own."""
    _fitting: int | None = None
    """Videos that fit the memory together, once it has been too small for more."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """See `Policy.latent_shape`."""

    @abstractmethod
    def _scheduler_of(self, sampling: Sampling) -> Any:
        """The scheduler that a sampling names, with the settings of the checkpoint's own."""

    @abstractmethod
    def _walk(
        self, scheduler: Any, steps: int, seeds: Sequence[int], first: int, device: torch.device
    ) -> Walk:
        """A walk for the videos of the seeds, from the step ``first`` on."""

    @abstractmethod
    def _ask(self, job: Job) -> Ask:
        """How the network of a job is asked, guidance included; the text is (B, L, D)."""

    # ---------------------------------------------------------------- a policy's methods

    def check_sampling(self, sampling: Sampling) -> None:
        """See `Policy.check_sampling`."""
        if sampling.scheduler not in (None, *self.samplers):
            names = ", ".join(self.samplers)
            raise InputError(
                f"scheduler={sampling.scheduler}: {self.family} has {names}, or null (the "
                "checkpoint's own)"
            )
        if sampling.cache is not None and not isinstance(sampling.cache, CACHES):
            names = ", ".join(kind.__name__ for kind in CACHES)
            raise InputError(f"cache={type(sampling.cache).__name__}: choose one of {names}")

    @torch.no_grad()
    def sample(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        text: Tensor,
        negative: Tensor | None,
        sampling: Sampling,
    ) -> Tensor:
        """See `Policy.sample`: the loop of diffusers' pipeline on cached embeddings.

        Each video has generators of its own, so that its noise does not depend on the batch. Where
        steps are shared, they are walked once, by one video of its own noise; each candidate takes
        the clean latents that are foreseen after them, adds the noise that it would have started
        from, and goes on alone.
        """
        self.check_sampling(sampling)
        if not sampling.guided:
            negative = None
        elif negative is None:
            raise ValueError("guidance needs the embedding of the negative prompt")
        if sampling.shared_steps and len(text) > 1:
            raise ValueError(f"shared={sampling.shared}: {len(text)} texts have no steps in common")
        device = next(network.parameters()).device
        negative = None if negative is None else negative.to(device)
        job = Job(network, text.to(device), negative, sampling)
        trunk = self._trunk(job, seeds[0]) if sampling.shared_steps else None

        def some(rows: slice) -> Tensor:
            own = job.text if len(job.text) == 1 else job.text[rows]
            return self._branches(job._replace(text=own), seeds[rows], trunk)

        if sampling.batch_size == "auto":
            return self._as_fits(some, len(seeds))
        return _in_batches(some, len(seeds), sampling.batch_size or len(seeds))

    # ---------------------------------------------------------------- the loop

    def _trunk(self, job: Job, seed: int) -> Tensor:
        """(1, ...) the clean latents that are foreseen after the shared steps."""
        seeds, last = [derive_seed(seed, "shared")], job.sampling.shared_steps - 1
        with self._walking(job, seeds, 0) as (walk, ask, latents):
            for number in range(last):
                latents = walk.step(ask(latents, walk.timesteps[number]), number, latents)
            return walk.clean(ask(latents, walk.timesteps[last]), last, latents)

    def _branches(self, job: Job, seeds: Sequence[int], trunk: Tensor | None) -> Tensor:
        """(B, ...) clean latents, from noise alone or from a trunk."""
        first = 0 if trunk is None else job.sampling.shared_steps
        with self._walking(job, seeds, first) as (walk, ask, latents):
            if trunk is not None:
                latents = walk.renewed(trunk, latents, first)
            for number in range(first, len(walk.timesteps)):
                latents = walk.step(ask(latents, walk.timesteps[number]), number, latents)
            return latents

    @contextmanager
    def _walking(
        self, job: Job, seeds: Sequence[int], first: int
    ) -> Iterator[tuple[Walk, Ask, Tensor]]:
        """A walk, how the network is asked on it, and the noise of the seeds, (B, ...)."""
        device, sampling = job.text.device, job.sampling
        walk = self._walk(self._scheduler_of(sampling), sampling.steps, seeds, first, device)
        ask = self._ask(job._replace(text=job.text.expand(len(seeds), -1, -1)))
        with caching(job.network, sampling.cache, ask) as asked:
            yield walk, asked, initial_noise(seeds, self.latent_shape, device)

    def _as_fits(self, some: Callable[[slice], Tensor], count: int) -> Tensor:
        """In batches as large as the memory allows; what fitted is remembered."""
        size = min(self._fitting or count, count)
        while True:
            try:
                return _in_batches(some, count, size)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise InputError(f"one video alone does not fit the memory: {error}") from error
            # Out here the error, and the tensors of its frames, are gone.
            torch.cuda.empty_cache()
            size = self._fitting = -(-size // 2)
            _log.warning("out of memory: from now on %d videos are denoised at once", size)


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """(B, ...) float32 noise, each video's from a generator of its own, whatever its batch."""
    return torch.stack([gaussian(seed, shape) for seed in seeds]).to(device)


def _in_batches(some: Callable[[slice], Tensor], count: int, size: int) -> Tensor:
    return torch.cat([some(slice(start, start + size)) for start in range(0, count, size)])


@contextmanager
def caching(network: Any, cache: Any, ask: Ask) -> Iterator[Ask]:
    """Asking with one of diffusers' caches on the network, which is taken off again after.

    The hooks are new each time: nothing is kept from one batch to the next.
    """
    if cache is None:
        yield ask
        return
    place = [0.0]

    def asked(latents: Tensor, timestep: Tensor) -> Tensor:
        place[0] = float(timestep)
        return ask(latents, timestep)

    told = {}
    if hasattr(cache, "current_timestep_callback"):
        told["current_timestep_callback"] = lambda: place[0]
    with _cache_turn:
        network.enable_cache(replace(cache, **told))
        try:
            yield asked
        finally:
            network.disable_cache()


def context(job: Job, name: str) -> AbstractContextManager[None]:
    """What a cache must be told of a forward: whose answer it is."""
    if job.sampling.cache is None:
        return nullcontext()
    named: AbstractContextManager[None] = cast(Any, job.network).cache_context(name)
    return named
