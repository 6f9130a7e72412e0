"""The total of a training step and what it reports: preference loss and the winner's own error."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from ipo_lightning.draws.batch import PairBatch, PointBatch
from ipo_lightning.losses import (
    PreferenceLoss,
    extra_inputs,
    safeguard_scale,
    saturation,
    scale_gradient,
)
from ipo_lightning.metrics.win_rate import agreement
from ipo_lightning.objectives import mean_square
from ipo_lightning.training.forwards import Errors

Total = tuple[Tensor, dict[str, Tensor]]
"""The scalar that is back-propagated, and (B,) values of each pair or point, detached, by the names
of `TrainingHealth`."""


def pair_total(
    loss: Callable[..., PreferenceLoss],
    batch: PairBatch,
    errors: Errors,
    winner_weight: float,
    safeguard: float | None,
) -> Total:
    """``mean(weight * loss) + winner_weight * mean(winner's error)`` of B pairs.

    Args:
        errors: of 2B videos, the winners and then the losers.
        safeguard: mu of `safeguard_scale`, for the losers' gradients; None: off.
    """
    (win, lose), (ref_win, ref_lose) = errors.policy.chunk(2), errors.reference.chunk(2)
    guarded = lose if safeguard is None else _safeguarded(lose, errors, safeguard)
    value, margin = loss(win, guarded, ref_win, ref_lose)
    total = (batch.weight * value).mean() + winner_weight * win.mean()
    return total, {
        "loss": value.detach(),
        "margin": margin,
        "error_win": win.detach(),
        "error_lose": lose.detach(),
        "error_win_change": (win - ref_win).detach(),
        "error_lose_change": (lose - ref_lose).detach(),
        "drift": (win - ref_win + lose - ref_lose).detach() / 2,
        "saturated": saturation(loss, win, lose, ref_win, ref_lose),
    }


def point_total(
    loss: Callable[..., PreferenceLoss],
    batch: PointBatch,
    errors: Errors,
    extra: Mapping[str, Tensor],
    winner_weight: float,
) -> Total:
    """``mean(weight * loss) + winner_weight * mean(desirable videos' error)`` of B points.

    Args:
        extra: the loss's `extra_inputs`, by name.
    """
    policy, reference, desirable = errors.policy, errors.reference, batch.desirable
    value, margin = loss(policy, reference, desirable, **extra)
    own = (policy * desirable).sum() / desirable.sum().clamp_min(1)
    total = (batch.weight * value).mean() + winner_weight * own
    error, change = policy.detach(), (policy - reference).detach()
    missing = torch.full_like(error, torch.nan)
    return total, {
        "loss": value.detach(),
        "margin": margin,
        "error_win": torch.where(desirable, error, missing),
        "error_lose": torch.where(desirable, missing, error),
        "error_win_change": torch.where(desirable, change, missing),
        "error_lose_change": torch.where(desirable, missing, change),
        "drift": change,
        "saturated": saturation(loss, policy, reference, desirable, **extra),
    }


def _safeguarded(lose: Tensor, errors: Errors, mu: float) -> Tensor:
    """(B,) the losers' errors, their gradients scaled so that the winners' errors still fall."""
    residual = (errors.model_output - errors.noised.target).detach()
    win_residual, lose_residual = residual.chunk(2)
    return scale_gradient(lose, safeguard_scale(win_residual, lose_residual, mu=mu))


def extra_tensors(
    loss: Callable[..., PreferenceLoss],
    batch: PointBatch,
    errors: Errors,
    baseline: Callable[[PointBatch, Errors], Tensor],
) -> dict[str, Tensor]:
    """The `extra_inputs` of a pointwise loss; ``baseline`` gives KTO's, where it is needed."""
    names, extra = extra_inputs(loss), {}
    if "baseline" in names:
        extra["baseline"] = baseline(batch, errors)
    if "drift" in names:
        drift = errors.model_output - cast(Tensor, errors.reference_output)
        extra["drift"] = errors.noised.weight * mean_square(drift)
    if "reward" in names:
        extra["reward"] = batch.reward
    return extra


def logged(total: Tensor, values: Mapping[str, Tensor], learning_rate: float) -> dict[str, Tensor]:
    """What a step logs, as ``train/NAME``: means of its values but for those that are NaN."""
    means = {f"train/{name}": value.nanmean() for name, value in values.items()}
    means["train/accuracy"] = agreement(values["margin"]).nanmean()
    missing = torch.stack(list(means.values())).isnan().tolist()  # a GPU is waited for once
    known = {name: mean for (name, mean), no in zip(means.items(), missing, strict=True) if not no}
    rate = torch.tensor(learning_rate)
    return {**known, "train/total": total.detach(), "train/learning_rate": rate}


def refuse_non_finite(name: str, value: Tensor, place: str) -> None:
    """Stop before the optimizer steps, and say where.

    Raises:
        FloatingPointError: some of the values is infinite or NaN.
    """
    if not torch.isfinite(value).all():
        found = value.flatten().tolist()
        raise FloatingPointError(
            f"{name} {found[0] if len(found) == 1 else found} in {place}: lower optim.optimizer.lr "
            "or loss.beta"
        )
