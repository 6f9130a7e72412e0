"""Sampling as a policy offers it: batches, shared steps and caches around the loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from ipo_lightning.backbones.batching import LargestBatch, in_batches
from ipo_lightning.backbones.caching import Place, cached, check_cache
from ipo_lightning.backbones.denoising import (
    Model,
    classifier_free_guidance,
    denoise,
    foresee,
    initial_noise,
)
from ipo_lightning.backbones.for_rollouts import check_attention, for_rollout
from ipo_lightning.backbones.lora_overlay import Overlay
from ipo_lightning.backbones.network_settings import NetworkSettings
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
    place: Place = Place()
    """Where it is on its way; of no use without a cache."""

    def rows(self, rows: slice) -> "Batch":
        """Some of the videos."""
        start = None if self.start is None else self.start[rows]
        return self._replace(seeds=self.seeds[rows], text=self.text[rows], start=start)


class VideoSampler(ABC):
    """The sampling half of a family's `Policy`."""

    family: ClassVar[str]
    samplers: ClassVar[Mapping[str, Any]]
    """Classes of schedulers by the names that `Sampling.scheduler` takes."""
    guidance_videos: int
    network_settings: NetworkSettings
    frames_first: ClassVar[bool] = False
    """Whether latents are (B, F, C, H, W), and not (B, C, F, H, W)."""
    overlay: Callable[[str], Overlay]
    """The content of a LoRA's file."""
    small_network: Callable[[], nn.Module]
    """Two blocks of the network, without weights."""

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
    def predict(self, network: nn.Module, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The model output, see `Policy.predict`."""

    def guidance_scale_at(self, sampling: Sampling, timestep: Tensor) -> float:
        """The guidance scale at a timestep ()."""
        return sampling.guidance_scale

    def guided_model(self, batch: Batch) -> Model:
        """The network on a batch's prompts, with classifier-free guidance where it is on.

        Both predictions of a step are made in one forward of twice as many videos, or one after
        the other.
        """
        text, negative = batch.text, batch.negative

        def predict(name: str, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
            with batch.place.context(name):
                timesteps = timestep.expand(len(latents))
                return self.predict(batch.network, latents, timesteps, text).float()

        if negative is None:
            return lambda latents, timestep: predict("cond", latents, timestep, text)
        negative = negative.expand_as(text)
        both = torch.cat([negative, text])
        together = self._guides_together(batch.sampling)

        def model(latents: Tensor, timestep: Tensor) -> Tensor:
            if together:
                twice = torch.cat([latents, latents])
                uncond, cond = predict("cond_uncond", twice, timestep, both).chunk(2)
            else:
                cond = predict("cond", latents, timestep, text)
                uncond = predict("uncond", latents, timestep, negative)
            scale = self.guidance_scale_at(batch.sampling, timestep)
            return classifier_free_guidance(uncond, cond, scale)

        return model

    def _guides_together(self, sampling: Sampling) -> bool:
        return sampling.guidance_videos(self.guidance_videos) == 2

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse with `InputError` a scheduler or a cache that the family does not have."""
        if sampling.scheduler not in (None, *self.samplers):
            names = ", ".join(self.samplers)
            raise InputError(
                f"scheduler={sampling.scheduler}: {self.family} has {names}, or null (the "
                "checkpoint's own)"
            )
        if sampling.attention is not None:
            check_attention(sampling.attention)
        if sampling.lora is not None:
            self.overlay(sampling.lora)
        kind = self.network_settings.quantize
        if sampling.weights is not None and kind is not None:
            raise InputError(
                f"weights={sampling.weights} with backbone.quantize={kind}: the weights are "
                "rounded already; give one of them"
            )
        if sampling.cache is not None:
            together = not sampling.guided or self._guides_together(sampling)
            check_cache(sampling, self.small_network(), together, self.frames_first)

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
        batch = self._checked(Batch(network, seeds, text, negative, sampling, start))
        with self._for_rollout(batch):
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
        batch = self._checked(Batch(network, seeds, text, negative, sampling))
        with self._for_rollout(batch):
            x0, latents = self._by_rows(batch, self._foresee).unbind(1)
        scheduler = self.batch_scheduler(sampling, batch.seeds, 0, batch.text.device)
        last = max((_stop_of(sampling) - 1, *sampling.finishing))
        return Foreseen(x0, latents, scheduler.noise_level(last))

    def _checked(self, batch: Batch) -> Batch:
        """All videos of a call, on the network's device."""
        sampling, start = batch.sampling, batch.start
        self.check_sampling(sampling)
        _check_prompts(batch.text, batch.negative, sampling)
        device = next(batch.network.parameters()).device
        guided = batch.negative is not None and sampling.guided
        return batch._replace(
            text=batch.text.to(device).expand(len(batch.seeds), -1, -1),
            negative=cast(Tensor, batch.negative).to(device) if guided else None,
            start=None if start is None else start.to(device),
        )

    def _by_rows(self, batch: Batch, work: Callable[[Batch], Tensor]) -> Tensor:
        """The results of all videos, as many at once as the sampling says."""
        count, size = len(batch.seeds), batch.sampling.batch_size

        def of_rows(rows: slice) -> Tensor:
            return work(batch.rows(rows))

        if size == "auto":
            return self._largest_batch.run(of_rows, count)
        return in_batches(of_rows, count, size or count)

    def _for_rollout(self, batch: Batch) -> AbstractContextManager[None]:
        """The network as the sampling says, while videos are sampled."""
        file = batch.sampling.lora
        overlay = None if file is None else self.overlay(file)
        return for_rollout(batch.network, batch.sampling, overlay)

    @cached_property
    def _largest_batch(self) -> LargestBatch:
        """What ``batch_size=auto`` has found to fit."""
        return LargestBatch()

    def _shared_x0(self, batch: Batch) -> Tensor:
        """(1, ...) the clean latents predicted at the last of the shared steps."""
        one = batch.rows(slice(1))._replace(seeds=[derive_seed(batch.seeds[0], "shared")])
        shared = batch.sampling.shared_steps
        with self._prepared(one, range(shared)) as (model, noise, scheduler):
            return foresee(model, noise, scheduler, shared)[0]

    def _foresee(self, batch: Batch) -> Tensor:
        """(B, 2, ...) clean latents as foreseen, and the latents where the videos stop."""
        stop, finishing = _stop_of(batch.sampling), batch.sampling.finishing
        with self._prepared(batch, range(stop)) as (model, noise, scheduler):
            return torch.stack(foresee(model, noise, scheduler, stop, finishing), 1)

    def _denoise(self, batch: Batch, shared_x0: Tensor | None) -> Tensor:
        """(B, ...) clean latents, from noise alone, from what the shared steps predict, or from
        where the videos stopped; these draw other noise than in their first steps."""
        sampling = batch.sampling
        first = sampling.resume if shared_x0 is None else sampling.shared_steps
        if batch.start is not None:
            batch = batch._replace(seeds=[derive_seed(seed, "resumed") for seed in batch.seeds])
        steps = range(first, sampling.steps)
        with self._prepared(batch, steps) as (model, noise, scheduler):
            latents = noise if batch.start is None else batch.start
            if shared_x0 is not None:
                latents = scheduler.add_noise(shared_x0, noise, first)
            return denoise(model, latents, scheduler, steps)

    @contextmanager
    def _prepared(
        self, batch: Batch, steps: range
    ) -> Iterator[tuple[Model, Tensor, BatchScheduler]]:
        """A batch's model, with its cache, its initial noise (B, ...) and its scheduler, for some
        of its steps."""
        sampling, device = batch.sampling, batch.text.device
        scheduler = self.batch_scheduler(sampling, batch.seeds, steps.start, device)
        noise = initial_noise(batch.seeds, self.latent_shape, device)
        given = (batch.network, sampling.cache, scheduler, steps, self.frames_first)
        with cached(*given) as place:
            model = self._guided_in_interval(batch._replace(place=place), scheduler.timesteps)
            yield place.following(model), noise, scheduler

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
