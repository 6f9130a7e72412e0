"""Numbers about scores and about training: paired win rates, clustered errors, a round's health.

Videos of one prompt resemble each other, so every uncertainty here is clustered by prompt: prompts,
not videos, are the independent draws. A missing score is NaN and counts for nobody.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

# --- Scores --------------------------------------------------------------------------------------


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
    wins, sizes = cluster_sums(0.5 + 0.5 * difference.sign(), clusters[present])
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


# --- Training ------------------------------------------------------------------------------------


def agreement(margin: Tensor) -> Tensor:
    """1 where a margin agrees with its label, 0 where it does not, 1/2 for none, NaN for NaN."""
    return torch.where(margin.isnan(), margin, 0.5 + 0.5 * margin.sign())


class TrainingHealth(Metric):
    """Means over a round of what training said of itself, over all ranks.

    ``update`` takes named (N,) values; NaN is a value that is not there, and counts for nobody.
    With ``place`` (N,) in [0, 1), where each stands in the distribution of timesteps, cleanest
    first, the means of its four quarters are kept besides. The accuracy comes of the margin: its
    share above zero, a tie counting half.

    ``state`` and ``resume`` carry it through a checkpoint, so that a round that was killed and
    resumed reports what an unbroken one does. States are float64, also under ``module.half()``,
    as torchmetrics ignores such casts.
    """

    NAMES = (
        "loss",
        "margin",
        "accuracy",
        "error_win",
        "error_lose",
        "error_win_change",
        "error_lose_change",
        "error_real",
        "drift",
        "saturated",
        "gradient_norm",
    )
    BY_QUARTER = ("margin", "accuracy", "error_win_change", "error_lose_change")

    is_differentiable = False
    full_state_update = False

    totals: Tensor  # (names, 5) sums, in the order of NAMES: of all, then of each quarter
    counts: Tensor  # (names, 5) numbers of values

    def __init__(self) -> None:
        super().__init__()
        for state in ("totals", "counts"):
            zeros = torch.zeros(len(self.NAMES), 5, dtype=torch.float64)
            self.add_state(state, zeros, dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """True: states may come of a checkpoint, and no values are an answer, not a mistake."""
        return True

    def update(self, *, place: Tensor | None = None, **values: Tensor) -> None:
        """Add named (N,) values, some of `NAMES`."""
        unknown = sorted(values.keys() - set(self.NAMES))
        if unknown:
            raise ValueError(f"unknown values {unknown}, expected some of {list(self.NAMES)}")
        if "margin" in values and "accuracy" not in values:
            values = {**values, "accuracy": agreement(values["margin"])}
        for name, value in values.items():
            row, value = self.NAMES.index(name), value.detach().double()
            check_columns(value)
            known = ~value.isnan()
            self.totals[row, 0] += value.nansum()
            self.counts[row, 0] += known.sum()
            if place is not None and name in self.BY_QUARTER:
                check_columns(value, place)
                quarter = (4 * place).long().clamp(0, 3)[known] + 1
                self.totals[row].index_add_(0, quarter, value[known])
                self.counts[row].index_add_(0, quarter, torch.ones_like(value[known]))

    def state(self) -> dict[str, Tensor]:
        """The sums and counts of all ranks together; every rank must ask."""
        with self.sync_context(should_unsync=True):
            return {"totals": self.totals.clone(), "counts": self.counts.clone()}

    def resume(self, state: Mapping[str, Tensor], *, leads: bool) -> None:
        """Go on from what `state` gave: on the leading rank, since it is that of all together."""
        self.reset()
        if leads:
            self.totals += state["totals"].to(self.totals)
            self.counts += state["counts"].to(self.counts)

    def compute(self) -> dict[str, float]:
        """Mean of every name that has been seen; ``margin_q1`` and the like for the quarters."""
        means = (self.totals / self.counts).tolist()
        found: dict[str, float] = {}
        for name, row in zip(self.NAMES, means, strict=True):
            labels = [name, *(f"{name}_q{quarter}" for quarter in (1, 2, 3, 4))]
            found |= {label: mean for label, mean in zip(labels, row, strict=True) if mean == mean}
        return found
