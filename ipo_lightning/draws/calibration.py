"""Beta that means the same on any model: ``loss.beta=auto``.

A logit is beta times a difference of errors, and how large errors are depends on the model, its
latents and the weighting. At the start of a round all margins are zero; but the reference's errors
on two videos, at the same timestep and noise, already differ. Beta is set so that a pair whose
margin is as large as their typical difference has a given logit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.losses import PreferenceLoss, extra_inputs, label_kind
from ipo_lightning.settings import AtLeast, Count, Positive, checked

AUTO = "auto"


@checked
@dataclass(frozen=True)
class Calibration:
    """How ``loss.beta=auto`` becomes a number."""

    logit: Positive = 7.0
    """Beta times the typical difference between two videos' errors, > 0. On the embedded world 7
    gives the beta of 1000 that was found by search."""
    draws: Annotated[int, AtLeast(2)] = 256
    """Draws that the typical difference is measured on, >= 2; at 256 it is exact to a tenth."""
    batch_size: Count = 32
    """Draws in one forward, without gradients."""


def has_auto_beta(loss: Callable[..., PreferenceLoss]) -> bool:
    """Whether the loss was given ``beta="auto"``.

    Raises:
        InputError: it was, but its beta multiplies no error.
    """
    if not isinstance(loss, partial) or loss.keywords.get("beta") != AUTO:
        return False
    if not _scales_errors(loss):
        name = getattr(loss.func, "__name__", str(loss.func))
        raise InputError(f"loss.beta=auto: beta of {name} multiplies no error; give a number")
    return True


def beta_of(loss: Callable[..., PreferenceLoss]) -> float | None:
    """The beta that multiplies a loss's errors; None where it has none, or it is not yet set."""
    beta = loss.keywords.get("beta") if isinstance(loss, partial) else None
    if not isinstance(loss, partial) or not isinstance(beta, int | float):
        return None
    return float(beta) if _scales_errors(loss) else None


def with_beta(loss: Callable[..., PreferenceLoss], beta: float) -> Callable[..., PreferenceLoss]:
    """The loss with its beta set to a number."""
    return partial(loss, beta=beta)


def typical_gap(errors: Tensor, u: Tensor) -> float:
    """Median absolute difference between two videos' errors at one noise level.

    The median, since these differences have heavy tails: their root mean square is four times as
    large, and a few draws decide it.

    Args:
        errors: (V, 2) errors of winners and losers, which share timestep and noise, or (V, 1) of
            single videos: these are compared with their neighbours in ``u``.
        u: (V,) uniform draws of the timesteps.
    """
    pairs = errors.shape[1] == 2
    gaps = errors[:, 0] - errors[:, 1] if pairs else errors[u.argsort(), 0].diff()
    return float(gaps.double().abs().median())


def auto_beta(errors: Tensor, u: Tensor, logit: float) -> float:
    """The beta with which a pair whose margin is the typical gap has this logit.

    Raises:
        InputError: fewer than two videos, or all errors are equal.
    """
    gap = typical_gap(errors, u) if len(errors) > 1 else 0.0
    if not gap > 0:
        raise InputError(
            f"loss.beta=auto: the reference's errors at {len(errors)} draws do not differ; give a "
            "number, or raise calibration.draws"
        )
    return logit / gap


def _scales_errors(loss: partial) -> bool:
    """Whether twice the beta on half the errors is the same loss."""
    one, other = torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.1])
    errors = [one, other, other, other] if label_kind(loss) == "pairwise" else [one, other]
    rest = [] if label_kind(loss) == "pairwise" else [torch.tensor([True, False])]
    names = extra_inputs(loss)
    if names - {"baseline"}:
        return False
    extra = dict.fromkeys(names, torch.zeros(()))
    plain = loss(*errors, *rest, beta=2.0, **extra).loss
    halved = loss(*(error / 2 for error in errors), *rest, beta=4.0, **extra).loss
    return bool(torch.allclose(plain, halved))
