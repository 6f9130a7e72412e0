"""Paired win rates and means of scores, with intervals and errors clustered by prompt.

Videos of one prompt resemble each other: prompts, not videos, are the independent draws. A missing
score is NaN and is left out.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class WinRate(NamedTuple):
    """A share of paired comparisons won, with its interval; all NaN where nothing compares."""

    rate: float  # 0 to 1; 0.5 is no difference
    low: float
    high: float


def win_rate(
    scores: Tensor,
    base: Tensor,
    clusters: Tensor,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> WinRate:
    """Share of items on which ``scores`` beats ``base``; a tie counts half.

    ``scores``, ``base``: (N,) of the same items (prompt and seed). ``clusters``: (N,) integers,
    the prompt of each item. The interval is the percentile bootstrap over clusters at ``level``;
    with a single cluster nothing is known about other prompts, and it is [0, 1].
    """
    check_columns(scores, base, clusters)
    present = ~(scores.isnan() | base.isnan())
    difference = scores[present].double() - base[present].double()
    # inf - inf would be nan: equal scores tie whatever they are.
    difference = difference.masked_fill(scores[present] == base[present], 0.0)
    wins, sizes = cluster_sums(agreement(difference), clusters[present])
    if not len(sizes):
        return WinRate(math.nan, math.nan, math.nan)
    rate = float(wins.sum() / sizes.sum())
    if len(sizes) == 1:
        return WinRate(rate, 0.0, 1.0)
    low, high = bootstrap_interval(wins, sizes, resamples=resamples, level=level, seed=seed)
    return WinRate(rate, low, high)


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


def cluster_sums(values: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of values and number of items of each of G clusters, both float64 (G,)."""
    _, index = clusters.unique(return_inverse=True)
    groups = int(index.max()) + 1 if len(index) else 0
    zeros = torch.zeros(groups, dtype=torch.float64, device=values.device)
    sums = zeros.index_add(0, index, values.double())
    return sums, zeros.index_add(0, index, torch.ones_like(values, dtype=torch.float64))


def bootstrap_interval(
    sums: Tensor, sizes: Tensor, *, resamples: int, level: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(sizes) when the G clusters are drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    groups = len(sizes)
    drawn = torch.randint(groups, (resamples, groups), generator=generator).to(sums.device)
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    tail = (1 - level) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype).to(means)).tolist()
    return low, high


def check_columns(*columns: Tensor) -> None:
    """Refuse columns that are not all (N,): a stray axis would broadcast, not fail."""
    if any(c.ndim != 1 or c.shape != columns[0].shape for c in columns):
        raise ValueError(f"expected columns (N,), got {[tuple(c.shape) for c in columns]}")


def agreement(margin: Tensor) -> Tensor:
    """1 where a margin agrees with its label, 0 where it does not, 1/2 for none, NaN for NaN."""
    return torch.where(margin.isnan(), margin, 0.5 + 0.5 * margin.sign())
