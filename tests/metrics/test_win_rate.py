"""Win rates and clustered errors against known answers."""

import math

import pytest
import torch
from torch import Tensor

from ipo_lightning.metrics.win_rate import clustered_mean, gain, win_rate

NAN = math.nan


def columns(*values: list[float]) -> list[Tensor]:
    """Float columns."""
    return [torch.tensor(v, dtype=torch.float64) for v in values]


# --- Win rate ------------------------------------------------------------------------------------


def test_win_rate_by_hand_with_a_tie() -> None:
    scores, base = columns([3, 1, 2, 5], [1, 3, 2, 4])
    assert win_rate(scores, base, torch.arange(4)).rate == 0.625  # 1 + 0 + 0.5 + 1 of 4


def test_win_rate_interval_is_wilsons_for_many_prompts() -> None:
    base = torch.zeros(4000)
    scores = torch.where(torch.arange(4000) < 2800, 1.0, -1.0)
    found = win_rate(scores, base, torch.arange(4000))
    z2 = 1.959964**2 / 4000
    half = math.sqrt(z2 * 0.21 + z2**2 / 4) / (1 + z2)
    assert found.rate == pytest.approx(0.7)
    assert found.low == pytest.approx((0.7 + z2 / 2) / (1 + z2) - half, abs=1e-4)
    assert found.high == pytest.approx((0.7 + z2 / 2) / (1 + z2) + half, abs=1e-4)


def test_win_rate_and_gain_take_a_level() -> None:
    generator = torch.Generator().manual_seed(1)
    scores, base = torch.randn(2, 40, generator=generator).unbind()
    for measure in (win_rate, gain):
        found = [measure(scores, base, torch.arange(40), level=one) for one in (0.8, 0.95, 0.99)]
        widths = [high - low for _, low, high in found]
        assert widths == sorted(widths) and widths[0] > 0


def test_gain_is_the_mean_of_paired_differences() -> None:
    scores, base = columns([3, 1, NAN, 5], [1, 0, 2, NAN])
    found = gain(scores, base, torch.tensor([0, 1, 1, 2]))
    assert found.value == 1.5
    # Two prompts, one degree: t = 12.706; the error of the mean of 2 and 1 is 1/2.
    assert (found.low, found.high) == pytest.approx((1.5 - 6.353, 1.5 + 6.353), abs=1e-3)


def test_repeated_videos_of_a_prompt_are_no_new_evidence() -> None:
    generator = torch.Generator().manual_seed(0)
    wins = torch.randn(30, generator=generator) + 0.5
    alone = win_rate(wins, torch.zeros(30), torch.arange(30))
    repeated = win_rate(
        wins.repeat_interleave(8), torch.zeros(240), torch.arange(30).repeat_interleave(8)
    )
    blind = win_rate(wins.repeat_interleave(8), torch.zeros(240), torch.arange(240))
    assert repeated == pytest.approx(alone)
    assert blind.high - blind.low < 0.5 * (repeated.high - repeated.low)


def test_missing_scores_are_dropped_on_either_side() -> None:
    scores, base = columns([2, NAN, 2, 0], [1, 0, NAN, 1])
    clusters = torch.arange(4)
    kept = win_rate(scores[[0, 3]], base[[0, 3]], clusters[[0, 3]])
    assert win_rate(scores, base, clusters) == kept
    assert kept.rate == 0.5


def test_swapping_the_sides_mirrors_the_rate() -> None:
    scores, base = columns([3, 1, 2, 5, 7], [1, 3, 2, 4, 6])
    clusters = torch.tensor([0, 0, 1, 2, 3])
    one, other = win_rate(scores, base, clusters), win_rate(base, scores, clusters)
    assert one.rate == pytest.approx(1 - other.rate)
    assert one.low == pytest.approx(1 - other.high)


def test_order_and_names_of_prompts_do_not_matter_to_the_rate() -> None:
    scores, base = columns([3, 1, 2, 5], [1, 3, 2, 4])
    assert win_rate(scores, base, torch.tensor([9, 9, 4, 4])) == win_rate(
        scores, base, torch.tensor([7, 7, 1, 1])
    )


def test_degenerate_win_rates() -> None:
    scores, base = columns([3, 1, 2], [1, 0, 4])
    assert win_rate(scores, base, torch.zeros(3, dtype=torch.long)) == pytest.approx(
        (2 / 3, 0.0, 1.0)
    )
    for nothing in (scores[:0], torch.full((0,), NAN)):
        assert all(math.isnan(v) for v in win_rate(nothing, nothing, torch.arange(0)))
    assert all(math.isnan(v) for v in win_rate(scores * NAN, base, torch.arange(3)))


def test_infinite_scores_compare() -> None:
    scores, base = columns([math.inf, math.inf, 0], [math.inf, 0, math.inf])
    assert win_rate(scores, base, torch.arange(3)).rate == 0.5


def test_a_stray_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(N,\)"):
        win_rate(torch.zeros(3, 1), torch.zeros(3), torch.arange(3))
    with pytest.raises(ValueError, match=r"\(N,\)"):
        clustered_mean(torch.zeros(3), torch.arange(4))


# --- Clustered mean ------------------------------------------------------------------------------


def test_one_item_a_cluster_is_the_usual_error() -> None:
    (scores,) = columns([1, 2, 3, 6])
    mean, error = clustered_mean(scores, torch.arange(4))
    assert mean == 3.0
    assert error == pytest.approx(float(scores.std() / 2))


def test_clusters_by_hand() -> None:
    # Sums of residuals from the mean 2.5: -2 and 2; sqrt(2 / 1 * 8) / 4 = 1.
    (scores,) = columns([1, 2, 3, 4])
    assert clustered_mean(scores, torch.tensor([5, 5, 8, 8])) == pytest.approx((2.5, 1.0))


def test_missing_scores_leave_mean_and_error() -> None:
    (scores,) = columns([1, NAN, 2, 6, NAN])
    kept = clustered_mean(scores[[0, 2, 3]], torch.tensor([0, 1, 2]))
    assert clustered_mean(scores, torch.tensor([0, 0, 1, 2, 3])) == kept


def test_degenerate_means() -> None:
    (scores,) = columns([1, 3])
    mean, error = clustered_mean(scores, torch.zeros(2, dtype=torch.long))
    assert mean == 2.0 and math.isnan(error)
    assert all(math.isnan(v) for v in clustered_mean(scores * NAN, torch.arange(2)))
