"""Intervals by hand, by invariants, and by how often they hold the truth."""

import math

import pytest
import torch

from benchmarks.coverage import WORLDS, covered, games, sizes_of
from ipo_lightning.metrics.intervals import (
    detectable,
    jackknife_variance,
    mean_interval,
    prompts_to_show,
    share_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("level", "df", "t"),
    [(0.95, 1, 12.7062), (0.95, 2, 4.3027), (0.95, 3, 3.1824), (0.95, 7, 2.3646), (0.99, 8, 3.3554),
     (0.95, 23, 2.0687), (0.95, 30, 2.0423), (0.9, 100, 1.6602), (0.95, 10**6, 1.9623)],
)  # fmt: skip
def test_students_quantiles_are_those_of_tables(level: float, df: int, t: float) -> None:
    assert t_quantile(level, df) == pytest.approx(t, abs=1e-4)


def test_the_jackknife_by_hand() -> None:
    """Leaving a prompt of sums 1, 2, 6 out leaves means 4, 3.5, 1.5 where each has one video."""
    sums = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    left = torch.tensor([4.0, 3.5, 1.5], dtype=torch.float64)
    by_hand = 2 / 3 * (left - 3).square().sum()
    assert jackknife_variance(sums, torch.ones(3)) == pytest.approx(float(by_hand))
    assert by_hand == pytest.approx(float(sums.var() / 3))


def test_what_is_the_same_everywhere_says_little_of_other_prompts() -> None:
    one, many = torch.ones(4), torch.ones(40)
    assert share_interval(one, torch.zeros(4)) == (1.0, 0.0, 1.0)
    assert share_interval(many, torch.arange(40) // 10).low < 0.6
    assert share_interval(many, torch.arange(40)).low > 0.9
    assert share_interval(many * 0.5, torch.arange(40))[1:] == pytest.approx((0.5, 0.5))
    assert math.isnan(share_interval(one[:0], one[:0]).value)
    assert math.isnan(mean_interval(one, torch.zeros(4)).low)
    assert mean_interval(one, torch.arange(4)) == (1.0, 1.0, 1.0)


def test_mirrored_shares_have_mirrored_intervals() -> None:
    wins, prompts = torch.tensor([1.0, 1, 0.5, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 2, 3])
    one, other = share_interval(wins, prompts), share_interval(1 - wins, prompts)
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1 - one.low))
    assert 0 <= one.low < one.value < one.high <= 1


def test_as_many_prompts_as_are_said_show_a_difference() -> None:
    """Of 0.5 deviations: about (2.80 / 0.5)^2 = 31 prompts at a power of 0.8."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(400, generator=generator)
    values = (values - values.mean()) / values.std() + 0.5
    found = mean_interval(values, torch.arange(400))
    assert detectable(found, 400) == pytest.approx(2.8 / 20, rel=0.01)
    assert prompts_to_show(found, 400) == pytest.approx(31, abs=1)
    assert prompts_to_show(found._replace(value=0.0), 400) is None
    assert math.isnan(detectable(mean_interval(values[:1], torch.zeros(1)), 1))


@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize("groups", [8, 24])
def test_intervals_hold_the_truth_as_often_as_they_say(groups: int, kind: str) -> None:
    """The simulation of docs/statistics.md, with fewer experiments: 3 standard errors below 0.93,
    and for few prompts, where a share takes few values, up to always."""
    sizes = sizes_of(groups, kind)
    for world in WORLDS:
        values, truth = games(world, sizes, 200, seed=groups)
        share = covered(world.interval, values, truth, sizes)
        assert share > 0.93 - 3 * math.sqrt(0.93 * 0.07 / 200), world
