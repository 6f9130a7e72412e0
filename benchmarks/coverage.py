"""How often intervals hold the truth, in simulated evaluations.

python benchmarks/coverage.py                    1,000 experiments of each kind, about 15 minutes
python benchmarks/coverage.py --experiments 200

An evaluation has videos of some prompts; videos of a prompt resemble each other. A row of the
table: number of prompts, videos of each, and the least, mean and largest share of experiments, over
the worlds, in which the 95 % interval holds the truth: for win rates, for means, and for win rates
by the percentile bootstrap over prompts, which many reports use.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Beta

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from ipo_lightning.metrics.intervals import (  # noqa: E402
    Interval,
    cluster_sums,
    mean_interval,
    share_interval,
)
from ipo_lightning.report import table  # noqa: E402

GROUPS = (8, 12, 16, 24, 48, 100)
SIZES = {"one": (1,), "equal": (4,), "unequal": (1, 2, 4, 8)}


@dataclass(frozen=True)
class World:
    """What differs between two policies.

    Args:
        rate: chance to win where there is no tie; None: scores of a mean that is their difference.
        alike: correlation of a prompt's videos.
        ties: share of them. skewed: whether differences are those of log-normal scores.
    """

    rate: float | None
    alike: float = 0.0
    ties: float = 0.0
    skewed: bool = False

    @property
    def interval(self) -> Callable[[Tensor, Tensor], Interval]:
        """The interval that is tried in it."""
        return mean_interval if self.rate is None else share_interval


WORLDS = [
    *(World(rate, alike, ties) for rate in (0.5, 0.7, 0.8, 0.9, 0.95) for alike in (0.0, 0.1, 0.3)
      for ties in (0.0, 0.3)),
    *(World(None, alike, skewed=skewed) for alike in (0.0, 0.1, 0.5) for skewed in (False, True)),
]  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [row(groups, kind, options.experiments, options.seed)
            for groups in GROUPS for kind in SIZES]  # fmt: skip
    print(table(rows, list(rows[0])))


def row(groups: int, kind: str, experiments: int, seed: int) -> dict[str, str | int]:
    """The table's row of a number of prompts and of the videos of each."""
    sizes = sizes_of(groups, kind)
    found: dict[str, list[float]] = {"win rate": [], "mean": [], "bootstrap": []}
    for world in WORLDS:
        if kind == "one" and world.alike:
            continue  # there is nothing that could be alike
        values, truth = games(world, sizes, experiments, seed)
        share = covered(world.interval, values, truth, sizes)
        found["mean" if world.rate is None else "win rate"].append(share)
        if world.rate is not None:
            found["bootstrap"].append(covered(percentiles, values, truth, sizes))
    cells = {name: " / ".join(f"{number:.3f}" for number in (min(all_), sum(all_) / len(all_),
                                                             max(all_)))
             for name, all_ in found.items()}  # fmt: skip
    return {"prompts": groups, "videos": kind, **cells}


def sizes_of(groups: int, kind: str) -> Tensor:
    """Videos of each prompt, int64 (G,)."""
    pattern = torch.tensor(SIZES[kind])
    return pattern.repeat(groups)[:groups]


def games(world: World, sizes: Tensor, experiments: int, seed: int) -> tuple[Tensor, float]:
    """What experiments find, float64 (E, N), N = sum(sizes), and the truth behind them."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # Beta takes no generator
    count = int(sizes.sum())
    if world.rate is None:
        prompts, videos = (torch.randn(experiments, size, generator=generator).double()
                           for size in (len(sizes), count))  # fmt: skip
        mixed = world.alike**0.5 * prompts.repeat_interleave(sizes, 1)
        mixed += (1 - world.alike) ** 0.5 * videos
        return (mixed.mul(0.4).exp(), 1.0832870676749586) if world.skewed else (mixed, 0.0)
    chances = torch.full((experiments, len(sizes)), world.rate, dtype=torch.float64)
    if world.alike:
        strength = (1 - world.alike) / world.alike
        shape = torch.tensor([world.rate, 1 - world.rate], dtype=torch.float64) * strength
        chances = Beta(shape[0], shape[1]).sample(chances.shape)
    won = torch.rand(experiments, count, generator=generator) < chances.repeat_interleave(sizes, 1)
    tied = torch.rand(experiments, count, generator=generator) < world.ties
    truth = world.rate * (1 - world.ties) + world.ties / 2
    return won.double().masked_fill(tied, 0.5), truth


def covered(
    interval: Callable[[Tensor, Tensor], Interval], values: Tensor, truth: float, sizes: Tensor
) -> float:
    """Share of experiments (E, N) whose interval holds the truth."""
    clusters = torch.arange(len(sizes)).repeat_interleave(sizes)
    found = [interval(row, clusters) for row in values]
    return sum(one.low - 1e-9 <= truth <= one.high + 1e-9 for one in found) / len(found)


def percentiles(values: Tensor, clusters: Tensor) -> Interval:
    """The percentile bootstrap over prompts, 1,000 resamples."""
    sums, sizes = cluster_sums(values, clusters)
    drawn = torch.randint(len(sizes), (1000, len(sizes)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return Interval(float(sums.sum() / sizes.sum()), low, high)


if __name__ == "__main__":
    main()
