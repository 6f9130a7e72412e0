"""One batch's way down the noise levels: diffusers' schedulers, and the equations they follow.

At step i the latents are ``x = alpha x0 + sigma eps``: x0 the clean latents, eps the noise.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor

from ipo_lightning.seeds import derive_seed, generator


class BatchScheduler(ABC):
    """A scheduler of diffusers for one batch of videos.

    Every batch copies the scheduler: a multistep history is never another batch's, and videos that
    go on from shared steps start with none.

    Args:
        scheduler: diffusers' own, which stays as it is.
        steps: denoising steps.
    """

    def __init__(self, scheduler: Any, steps: int, device: torch.device) -> None:
        self.scheduler = deepcopy(scheduler)
        self.scheduler.set_timesteps(steps, device=device)

    @property
    def timesteps(self) -> Tensor:
        """(T,) the timesteps that the model takes, noisiest first."""
        return cast(Tensor, self.scheduler.timesteps)

    def step(self, model_output: Tensor, i: int, latents: Tensor) -> Tensor:
        """The latents of step ``i + 1``, from those of step ``i`` and the model output there."""
        after = self.scheduler.step(model_output, self.timesteps[i], latents, return_dict=False)
        return cast(Tensor, after[0])

    @abstractmethod
    def alpha_sigma(self, i: int) -> tuple[Tensor, Tensor]:
        """The factors of clean latents and of noise at step ``i``, both ()."""

    @abstractmethod
    def pred_x0(self, model_output: Tensor, i: int, latents: Tensor) -> Tensor:
        """The clean latents (B, ...) that the model output at step ``i`` stands for."""

    def long_step(self, x0: Tensor, latents: Tensor, i: int, after: int) -> Tensor:
        """The latents of step ``after`` from those of step ``i``, (B, ...), where ``x0`` is
        predicted: DDIM without noise, Euler on flow matching."""
        alpha, sigma = self.alpha_sigma(i)
        return self.add_noise(x0, (latents - alpha * x0) / sigma, after)

    def noise_level(self, i: int) -> float:
        """``sigma / (alpha + sigma)`` at step ``i``, in [0, 1]."""
        alpha, sigma = self.alpha_sigma(i)
        return float(sigma / (alpha + sigma))

    def add_noise(self, x0: Tensor, noise: Tensor, i: int) -> Tensor:
        """``alpha x0 + sigma noise``: clean latents at the noise level of step ``i``.

        With x0 predicted one step before, this is a DDIM step with the largest stochasticity
        (Song et al. 2021, arXiv 2010.02502, eq. 12: their sigma^2 = 1 - alpha_bar): all noise is
        new, none of the old direction is left.
        """
        alpha, sigma = self.alpha_sigma(i)
        return alpha * x0 + sigma * noise


class VPredictionScheduler(BatchScheduler):
    """DDIM on v-prediction (CogVideoX): ``alpha = sqrt(alpha_bar)``, ``sigma = sqrt(1-alpha_bar)``.

    The model output is ``v = alpha eps - sigma x0``; so ``x0 = alpha x - sigma v`` and
    ``eps = sigma x + alpha v``.
    """

    def alpha_sigma(self, i: int) -> tuple[Tensor, Tensor]:
        """``sqrt(alpha_bar)`` and ``sqrt(1 - alpha_bar)`` at step ``i``, both ()."""
        alpha_bar = self.scheduler.alphas_cumprod[self.timesteps[i].item()]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def pred_x0(self, model_output: Tensor, i: int, latents: Tensor) -> Tensor:
        """``alpha x - sigma v``, (B, ...)."""
        alpha, sigma = self.alpha_sigma(i)
        return alpha * latents - sigma * model_output


class StochasticDPMScheduler(VPredictionScheduler):
    """CogVideoX's DPM-Solver++: second order, with noise that each video draws for itself.

    Args:
        seeds: of the videos.
    """

    def __init__(
        self, scheduler: Any, steps: int, seeds: Sequence[int], device: torch.device
    ) -> None:
        super().__init__(scheduler, steps, device)
        self._generators = [generator(derive_seed(seed, "sampler")) for seed in seeds]
        self._last_x0: Tensor | None = None
        self._last_timestep: Tensor | None = None

    def step(self, model_output: Tensor, i: int, latents: Tensor) -> Tensor:
        """The latents of step ``i + 1``; the x0 of the step before makes it second order."""
        timestep = self.timesteps[i]
        latents, self._last_x0 = self.scheduler.step(
            model_output,
            self._last_x0,
            timestep,
            self._last_timestep,
            latents,
            generator=self._generators,
            return_dict=False,
        )
        self._last_timestep = timestep
        return latents


class FlowScheduler(BatchScheduler):
    """Euler or UniPC on flow matching (Wan): ``alpha = 1 - sigma``.

    The model output is the velocity ``v = eps - x0``; so ``x0 = x - sigma v``, and Euler's step is
    ``x_{i+1} = x + (sigma_{i+1} - sigma_i) v``. Neither draws noise.

    Args:
        first: the step that the batch starts at.
    """

    def __init__(self, scheduler: Any, steps: int, first: int, device: torch.device) -> None:
        super().__init__(scheduler, steps, device)
        self.scheduler.set_begin_index(first)

    def alpha_sigma(self, i: int) -> tuple[Tensor, Tensor]:
        """``1 - sigma`` and ``sigma`` at step ``i``, both ()."""
        sigma = self.scheduler.sigmas[i]
        return 1 - sigma, sigma

    def pred_x0(self, model_output: Tensor, i: int, latents: Tensor) -> Tensor:
        """``x - sigma v``, (B, ...)."""
        return latents - self.scheduler.sigmas[i] * model_output
