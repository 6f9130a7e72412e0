"""Forwards of policy and reference: their denoising errors on a batch, in one pass or in two."""

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ipo_lightning.draws.batch import PairBatch, PointBatch, Videos
from ipo_lightning.errors import InputError
from ipo_lightning.objectives import Noised, Objective, squared_error
from ipo_lightning.references import Reference

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Noised latents (N, ...), timesteps (N,) and prompt embeddings (N, L, D) to the model output
(N, ...)."""


class Errors(NamedTuple):
    """Denoising errors of policy and reference on N videos, at the same timesteps and noise."""

    policy: Tensor
    """(N,) float32, with gradients."""
    reference: Tensor
    """(N,) float32; NaN where there is no reference."""
    model_output: Tensor
    """(N, ...) of the policy, with gradients."""
    reference_output: Tensor | None
    """(N, ...) of the reference; None where it does not predict online."""
    noised: Noised


def denoising_errors(
    forward: Forward, reference: Reference, batch: PairBatch | PointBatch, objective: Objective
) -> Errors:
    """Errors of policy and reference on a batch's videos; gradients through the policy's."""
    videos = batch.videos()
    noised = objective.noise(videos.latents, videos.noise, videos.u)
    inputs = (noised.sample, noised.timestep, videos.text)
    # The reference goes first: an adapter is back in place before the policy's graph is built.
    if reference.answers == "online":
        reference_output = reference.predict(*inputs)
        reference_error = squared_error(reference_output, noised)
    else:
        reference_output, reference_error = None, batch.reference()
    model_output = forward(*inputs)
    error = squared_error(model_output, noised)
    return Errors(error, reference_error, model_output, reference_output, noised)


def video_errors(forward: Forward, videos: Videos, objective: Objective) -> Tensor:
    """(N,) float32 errors of one network on videos."""
    noised = objective.noise(videos.latents, videos.noise, videos.u)
    return squared_error(forward(noised.sample, noised.timestep, videos.text), noised)


@torch.no_grad()
def mismatched_reward(
    forward: Forward, reference: Reference, noised: Noised, text: Tensor
) -> Tensor:
    """(N,) implicit rewards of N videos, each with the prompt of the video before it.

    Raises:
        InputError: there is one video, and so no other prompt.
    """
    if len(text) < 2:
        raise InputError(
            "loss.baseline=mismatched: with one video a step there is no other prompt; give "
            "data.batch_size=2 or more, or another baseline"
        )
    inputs = (noised.sample, noised.timestep, text.roll(1, 0))
    reference_output = reference.predict(*inputs)
    return squared_error(reference_output, noised) - squared_error(forward(*inputs), noised)


def in_two_passes(forward: Forward) -> Forward:
    """The same forward in two halves of the batch, which keeps half the activations.

    The second half is computed first, and keeps no activations: autograd walks back through the
    later graph first and frees it, and only then recomputes that of the second half.
    """

    def two_passes(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        if len(sample) < 2:
            return forward(sample, timestep, text)
        first, second = zip(*(x.tensor_split(2) for x in (sample, timestep, text)), strict=True)
        late = recomputed(forward)(*second)
        return torch.cat([forward(*first), late])

    return two_passes


def recomputed(forward: Forward) -> Forward:
    """The same forward, whose activations are computed again in the backward, not kept."""

    def kept_inputs(sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return cast(Tensor, checkpoint(forward, sample, timestep, text, use_reentrant=False))

    return kept_inputs
