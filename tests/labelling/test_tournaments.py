"""Schedules of comparisons, and the strengths that follow of what they brought to light."""

import itertools
import math
import random
from collections.abc import Callable

import pytest

from ipo_lightning.labelling.tournaments import (
    Couple,
    Schedule,
    all_pairs,
    next_round,
    opposite,
    play,
    points,
    swiss,
)
from ipo_lightning.metrics.preferences import bradley_terry, sigmoid

Critic = Callable[[int, int], float]


def tournament(
    schedule: Schedule, quality: list[int], critic: Critic
) -> dict[Couple, float | None]:
    def compare(couples: list[Couple]) -> dict[Couple, float]:
        assert all(a < b for a, b in couples) and len(set(couples)) == len(couples)
        return {(a, b): critic(quality[a], quality[b]) for a, b in couples}

    return play(schedule, len(quality), compare)  # type: ignore[arg-type]


def extremes(played: dict[Couple, float | None], count: int) -> tuple[int, int]:
    known = {couple: won for couple, won in played.items() if won is not None}
    values = bradley_terry(count, known).values
    return values.index(max(values)), values.index(min(values))


def better(one: int, other: int) -> float:
    return float(one > other)


def permutations(count: int, many: int) -> list[list[int]]:
    draw = random.Random(count)
    return [draw.sample(range(count), count) for _ in range(many)]


def permuted(items: list[int], many: int = 200) -> list[list[int]]:
    draw = random.Random(len(items))
    return [draw.sample(items, len(items)) for _ in range(many)]


# -------------------------------------------------------------------- schedules


@pytest.mark.parametrize("count", [2, 4, 5, 6, 8, 9, 12, 16, 32])
def test_a_swiss_tournament_finds_the_best_and_the_worst(count: int) -> None:
    """Acceptance: the best of 8 with half of the 28 comparisons, in at least 95 % of the cases."""
    quality = permutations(count, 100 if count < 32 else 30)
    found = 0
    for one in quality:
        played = tournament(swiss, one, better)
        best, worst = extremes(played, count)
        found += one[best] == count - 1 and one[worst] == 0
    assert found >= 0.95 * len(quality)


CALLS = {2: (1, 1), 4: (5, 6), 6: (10, 15), 8: (13, 28), 16: (33, 120), 32: (81, 496)}
"""N -> comparisons of a Swiss tournament without ties, at most, and of all pairs."""


@pytest.mark.parametrize("count", CALLS)
def test_calls_grow_as_n_log_n(count: int) -> None:
    calls = [len(tournament(swiss, one, better)) for one in permutations(count, 50)]
    assert (max(calls), len(tournament(all_pairs, list(range(count)), better))) == CALLS[count]
    assert max(calls) <= count / 2 * math.ceil(math.log2(count)) + 3


@pytest.mark.slow
def test_every_permutation_of_eight_by_seven() -> None:
    """All orders of the first five of eight: 6720 tournaments of at most 14 comparisons."""
    for first in itertools.islice(itertools.permutations(range(8), 5), 0, None, 7):
        quality = [*first, *sorted(set(range(8)) - set(first))]
        played = tournament(swiss, quality, better)
        assert len(played) <= 14
        best, worst = extremes(played, 8)
        assert (quality[best], quality[worst]) == (7, 0)


def test_noise_costs_more_without_the_tournament() -> None:
    """A critic wrong a quarter of the time: strengths of 13 comparisons beat a single one."""
    draw, right = random.Random(0), 0
    cases = permutations(8, 200)
    for quality in cases:
        wrong = {two: draw.random() < 0.25 for two in itertools.combinations(range(8), 2)}

        def critic(one: int, other: int, wrong: dict[Couple, bool] = wrong) -> float:
            return float((one > other) != wrong[min(one, other), max(one, other)])

        best, worst = extremes(tournament(swiss, quality, critic), 8)
        right += quality[best] > quality[worst]
    assert right / len(cases) > 0.9


def test_two_that_tie_all_along_end() -> None:
    played = tournament(swiss, [0] * 8, lambda one, other: 0.5)
    assert 12 <= len(played) <= 15 and set(played.values()) == {0.5}


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 9, 10, 12, 16])
def test_chances_take_no_more_than_half_of_all_pairs(count: int) -> None:
    """Acceptance, of a critic whose answers are chances: the nearer the items, the nearer their
    points, so that both ends often looked undecided and 8 items played 15 of 28."""
    draw, found = random.Random(count), 0
    for _ in range(300):
        quality = [draw.gauss(0, 1) for _ in range(count)]

        def compare(couples: list[Couple], quality: list[float] = quality) -> dict[Couple, float]:
            return {(a, b): sigmoid(0.5 * (quality[a] - quality[b])) for a, b in couples}

        played = play(swiss, count, compare)  # type: ignore[arg-type]
        assert len(played) <= count * (count - 1) / 4
        found += quality[extremes(played, count)[0]] == max(quality)
    assert found >= 0.9 * 300


def test_clear_verdicts_and_ties_are_played_out() -> None:
    """Half the pairs is no bound of theirs: each tie may cost a comparison."""
    quality = [3, 3, 3, 2, 1, 0, 0, 0]

    def clear(one: int, other: int) -> float:
        return 0.5 if one == other else float(one > other)

    many = [len(tournament(swiss, list(order), clear)) for order in permuted(quality)]
    assert max(many) == 15 and min(many) >= 12


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count: int) -> None:
    for schedule in (swiss, all_pairs, opposite):
        assert play(schedule, count, lambda couples: {}) == {}


def test_missing_verdicts_do_not_stop_a_tournament() -> None:
    draw = random.Random(1)
    played = play(swiss, 8, lambda couples: {two: draw.choice([None, 1.0]) for two in couples})
    assert 12 <= len(played) <= 15


def test_a_couple_meets_once_whatever_a_schedule_says() -> None:
    assert next_round(lambda count, rounds: [(0, 1)], 2, [{(0, 1): None}]) == []
    assert opposite(4, []) == [(0, 2), (1, 3)] and opposite(4, [{}]) == []


def test_points_by_hand() -> None:
    rounds = [{(0, 1): 1.0, (2, 3): 0.25}, {(0, 3): None}]
    assert points(4, rounds) == [1.5, 0.5, 0.75, 1.25]  # out or untold: half a point a round


def test_who_wins_does_not_hang_on_the_number() -> None:
    """Exchanging the names of the items exchanges nothing but names, where there is no tie."""
    for quality in permutations(8, 30):
        best, worst = extremes(tournament(swiss, quality, better), 8)
        mirrored = [7 - one for one in quality]
        assert extremes(tournament(swiss, mirrored, better), 8) == (worst, best)


# -------------------------------------------------------------------- strengths


def test_one_comparison_by_hand() -> None:
    """y = 1, ridge r: the slope 1 - sigma(d) = r d / 2 of s = (d/2, -d/2)."""
    strengths = bradley_terry(2, {(0, 1): 1.0}, ridge=0.5)
    difference = strengths.values[0] - strengths.values[1]
    assert 1 - sigmoid(difference) == pytest.approx(0.25 * difference, abs=1e-8)
    chance = sigmoid(difference)
    assert strengths.error(0, 1) == pytest.approx((2 / (2 * chance * (1 - chance) + 0.5)) ** 0.5)


def test_soft_outcomes_are_recovered() -> None:
    """Chances of known strengths, and hardly any prior: the strengths come back."""
    wanted = [1.2, -0.7, 0.3, -0.8]
    outcomes = {
        (i, j): sigmoid(wanted[i] - wanted[j]) for i, j in itertools.combinations(range(4), 2)
    }
    assert bradley_terry(4, outcomes, ridge=1e-9).values == pytest.approx(wanted, abs=1e-6)


def test_the_order_and_direction_of_the_input_change_nothing() -> None:
    draw = random.Random(3)
    outcomes = {two: draw.random() for two in itertools.combinations(range(6), 2)}
    wanted = bradley_terry(6, outcomes)
    for seed in range(5):
        rows = list(outcomes.items())
        random.Random(seed).shuffle(rows)
        assert bradley_terry(6, dict(rows)) == wanted
    turned = {(j, i): 1 - won for (i, j), won in outcomes.items()}
    assert bradley_terry(6, turned).values == pytest.approx(wanted.values, abs=1e-8)


def test_mirrored_outcomes_have_opposite_strengths() -> None:
    draw = random.Random(4)
    outcomes = {two: draw.random() for two in itertools.combinations(range(5), 2)}
    back = bradley_terry(5, {two: 1 - won for two, won in outcomes.items()}).values
    assert [-one for one in back] == pytest.approx(bradley_terry(5, outcomes).values, abs=1e-8)


def test_the_unbeaten_are_finite_and_equal_records_are_equal() -> None:
    values = bradley_terry(4, {(0, 1): 1.0, (2, 3): 1.0}).values
    assert values[0] == values[2] == -values[1] > 0 and math.isfinite(values[0])
    assert bradley_terry(3, {(0, 1): 0.5, (1, 2): 0.5}).values == (0.0, 0.0, 0.0)


def test_what_never_met_is_joined_at_a_wide_error() -> None:
    apart = bradley_terry(4, {(0, 1): 1.0, (2, 3): 1.0})
    assert apart.certainty(0, 1) > 0.7
    assert apart.certainty(0, 2) == pytest.approx(0.5)
    assert apart.error(0, 2) > 3  # the prior's own is sqrt(20)
    alone = bradley_terry(3, {(0, 1): 1.0})
    assert alone.values[2] == 0.0 and alone.error(0, 2) > alone.error(0, 1)


def test_certainty_grows_with_evidence() -> None:
    few = bradley_terry(4, {(0, 1): 1.0})
    more = bradley_terry(4, {(0, 1): 1.0, (0, 2): 1.0, (2, 1): 1.0, (3, 1): 1.0, (0, 3): 1.0})
    assert 0.5 < few.certainty(0, 1) < more.certainty(0, 1) < 1
    assert few.certainty(0, 1) + few.certainty(1, 0) == pytest.approx(1)


def test_extreme_records_converge() -> None:
    for ridge in (1e-6, 0.1, 10.0):
        values = bradley_terry(32, dict.fromkeys(itertools.combinations(range(32), 2), 1.0), ridge)
        assert list(values.values) == sorted(values.values, reverse=True)


@pytest.mark.parametrize("ridge", [1e-6, 1e-8, 1e-10])
def test_a_small_ridge_ends_where_rounding_begins(ridge: float) -> None:
    values = bradley_terry(
        8, dict.fromkeys(itertools.combinations(range(8), 2), 1.0), ridge
    ).values  # which once went on for ever
    assert list(values) == sorted(values, reverse=True)
    assert values[0] == pytest.approx(-values[-1], abs=1e-3)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        bradley_terry(2, {(0, 1): float("nan")})


def test_a_prior_is_needed() -> None:
    with pytest.raises(ValueError, match="ridge=0"):
        bradley_terry(2, {}, ridge=0.0)
