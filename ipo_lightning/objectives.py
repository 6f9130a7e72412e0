"""Noise schedules, targets and errors of the networks we train: v-prediction and flow matching.

Both objectives mix clean latents x0 and noise eps to ``x_t = alpha x0 + sigma eps`` and train the
network on a combination of the two:

- `VPrediction` (CogVideoX): ``alpha = sqrt(alpha_bar)``, ``sigma = sqrt(1 - alpha_bar)``,
  ``v = alpha eps - sigma x0``
- `FlowMatching` (Wan): ``alpha = 1 - sigma``, ``v = eps - x0``

x0 and eps follow from v and x_t: the x0 error of a prediction is sigma times its v error and the
eps error is alpha times it, so that one function, `error_weight`, gives both weightings for both
objectives.

All arithmetic is float32: a scheduler casts its alphas to the sample's dtype, which in bfloat16
costs more than the differences that a preference loss lives on.
"""

import math
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.settings import Positive, Says, checked
from ipo_lightning.storage.store import fingerprint_tensors

Weighting = Literal["v", "eps", "x0", "min_snr"]
Density = Literal["uniform", "logit_normal", "mode", "cosmap"]
IN_ORDER = "low and high, 0 <= low < high <= 1"
Window = Annotated[tuple[float, float], Says(IN_ORDER)]

MIN_SNR_GAMMA = 5.0
"""Hang et al. 2023, arXiv 2303.09556, section 3.4: their recommended gamma."""

MODE_SCALE = 1.29
"""The s of the density ``mode``; one of those tried by Esser et al., and diffusers' default."""


class Noised(NamedTuple):
    """A batch of noised latents, each at a timestep of its own."""

    sample: Tensor
    """x_t, the network's input, float32, the latents' shape."""
    target: Tensor
    """v, what the network should output, float32, the same shape."""
    timestep: Tensor
    """(B,) int64 or float, as the network takes it."""
    weight: Tensor
    """(B,) float32: the factor of the v error, see `error_weight`."""


class Objective(Protocol):
    """How a family of networks is trained."""

    @property
    def identity(self) -> Any:
        """Plain JSON: all that a network's error depends on, but its inputs and weights."""
        ...

    def noise(self, latents: Tensor, noise: Tensor, u: Tensor) -> Noised:
        """Noise latents (B, ...) with noise of their shape.

        Args:
            u: (B,) float64 in [0, 1): a uniform draw for each sample, of which the timestep is the
                quantile. Small u are clean, u near 1 is noisy.
        """
        ...


class _TimestepDistribution:
    """Which timesteps a network is trained at, how often, and how their errors are weighted.

    Args:
        weighting: the error that is measured: of v, of eps, of x0, or min-SNR.
        window: lowest and highest time that is trained at, in [0, 1].
        density: of the times within the window, see `quantile`.
    """

    def __init__(self, weighting: Weighting, window: Window, density: Density) -> None:
        low, high = window
        if not 0 <= low < high <= 1:
            raise InputError(setting="window", value=[low, high], expected=f"give {IN_ORDER}")
        self.weighting, self.window, self.density = weighting, (low, high), density

    @property
    def _settings(self) -> dict[str, Any]:
        """This class's part of `Objective.identity`."""
        return {
            "weighting": self.weighting,
            "window": [float(end) for end in self.window],
            "density": self.density,
        }

    def time(self, u: Tensor) -> Tensor:
        """Times in [0, 1], (B,) float64 on the CPU, for uniform draws ``u`` in [0, 1)."""
        low, high = self.window
        return low + (high - low) * quantile(u.double().cpu(), self.density)


@checked
class VPrediction(_TimestepDistribution):
    """v-prediction on a discrete variance-preserving schedule (CogVideoX).

    The official CogVideoX loss, the x0 error over ``1 - alpha_bar``, equals the plain v error
    exactly; this is the latter.

    Args:
        alphas_cumprod: (T,) float, alpha_bar of each timestep, as the checkpoint's own scheduler
            has them (its ``snr_shift_scale`` and zero-SNR rescale applied).
        weighting: the error that is measured. ``v`` leaves the network's own error, ``eps``
            multiplies it by alpha_bar (nothing at pure noise), ``x0`` by 1 - alpha_bar, ``min_snr``
            by min(snr, 5) / (snr + 1) with snr = alpha_bar / (1 - alpha_bar).
        window: lowest and highest share of the timesteps that is trained at, in [0, 1]; (0, 1)
            trains at all.
        density: how often each timestep of the window is drawn, see `quantile`. Like the weighting,
            it moves weight between noise levels, but by draws, not by the size of a draw's loss.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor,
        weighting: Weighting = "v",
        window: Window = (0.0, 1.0),
        density: Density = "uniform",
    ) -> None:
        super().__init__(weighting, window, density)
        self.alphas_cumprod = alphas_cumprod.detach().double().cpu()

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON: the schedule and the settings that errors depend on."""
        alphas = fingerprint_tensors({"alphas_cumprod": self.alphas_cumprod})
        return {"prediction": "v", "alphas_cumprod": alphas, **self._settings}

    def timestep(self, u: Tensor) -> Tensor:
        """(B,) int64 timesteps in [0, T) for uniform draws ``u`` in [0, 1): noisier as u grows."""
        count = len(self.alphas_cumprod)
        last = math.ceil(self.window[1] * count) - 1  # a share just below it may round up to it
        return (self.time(u) * count).long().clamp(0, last)

    def noise(self, latents: Tensor, noise: Tensor, u: Tensor) -> Noised:
        """``x_t = alpha x0 + sigma eps``, ``v = alpha eps - sigma x0``, see `Objective.noise`."""
        timestep = self.timestep(u)
        alpha_bar = self.alphas_cumprod[timestep]
        weight = error_weight(alpha_bar, 1 - alpha_bar, self.weighting)
        x0, eps = latents.float(), noise.float()
        alpha, sigma = append_dims(alpha_bar.sqrt(), x0), append_dims((1 - alpha_bar).sqrt(), x0)
        return Noised(
            sample=alpha * x0 + sigma * eps,
            target=alpha * eps - sigma * x0,
            timestep=timestep.to(x0.device),
            weight=weight.float().to(x0.device),
        )


@checked
class FlowMatching(_TimestepDistribution):
    """Velocity of a straight path from clean to noise, in shifted time (Wan).

    The noise levels of a sampler with n steps are ``sigma = shift t / (1 + (shift - 1) t)`` at
    equally spaced times t: a shift above 1 spends more steps on much noise (Esser et al. 2024,
    arXiv 2403.03206, section 5.3.2). Training draws t, and so the noise levels as the sampler does.

    Args:
        shift: of the sampler; 1 is none. Wan's is in its scheduler's config.
        weighting: the error that is measured. ``v`` leaves the network's own error; as
            x0 = x_t - sigma v and eps = x_t + (1 - sigma) v, ``x0`` multiplies it by sigma^2
            (nothing at no noise) and ``eps`` by (1 - sigma)^2; ``min_snr`` is the x0 error times
            min(snr, 5) with snr = ((1 - sigma) / sigma)^2, so it multiplies by
            min((1 - sigma)^2, 5 sigma^2).
        window: lowest and highest t that is trained at, in [0, 1]: a share of the sampler's steps.
        density: how often each t of the window is drawn, see `quantile`.
        integer_timesteps: cut the fraction of the timestep off, as some samplers do.
    """

    NUM_TRAIN_TIMESTEPS = 1000
    """The timestep of pure noise, as the network takes it."""

    def __init__(
        self,
        shift: Positive = 1.0,
        weighting: Weighting = "v",
        window: Window = (0.0, 1.0),
        density: Density = "uniform",
        integer_timesteps: bool = False,
    ) -> None:
        super().__init__(weighting, window, density)
        self.shift, self.integer_timesteps = float(shift), integer_timesteps

    @property
    def identity(self) -> dict[str, Any]:
        """Plain JSON: the settings that errors depend on."""
        return {
            "prediction": "velocity",
            "shift": self.shift,
            "whole": self.integer_timesteps,
            **self._settings,
        }

    def sigma(self, u: Tensor) -> Tensor:
        """(B,) float64 noise levels in [0, 1] for uniform draws ``u``: noisier as u grows."""
        t = self.time(u)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def noise(self, latents: Tensor, noise: Tensor, u: Tensor) -> Noised:
        """``x_t = (1 - sigma) x0 + sigma eps``, ``v = eps - x0``, see `Objective.noise`."""
        level = self.sigma(u)
        timestep = self.NUM_TRAIN_TIMESTEPS * level
        timestep = timestep.long() if self.integer_timesteps else timestep.float()
        weight = error_weight((1 - level).square(), level.square(), self.weighting)
        x0, eps = latents.float(), noise.float()
        alpha, sigma = append_dims(1 - level, x0), append_dims(level, x0)
        return Noised(
            sample=alpha * x0 + sigma * eps,
            target=eps - x0,
            timestep=timestep.to(x0.device),
            weight=weight.float().to(x0.device),
        )


def append_dims(values: Tensor, latents: Tensor) -> Tensor:
    """(B,) values as float32 (B, 1, ..., 1), to multiply latents (B, ...), on their device."""
    return values.float().to(latents.device).view(-1, *[1] * (latents.ndim - 1))


def quantile(u: Tensor, density: Density) -> Tensor:
    """The time in [0, 1] below which a share ``u`` of the timesteps lies: 0 clean, 1 noisy.

    So a uniform u gives times of that density (inverse transform sampling). The three beside
    ``uniform`` are those of Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206, section 3.1),
    on rectified flow's time: that of `FlowMatching`, before the shift. On the discrete timesteps of
    `VPrediction` the shapes are theirs, the noise levels under them are not. All favour the middle,
    the same on both sides.

    - ``logit_normal``: ``sigmoid(N(0, 1))``; the ends are all but left out.
    - ``mode``: their heavy-tailed one with s = 1.29. It runs from noisy to clean there, so u is
      reversed here.
    - ``cosmap``: the density 2 / (pi (1 - 2 x + 2 x^2)), which copies a cosine schedule.
    """
    if density == "logit_normal":
        return torch.special.ndtri(u).sigmoid()
    if density == "mode":
        return u - MODE_SCALE * ((math.pi / 2 * u).sin().square() - u)
    if density == "cosmap":
        sine, cosine = (math.pi / 2 * u).sin(), (math.pi / 2 * u).cos()
        return sine / (sine + cosine)
    return u


def error_weight(alpha_squared: Tensor, sigma_squared: Tensor, weighting: Weighting) -> Tensor:
    """Factor of the squared v error, (B,) float64, that makes it the error of ``weighting``.

    Here ``x_t = alpha x0 + sigma eps``. min-SNR, min(snr, gamma) times the x0 error, is written
    without snr = alpha^2 / sigma^2, which is infinite where there is no noise.
    """
    if weighting == "eps":
        return alpha_squared
    if weighting == "x0":
        return sigma_squared
    if weighting == "min_snr":
        return torch.minimum(alpha_squared, MIN_SNR_GAMMA * sigma_squared)
    return torch.ones_like(alpha_squared)


def squared_error(prediction: Tensor, noised: Noised) -> Tensor:
    """Weighted mean squared error over all but the batch dimension, float32, (B,)."""
    if prediction.shape != noised.target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(noised.target.shape)} differ"
        )
    return noised.weight * mean_square(prediction.float() - noised.target)


def mean_square(difference: Tensor) -> Tensor:
    """Mean over all but the batch dimension, float32, (B,)."""
    return difference.float().square().flatten(1).mean(1)
