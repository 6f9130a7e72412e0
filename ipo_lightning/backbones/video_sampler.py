"""Sampling as a policy offers it: batches, shared steps and caches around the loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ipo_lightning.backbones.batching import LargestBatch, in_batches
from ipo_lightning.backbones.caching import CACHES, cached
from ipo_lightning.backbones.denoising import Model, denoise, foresee, initial_noise
from ipo_lightning.backbones.schedulers import BatchScheduler
from ipo_lightning.errors import InputError
from ipo_lightning.policy import Foreseen, Sampling
from ipo_lightning.seeds import derive_seed


class Batch(NamedTuple):
    """Videos to sample together."""

    network: nn.Module
    seeds: Sequence[int]
    """One a video."""
    text: Tensor
    """(B, L, D) prompt embeddings, on the network's device."""
    negative: Tensor | None
    """(1, L, D) embedding of the negative prompt; None without guidance."""
    sampling: Sampling
    start: Tensor | None = None
    """(B, ...) latents that the videos go on from; None: they begin with noise."""

    def rows(self, rows: slice) -> "Batch":
        """Some of the videos."""
        start = None if self.start is None else self.start[rows]
        return self._replace(seeds=self.seeds[rows], text=self.text[rows], start=start)


class VideoSampler(ABC):
    """The sampling half of a family's `Policy`."""

    family: ClassVar[str]
    samplers: ClassVar[Mapping[str, Any]]
    """Classes of schedulers by the names that `Sampling.scheduler` takes."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one video's latents, without the batch."""

    @abstractmethod
    def batch_scheduler(
        self, sampling: Sampling, seeds: Sequence[int], first: int, device: torch.device
    ) -> BatchScheduler:
        """The scheduler that a sampling names, for the videos of the seeds, from step ``first``."""

    @abstractmethod
    def guided_model(self, batch: Batch) -> Model:
        """The network on a batch's prompts, with classifier-free guidance where it is on."""

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse with `InputError` a scheduler or a cache that the family does not have."""
        if sampling.scheduler not in (None, *self.samplers):
            names = ", ".join(self.samplers)
            raise InputError(
                f"scheduler={sampling.scheduler}: {self.family} has {names}, or null (the "
                "checkpoint's own)"
            )
        if sampling.cache is not None and not isinstance(sampling.cache, CACHES):
            names = ", ".join(kind.__name__ for kind in CACHES)
            raise InputError(f"cache={type(sampling.cache).__name__}: choose one of {names}")
        some = 0 < len(sampling.guided_steps) < sampling.steps
        if some and sampling.cache is not None:
            raise InputError(
                "guidance_interval with cache: a cache counts on the same predictions at every "
                "step; give one of the two"
            )

    @torch.no_grad()
    def sample(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        text: Tensor,
        negative: Tensor | None,
        sampling: Sampling,
        start: Tensor | None = None,
    ) -> Tensor:
        """Latents (B, ...), float32, of one video a seed; see `Policy.sample`.

        Each video has random generators of its own: its noise does not depend on its batch. Shared
        steps are denoised once, for one video with noise of its own. Each candidate takes the clean
        latents predicted at the last of them, adds the noise of its seed, and goes on alone.
        """
        batch = self._checked(network, seeds, text, negative, sampling)
        if start is not None:
            batch = batch._replace(start=start.to(batch.text.device))
        shared_x0 = self._shared_x0(batch) if sampling.shared_steps else None
        return self._by_rows(batch, lambda rows: self._denoise(rows, shared_x0))

    @torch.no_grad()
    def foresee(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        text: Tensor,
        negative: Tensor | None,
        sampling: Sampling,
    ) -> Foreseen:
        """See `Policy.foresee`."""
        batch = self._checked(network, seeds, text, negative, sampling)
        x0, latents = self._by_rows(batch, self._foresee).unbind(1)
        scheduler = self.batch_scheduler(sampling, batch.seeds, 0, batch.text.device)
        last = max((_stop_of(sampling) - 1, *sampling.finishing))
        return Foreseen(x0, latents, scheduler.noise_level(last))

    def _checked(
        self,
        network: nn.Module,
        seeds: Sequence[int],
        text: Tensor,
        negative: Tensor | None,
        sampling: Sampling,
    ) -> Batch:
        """All videos of a call, on the network's device."""
        self.check_sampling(sampling)
        _check_prompts(text, negative, sampling)
        device = next(network.parameters()).device
        text = text.to(device).expand(len(seeds), -1, -1)
        negative = negative.to(device) if negative is not None and sampling.guided else None
        return Batch(network, seeds, text, negative, sampling)

    def _by_rows(self, batch: Batch, work: Callable[[Batch], Tensor]) -> Tensor:
        """The results of all videos, as many at once as the sampling says."""
        count, size = len(batch.seeds), batch.sampling.batch_size

        def of_rows(rows: slice) -> Tensor:
            return work(batch.rows(rows))

        if size == "auto":
            return self._largest_batch.run(of_rows, count)
        return in_batches(of_rows, count, size or count)

    @cached_property
    def _largest_batch(self) -> LargestBatch:
        """What ``batch_size=auto`` has found to fit."""
        return LargestBatch()

    def _shared_x0(self, batch: Batch) -> Tensor:
        """(1, ...) the clean latents predicted at the last of the shared steps."""
        one = batch.rows(slice(1))._replace(seeds=[derive_seed(batch.seeds[0], "shared")])
        with self._prepared(one) as (model, noise, scheduler):
            return foresee(model, noise, scheduler, batch.sampling.shared_steps)[0]

    def _foresee(self, batch: Batch) -> Tensor:
        """(B, 2, ...) clean latents as foreseen, and the latents where the videos stop."""
        sampling = batch.sampling
        with self._prepared(batch) as (model, noise, scheduler):
            found = foresee(model, noise, scheduler, _stop_of(sampling), sampling.finishing)
            return torch.stack(found, 1)

    def _denoise(self, batch: Batch, shared_x0: Tensor | None) -> Tensor:
        """(B, ...) clean latents, from noise alone, from what the shared steps predict, or from
        where the videos stopped; these draw other noise than in their first steps."""
        sampling = batch.sampling
        first = sampling.resume if shared_x0 is None else sampling.shared_steps
        if batch.start is not None:
            batch = batch._replace(seeds=[derive_seed(seed, "resumed") for seed in batch.seeds])
        with self._prepared(batch, first) as (model, noise, scheduler):
            latents = noise if batch.start is None else batch.start
            if shared_x0 is not None:
                latents = scheduler.add_noise(shared_x0, noise, first)
            return denoise(model, latents, scheduler, range(first, len(scheduler.timesteps)))

    @contextmanager
    def _prepared(
        self, batch: Batch, first: int = 0
    ) -> Iterator[tuple[Model, Tensor, BatchScheduler]]:
        """A batch's model, with its cache, its initial noise (B, ...) and its scheduler."""
        sampling, device = batch.sampling, batch.text.device
        scheduler = self.batch_scheduler(sampling, batch.seeds, first, device)
        noise = initial_noise(batch.seeds, self.latent_shape, device)
        guided = self._guided_in_interval(batch, scheduler.timesteps)
        with cached(batch.network, sampling.cache, guided) as model:
            yield model, noise, scheduler

    def _guided_in_interval(self, batch: Batch, timesteps: Tensor) -> Model:
        """The model, with guidance at the steps that have it and one prediction at the others."""
        guided, steps = self.guided_model(batch), batch.sampling.guided_steps
        if len(steps) in (0, len(timesteps)):
            return guided
        plain = self.guided_model(batch._replace(negative=None))
        within = set(timesteps[steps.start : steps.stop].tolist())
        if sum(one in within for one in timesteps.tolist()) > len(steps):
            raise InputError(
                f"guidance_interval={list(batch.sampling.guidance_interval or ())}: it begins or "
                "ends between two steps of the same timestep; move that end by a step"
            )

        def model(latents: Tensor, timestep: Tensor) -> Tensor:
            return (guided if timestep.item() in within else plain)(latents, timestep)

        return model


def _stop_of(sampling: Sampling) -> int:
    if sampling.prune_at is None:
        raise ValueError("foresee: say after how many steps (prune_at)")
    return sampling.prune_at


def _check_prompts(text: Tensor, negative: Tensor | None, sampling: Sampling) -> None:
    if sampling.guided and negative is None:
        raise ValueError("guidance needs the embedding of the negative prompt")
    if sampling.shared_steps and len(text) > 1:
        raise ValueError(f"shared={sampling.shared}: {len(text)} texts have no steps in common")
