"""The sampling loop: from noise to clean latents, one scheduler step after another.

`denoise` is all of it. How a step is computed stands in `ipo_lightning.backbones.schedulers`; a
family makes the model; guidance, shared steps, batches and caches are put around the two in
`ipo_lightning.backbones.video_sampler`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ipo_lightning.backbones.schedulers import BatchScheduler
from ipo_lightning.seeds import gaussian

Model = Callable[[Tensor, Tensor], Tensor]
"""Noised latents x_t (B, ...) and timestep t () -> model output (B, ...), float32: the v or the
velocity that the network predicts, with guidance."""


def denoise(model: Model, latents: Tensor, scheduler: BatchScheduler, steps: range) -> Tensor:
    """Denoise latents (B, ...) through some of a scheduler's steps, as diffusers' pipelines do.

    At step i the latents are ``x = alpha x0 + sigma eps``, with alpha and sigma of that step. The
    model output says what x0 and eps are; they give the latents at the noise level of step i + 1,
    for DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12, without noise) and Euler alike::

        x_{i+1} = alpha_{i+1} x0 + sigma_{i+1} eps
    """
    for i in steps:
        timestep = scheduler.timesteps[i]
        model_output = model(latents, timestep)
        latents = scheduler.step(model_output, i, latents)
    return latents


def foresee(
    model: Model,
    latents: Tensor,
    scheduler: BatchScheduler,
    stop: int,
    finishing: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """The clean latents that are foreseen after the first ``stop`` steps, and the latents there.

    Args:
        finishing: steps, the first of them ``stop``, from each of which a long step leads to the
            next; the last prediction gives the clean latents. Empty: that of step ``stop - 1``.
    """
    last = stop - 1
    latents = denoise(model, latents, scheduler, range(last))
    model_output = model(latents, scheduler.timesteps[last])
    x0 = scheduler.pred_x0(model_output, last, latents)
    stopped = latents = scheduler.step(model_output, last, latents)
    for i, after in zip(finishing, [*finishing[1:], -1], strict=False):
        x0 = scheduler.pred_x0(model(latents, scheduler.timesteps[i]), i, latents)
        if after != -1:
            latents = scheduler.long_step(x0, latents, i, after)
    return x0, stopped


def classifier_free_guidance(uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
    """``uncond + guidance_scale (cond - uncond)`` (Ho and Salimans 2022, arXiv 2207.12598).

    ``uncond`` is the output for the negative prompt, ``cond`` for the prompt. The scale is 1 plus
    the paper's w.
    """
    return uncond + guidance_scale * (cond - uncond)


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """(B, ...) float32 noise, each video's from a generator of its own, whatever its batch."""
    return torch.stack([gaussian(seed, shape) for seed in seeds]).to(device)
