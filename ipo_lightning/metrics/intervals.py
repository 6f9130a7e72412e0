"""Intervals over prompts, which cover what they say also with few of them.

Videos of one prompt resemble each other: prompts, not videos, are the independent draws.
benchmarks/coverage.py simulates how often these intervals hold the truth (docs/statistics.md).
"""

import math
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A number with its interval; NaN where there is nothing to tell it from."""

    value: float
    low: float = math.nan
    high: float = math.nan


def share_interval(values: Tensor, clusters: Tensor, level: float = 0.95) -> Interval:
    """Mean of (N,) values in [0, 1], such as wins with ties at 1/2, with its interval in [0, 1].

    Wilson's score interval (1927, JASA 22) with the variance q (1 - q) - c at a mean of q, where c
    is what ties leave of it, times a design effect: how much wider clusters, and the few of them,
    make the interval of a mean; it is 1 at least. A mean of exactly 0 or 1 shows nothing of it:
    then a prompt counts as one draw. With one cluster nothing is known of others: [0, 1].

    Args:
        clusters: (N,) integers, the prompt of each value. level: share of such intervals that hold
            the truth.
    """
    sums, sizes = cluster_sums(values, clusters)
    if not len(sizes):
        return Interval(math.nan)
    count, groups = float(sizes.sum()), len(sizes)
    mean = float(sums.sum()) / count
    if groups == 1:
        return Interval(mean, 0.0, 1.0)
    normal, student = NormalDist().inv_cdf((1 + level) / 2), t_quantile(level, groups - 1)
    most = float(sizes.square().sum()) / count  # a prompt's videos are all alike
    spread = float(values.double().var(correction=0))
    effect = jackknife_variance(sums, sizes) * count / spread if spread > 1e-12 else most
    effect = max(1.0, min(effect, most) * (student / normal) ** 2)
    width = normal**2 * effect / count
    lost = max(mean * (1 - mean) - spread, 0.0)
    middle, scale = (2 * mean + width) / 2, 1 + width
    root = math.sqrt(max(middle**2 - scale * (mean**2 + width * lost), 0.0))
    return Interval(mean, max((middle - root) / scale, 0.0), min((middle + root) / scale, 1.0))


def mean_interval(values: Tensor, clusters: Tensor, level: float = 0.95) -> Interval:
    """Mean of (N,) values of any range, such as differences of scores, with its interval.

    Student's, with the jackknife's error over clusters and one degree less than there are; with one
    cluster there is none.
    """
    sums, sizes = cluster_sums(values, clusters)
    if not len(sizes):
        return Interval(math.nan)
    mean = float(sums.sum() / sizes.sum())
    if len(sizes) == 1:
        return Interval(mean)
    error = math.sqrt(jackknife_variance(sums, sizes))
    half = t_quantile(level, len(sizes) - 1) * error
    return Interval(mean, mean - half, mean + half)


def detectable(found: Interval, groups: int, power: float = 0.8, level: float = 0.95) -> float:
    """The least true difference that as many prompts would show with chance ``power``, at least
    about: the interval at ``level`` would leave zero. NaN where there is no interval."""
    if groups < 2:
        return math.nan
    student = t_quantile(level, groups - 1)
    return (found.high - found.low) / 2 * (1 + NormalDist().inv_cdf(power) / student)


def prompts_to_show(
    found: Interval, groups: int, power: float = 0.8, level: float = 0.95
) -> int | None:
    """About how many prompts would show a difference as large as ``found`` with chance ``power``.

    None where there is no difference, or no interval.

    Args:
        level: of the interval.
    """
    least = detectable(found, groups, power, level)
    if math.isnan(least) or found.value == 0:
        return None
    return max(2, math.ceil(groups * (least / found.value) ** 2))


def jackknife_variance(sums: Tensor, sizes: Tensor) -> float:
    """Variance of sum(sums) / sum(sizes) when each of G >= 2 clusters is left out in turn.

    With equal sizes it is the usual squared standard error of G means; with unequal ones it is
    wider than the linearised one, which is too narrow then (Bell and McCaffrey 2002).
    """
    groups, count = len(sizes), sizes.sum()
    residuals = (sums - sizes * sums.sum() / count) / (count - sizes)
    return float((groups - 1) / groups * residuals.square().sum())


def cluster_sums(values: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of values and number of items of each of G clusters, both float64 (G,)."""
    _, index = clusters.unique(return_inverse=True)
    groups = int(index.max()) + 1 if len(index) else 0
    zeros = torch.zeros(groups, dtype=torch.float64, device=values.device)
    sums = zeros.index_add(0, index, values.double())
    return sums, zeros.index_add(0, index, torch.ones_like(values, dtype=torch.float64))


def t_quantile(level: float, df: int) -> float:
    """The t within which Student's distribution has a share ``level``; ``df`` >= 1.

    With 1000 degrees or more, as with 1000.
    """
    df = min(df, 1000)
    low, high = 0.0, 1.0
    while _within(high, df) < level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, df) < level else (low, middle)
    return high


def _within(t: float, df: int) -> float:
    """Share of Student's distribution in [-t, t] (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    square, odd = df / (df + t * t), df % 2
    sine, term, total = math.sqrt(1 - square), math.sqrt(square) if odd else 1.0, 0.0
    for k in range(odd, df - 1, 2):
        total += term
        term *= square * (k + 1) / (k + 2)
    return 2 / math.pi * (math.asin(sine) + sine * total) if odd else sine * total
