"""Losses for training a critic on people's labels: pure functions of rewards.

Rewards are (B, D), one a dimension, in logits: with a difference of 1 the better video is e times
as likely to be preferred. Labels are (B, D) floats: 1 where the first video is better, -1 where the
second is, 0 for a tie, NaN for no label. The loss of a pair is the mean over its labelled
dimensions (VideoAlign's trainer divides by the number of all dimensions instead).

A loss is pairwise if its first parameter is called ``first``, pointwise if it is ``rewards``.
"""

import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ipo_lightning.errors import InputError
from ipo_lightning.settings import Above, Says, checked

Ties = Annotated[float, Above(1), Says("a number above 1; without ties choose bt")]


class RewardLoss(NamedTuple):
    """One value a pair or a video, not reduced."""

    loss: Tensor
    """(B,) the mean over the valid dimensions; 0 without any."""
    valid: Tensor
    """(B,) bool: whether any dimension has a label that this loss uses."""

    def mean(self) -> Tensor:
        """The mean over the pairs or videos with a label; 0, with zero gradient, without any."""
        return self.loss.sum() / self.valid.sum().clamp_min(1)


class RewardScale(NamedTuple):
    """Mean and standard deviation of each dimension's rewards over the training videos."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def scores(self, rewards: Tensor) -> Tensor:
        """Rewards (..., D) normalised by mean and standard deviation, as float64."""
        double = rewards.detach().double().cpu()
        return (double - double.new_tensor(self.mean)) / double.new_tensor(self.std)


def bradley_terry(first: Tensor, second: Tensor, labels: Tensor) -> RewardLoss:
    """Bradley-Terry, ties dropped: ``-logsigmoid(label * (first - second))``."""
    _check_shapes(first, second, labels)
    decided = (labels == 1) | (labels == -1)
    difference = first.float() - second.float()
    return mean_over_valid(-F.logsigmoid(_filled(labels, decided) * difference), decided)


@checked
def bradley_terry_ties(
    first: Tensor, second: Tensor, labels: Tensor, *, ties: Ties = 5.0
) -> RewardLoss:
    """Bradley-Terry with ties (Rao and Kupper 1967), as VideoReward was trained.

    With d the difference: ``P(first) = sigma(d - ln k)``, ``P(second) = sigma(-d - ln k)``,
    ``P(tie) = (k^2 - 1) P(first) P(second)``; the loss is the negative log-likelihood. See
    `ipo_lightning.metrics.preferences.rao_kupper` for the probabilities.

    Args:
        ties: k > 1; the larger, the more often people call a tie. Between equal rewards its
            probability is ``(k - 1) / (k + 1)``: two thirds for VideoAlign's 5.
    """
    _check_shapes(first, second, labels)
    difference, log_ties = first.float() - second.float(), math.log(ties)
    win, lose = F.logsigmoid(difference - log_ties), F.logsigmoid(-difference - log_ties)
    tie = win + lose + math.log(ties * ties - 1)
    likelihood = torch.where(labels > 0, win, torch.where(labels < 0, lose, tie))
    return mean_over_valid(-likelihood, ~labels.isnan())


def regression(rewards: Tensor, scores: Tensor) -> RewardLoss:
    """Squared error of the rewards to given scores, such as mean opinion scores (VideoScore)."""
    _check_shapes(rewards, scores)
    valid = ~scores.isnan()
    return mean_over_valid((rewards.float() - _filled(scores, valid)).square(), valid)


def mean_over_valid(loss: Tensor, valid: Tensor) -> RewardLoss:
    """Mean of (B, D) over the valid dimensions of each row; the others get no gradient."""
    kept = torch.where(valid, loss, torch.zeros_like(loss))
    return RewardLoss(kept.sum(1) / valid.sum(1).clamp_min(1), valid.any(1))


def label_kind(loss: Callable[..., RewardLoss]) -> Literal["pairwise", "pointwise"]:
    """The kind of labels that a loss takes, by its first parameter.

    Raises:
        InputError: it is another one than ``first`` or ``rewards``.
    """
    first = next(iter(inspect.signature(loss).parameters), "")
    if first not in ("first", "rewards"):
        raise InputError(
            f"reward_loss: its first parameter is {first!r}; name it 'first' (pairs: first, "
            "second, labels) or 'rewards' (videos: rewards, scores)"
        )
    return "pairwise" if first == "first" else "pointwise"


def try_loss(loss: Callable[..., Any]) -> None:
    """Call the loss once on zeros, so that it refuses wrong settings before anything is loaded."""
    some = torch.zeros(1, 1)
    loss(*([some] * (3 if label_kind(loss) == "pairwise" else 2)))


def _filled(labels: Tensor, valid: Tensor) -> Tensor:
    """Labels with 0 in place of NaN, whose gradient would be NaN even if masked."""
    return torch.where(valid, labels, torch.zeros_like(labels)).float()


def _check_shapes(*tensors: Tensor) -> None:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"rewards and labels must all be (B, D), not {shapes}")
