"""Paired win rates and means of scores, with intervals and errors clustered by prompt.

Videos of one prompt resemble each other: prompts, not videos, are the independent draws. A missing
score is NaN and is left out.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ipo_lightning.metrics.intervals import (
    Interval,
    cluster_sums,
    mean_interval,
    share_interval,
)


class WinRate(NamedTuple):
    """A share of paired comparisons won, with its interval; all NaN where nothing compares."""

    rate: float  # 0 to 1; 0.5 is no difference
    low: float
    high: float


def win_rate(scores: Tensor, base: Tensor, clusters: Tensor, *, level: float = 0.95) -> WinRate:
    """Share of items on which ``scores`` beats ``base``; a tie counts half.

    ``scores``, ``base``: (N,) of the same items (prompt and seed). ``clusters``: (N,) integers,
    the prompt of each item. The interval is `share_interval`'s at ``level``.
    """
    difference, groups = differences(scores, base, clusters)
    return WinRate(*share_interval(agreement(difference), groups, level))


def gain(scores: Tensor, base: Tensor, clusters: Tensor, *, level: float = 0.95) -> Interval:
    """Mean of ``scores`` minus ``base`` over the same items, as in `win_rate`, in their units."""
    return mean_interval(*differences(scores, base, clusters), level)


def differences(scores: Tensor, base: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Paired differences, float64 (M,), and their clusters, where neither score is missing."""
    check_columns(scores, base, clusters)
    present = ~(scores.isnan() | base.isnan())
    difference = scores[present].double() - base[present].double()
    # inf - inf would be nan: equal scores tie whatever they are.
    return difference.masked_fill(scores[present] == base[present], 0.0), clusters[present]


def clustered_mean(scores: Tensor, clusters: Tensor) -> tuple[float, float]:
    """Mean of (N,) scores and its standard error clustered by ``clusters`` (N,).

    The error is the linearised one of a ratio, sqrt(G / (G - 1) * sum_g r_g^2) / N with r_g the
    summed residuals of cluster g: with one item a cluster it is the usual s / sqrt(N). NaN scores
    are left out; with no score both are NaN, with one cluster the error is.
    """
    check_columns(scores, clusters)
    present = ~scores.isnan()
    sums, sizes = cluster_sums(scores[present].double(), clusters[present])
    if not len(sizes):
        return math.nan, math.nan
    mean = sums.sum() / sizes.sum()
    groups = len(sizes)
    if groups == 1:
        return float(mean), math.nan
    residuals = sums - sizes * mean
    error = (groups / (groups - 1) * residuals.square().sum()).sqrt() / sizes.sum()
    return float(mean), float(error)


def check_columns(*columns: Tensor) -> None:
    """Refuse columns that are not all (N,): a stray axis would broadcast, not fail."""
    if any(c.ndim != 1 or c.shape != columns[0].shape for c in columns):
        raise ValueError(f"expected columns (N,), got {[tuple(c.shape) for c in columns]}")


def agreement(margin: Tensor) -> Tensor:
    """1 where a margin agrees with its label, 0 where it does not, 1/2 for none, NaN for NaN."""
    return torch.where(margin.isnan(), margin, 0.5 + 0.5 * margin.sign())
