"""Noising, targets and errors of the networks we train: v-prediction and flow matching.

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
"""The s of `_share`'s mode; one of those tried by Esser et al., and diffusers' default."""


class Noised(NamedTuple):
    """A batch at one timestep each."""

    sample: Tensor
    """What the network sees, float32, the latents' shape."""
    target: Tensor
    """What it should answer, float32, the same shape."""
    timestep: Tensor
    """(B,) int64 or float, as the network takes it."""
    weight: Tensor
    """(B,) float32: the factor of the network's own squared error."""


class Objective(Protocol):
    """How a family of networks is trained."""

    @property
    def identity(self) -> Any:
        """Plain JSON: all that a network's error depends on beside its inputs and weights."""
        ...

    def noise(self, latents: Tensor, noise: Tensor, u: Tensor) -> Noised:
        """Noise latents to the timestep that ``u`` in [0, 1), (B,) float64, stands for."""
        ...


class _Levels:
    """Which noise levels are visited, and what their errors are measured on.

    Both objectives mix ``sample = signal x0 + spread noise`` and ask for a combination of the two,
    from which x0 and noise follow; their errors are the network's own, times ``spread`` and times
    ``signal``. So one table of weightings serves both, see `_weight`.
    """

    def __init__(self, weighting: Weighting, window: Window, density: Density) -> None:
        low, high = window
        if not 0 <= low < high <= 1:
            raise InputError(setting="window", value=[low, high], expected=f"give {IN_ORDER}")
        self.weighting, self.window, self.density = weighting, (low, high), density

    @property
    def _chosen(self) -> dict[str, Any]:
        """This class's part of `Objective.identity`."""
        return {
            "weighting": self.weighting,
            "window": [float(end) for end in self.window],
            "density": self.density,
        }

    def _place(self, u: Tensor) -> Tensor:
        """Share of the noise levels, float64 on the CPU, for ``u`` in [0, 1)."""
        low, high = self.window
        return low + (high - low) * _share(u.double().cpu(), self.density)

    def _weigh(self, signal_power: Tensor, noise_power: Tensor, device: torch.device) -> Tensor:
        """(B,) float32 on ``device``: see `Noised.weight`."""
        return _weight(signal_power, noise_power, self.weighting).float().to(device)


@checked
class VPrediction(_Levels):
    """v-prediction on a discrete variance-preserving schedule (CogVideoX).

    ``sample = sqrt(a) x0 + sqrt(1-a) noise``, ``target = sqrt(a) noise - sqrt(1-a) x0`` with a the
    cumulative alpha. The official CogVideoX loss, the x0 error over ``1 - a``, equals the plain v
    error exactly; this is the latter.

    Args:
        alphas_cumprod: (T,) float, as the checkpoint's own scheduler has them (its
            ``snr_shift_scale`` and zero-SNR rescale applied).
        weighting: what the error is measured on. ``v`` leaves the network's own error, ``eps``
            multiplies it by a (nothing at pure noise), ``x0`` by 1 - a, ``min_snr`` by
            min(snr, 5) / (snr + 1) with snr = a / (1 - a).
        window: lowest and highest share of the noise levels that is trained on, in [0, 1];
            (0, 1) trains on all.
        density: how often each level of the window is visited, see `_share`. Like the weighting,
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
        """See `Objective.identity`."""
        alphas = fingerprint_tensors({"alphas_cumprod": self.alphas_cumprod})
        return {"prediction": "v", "alphas_cumprod": alphas, **self._chosen}

    def timestep(self, u: Tensor) -> Tensor:
        """(B,) int64 timesteps in [0, T) for ``u`` in [0, 1): noisier as u grows."""
        count = len(self.alphas_cumprod)
        last = math.ceil(self.window[1] * count) - 1  # a share just below it may round up to it
        return (self._place(u) * count).long().clamp(0, last)

    def noise(self, latents: Tensor, noise: Tensor, u: Tensor) -> Noised:
        """See `Objective.noise`; latents and noise have one shape, (B, ...)."""
        timestep = self.timestep(u)
        alpha = self.alphas_cumprod[timestep]
        signal, spread = (_beside(part.sqrt(), latents) for part in (alpha, 1 - alpha))
        clean, noise = latents.float(), noise.float()
        return Noised(
            sample=signal * clean + spread * noise,
            target=signal * noise - spread * clean,
            timestep=timestep.to(latents.device),
            weight=self._weigh(alpha, 1 - alpha, latents.device),
        )


@checked
class FlowMatching(_Levels):
    """Velocity of a straight path from clean to noise, in shifted time (Wan).

    ``sample = (1 - s) x0 + s noise``, ``target = noise - x0`` for a noise level s in [0, 1]. The
    levels of a sampler with n steps are ``s = shift t / (1 + (shift - 1) t)`` at equally spaced t:
    a shift above 1 spends more steps on much noise (Esser et al. 2024, arXiv 2403.03206, section
    5.3.2). ``u`` stands for t, so that training draws the levels as the sampler does.

    Args:
        shift: of the sampler; 1 is none. Wan's is in its scheduler's config.
        weighting: what the error is measured on. ``v`` leaves the network's own error; as
            x0 = sample - s v and noise = sample + (1 - s) v, ``x0`` multiplies it by s^2 (nothing
            at no noise) and ``eps`` by (1 - s)^2; ``min_snr`` is the x0 error times min(snr, 5)
            with snr = ((1 - s) / s)^2, so it multiplies by min((1 - s)^2, 5 s^2).
        window: lowest and highest t that is trained on, in [0, 1]: a share of the sampler's steps.
        density: how often each t of the window is visited, see `_share`.
        whole: give the network the timestep without its fraction, as some samplers do.
    """

    TIMESTEPS = 1000
    """What the network takes for pure noise."""

    def __init__(
        self,
        shift: Positive = 1.0,
        weighting: Weighting = "v",
        window: Window = (0.0, 1.0),
        density: Density = "uniform",
        whole: bool = False,
    ) -> None:
        super().__init__(weighting, window, density)
        self.shift, self.whole = float(shift), whole

    @property
    def identity(self) -> dict[str, Any]:
        """See `Objective.identity`."""
        return {
            "prediction": "velocity",
            "shift": self.shift,
            "whole": self.whole,
            **self._chosen,
        }

    def level(self, u: Tensor) -> Tensor:
        """(B,) float64 noise levels in [0, 1] for ``u`` in [0, 1): noisier as u grows."""
        time = self._place(u)
        return self.shift * time / (1 + (self.shift - 1) * time)

    def noise(self, latents: Tensor, noise: Tensor, u: Tensor) -> Noised:
        """See `Objective.noise`; latents and noise have one shape, (B, ...)."""
        level = self.level(u)
        signal, spread = (_beside(part, latents) for part in (1 - level, level))
        clean, noise = latents.float(), noise.float()
        timestep = self.TIMESTEPS * level
        return Noised(
            sample=signal * clean + spread * noise,
            target=noise - clean,
            timestep=(timestep.long() if self.whole else timestep.float()).to(latents.device),
            weight=self._weigh((1 - level).square(), level.square(), latents.device),
        )


def _beside(values: Tensor, latents: Tensor) -> Tensor:
    """(B,) values as float32 that multiply latents (B, ...), on their device."""
    return values.float().to(latents.device).view(-1, *[1] * (latents.ndim - 1))


def _share(u: Tensor, density: Density) -> Tensor:
    """Place in the window, 0 its cleanest and 1 its noisiest end, that uniform ``u`` stands for.

    The three beside ``uniform`` are those of Stable Diffusion 3 (Esser et al. 2024, arXiv
    2403.03206, section 3.1), on rectified flow's time: that of `FlowMatching`, before the shift.
    On the discrete timesteps of `VPrediction` the shapes are theirs, the noise levels under them
    are not. All favour the middle, the same on both sides.

    - ``logit_normal``: ``sigmoid(N(0, 1))``; the ends are all but left out.
    - ``mode``: their heavy-tailed one with s = 1.29. It runs from noisy to clean there, so u is
      turned round here.
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


def _weight(signal_power: Tensor, noise_power: Tensor, weighting: Weighting) -> Tensor:
    """Factor of the network's own squared error, (B,) float64.

    Powers are the squares of what multiplies x0 and noise in the sample; min(snr, gamma) times the
    x0 error is written without the snr, which is infinite where there is no noise.
    """
    if weighting == "eps":
        return signal_power
    if weighting == "x0":
        return noise_power
    if weighting == "min_snr":
        return torch.minimum(signal_power, MIN_SNR_GAMMA * noise_power)
    return torch.ones_like(signal_power)


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
