"""Labels of a critic that compares: strengths, thresholds, vetoes, ties, faults, figures."""

import random
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import pytest

from ipo_lightning.errors import InputError
from ipo_lightning.labelling import (
    Acceptance,
    Filters,
    Labelling,
    Labels,
    Standing,
    all_pairs,
    best_versus_worst,
    by_edge,
    top_against_bottom,
    uniform,
    widest,
)
from ipo_lightning.labelling.tournaments import swiss
from ipo_lightning.metrics.preferences import bradley_terry
from ipo_lightning.storage.records import Candidate, PairVerdict, Verdict

MOVING = {"motion": 5.0, "blank": 0.0}


def candidates(count: int, prompt: int = 0, **gauges: dict[int, float]) -> list[Candidate]:
    def measured(k: int) -> dict[str, float]:
        return {**MOVING, **{name: own[k] for name, own in gauges.items() if k in own}}

    return [Candidate(prompt, f"prompt {prompt}", k, 7, f"l{k}", f"v{k}", measured(k))
            for k in range(count)]  # fmt: skip


def compared(
    first: int, second: int, chance: float | None, prompt: int = 0, **more: Any
) -> PairVerdict:
    """A verdict that the first wins with this chance, without ties."""
    lost = None if chance is None else 1 - chance
    tie = None if chance is None else 0.0
    place = (prompt, first, second, f"v{first}", f"v{second}", "critic")
    return PairVerdict(*place, chance, tie, lost, **more)


def leaning(first: int, second: int) -> PairVerdict:
    """Two of three votes say that neither is better, in both orders."""
    return replace(compared(first, second, 1 / 3), p_tie=2 / 3, p_second=0.0, certainty=2 / 3)


def pairs_of(labels: Labels) -> list[tuple[int, int]]:
    return [(row.winner, row.loser) for row in labels.rows]


def policy(rule: Any = best_versus_worst, **settings: Any) -> Labelling:
    own = {name: settings.pop(name) for name in ("margin", "depth") if name in settings}
    return Labelling(partial(rule, **own), settings.pop("filters", Filters()), **settings)


LADDER = [compared(i, j, 0.9) for i, j in combinations(range(4), 2)]
"""0 beats 1 beats 2 beats 3, everybody everybody below."""


def test_the_strongest_beats_the_weakest() -> None:
    labels = policy().pairs(candidates(4), LADDER)
    assert pairs_of(labels) == [(0, 3)] and labels.dropped == {}
    row = labels.rows[0]
    values = bradley_terry(4, {(d.first, d.second): 0.9 for d in LADDER}).values
    assert row.margin == pytest.approx(values[0] - values[3])
    assert row.certainty == row.weight == 0.9  # the two's own duel


def test_the_twos_own_verdict_must_be_the_winners() -> None:
    for last, reason in (
        (compared(0, 3, 0.5), "a tie of the two"),
        (leaning(0, 3), "a tie of the two"),  # its outcome is 2/3
        (compared(0, 3, 0.7, consistent=False), "the two orders disagree"),
        (compared(0, 3, 0.4), "the loser won the two's own duel"),
    ):
        verdicts = [last if (d.first, d.second) == (0, 3) else d for d in LADDER]
        inwards = policy().pairs(candidates(4), verdicts)
        assert pairs_of(inwards) == [(1, 2)] and inwards.dropped == {reason: 1}
        next_widest = policy(widest).pairs(candidates(4), verdicts)
        assert pairs_of(next_widest)[0] in [(0, 2), (1, 3)] and next_widest.dropped == {reason: 1}


def test_certainty_is_their_own_verdicts_or_the_strengths() -> None:
    verdicts = [compared(0, 1, 1.0), compared(1, 2, 1.0)]  # 0 and 2 never met
    row = policy().pairs(candidates(3), verdicts).rows[0]
    strengths = bradley_terry(3, {(0, 1): 1.0, (1, 2): 1.0})
    assert (row.winner, row.loser) == (0, 2)
    assert row.certainty == pytest.approx(strengths.certainty(0, 2))
    sure = policy(min_certainty=0.99).pairs(candidates(3), verdicts)
    assert sure.rows == [] and sure.dropped == {"certainty below min_certainty": 1}


def test_a_critic_that_is_unsure_of_itself_lowers_the_chance() -> None:
    verdicts = [compared(0, 1, 0.95, certainty=0.6)]
    assert policy().pairs(candidates(2), verdicts).rows[0].certainty == 0.6
    assert policy(min_certainty=0.7).pairs(candidates(2), verdicts).rows == []


def test_weights_by_what_is_known_beyond_a_coin() -> None:
    labels = policy(weight=by_edge).pairs(candidates(2), [compared(0, 1, 0.8)])
    assert labels.rows[0].weight == pytest.approx(0.6)
    labels = policy(weight=uniform).pairs(candidates(2), [compared(0, 1, 0.8)])
    assert labels.rows[0].weight == 1.0


def test_a_dimension_may_veto() -> None:
    verdicts = [compared(0, 1, 0.9, dims={"motion": 0.2, "look": 0.95})]  # chances of 0 in each
    assert pairs_of(policy(veto=0.7).pairs(candidates(2), verdicts)) == [(0, 1)]
    refused = policy(veto=0.5).pairs(candidates(2), verdicts)  # 0.8 - 0.2 for the loser
    assert refused.rows == [] and refused.dropped == {"veto: motion": 1}
    turned = [compared(0, 1, 0.1, dims={"motion": 0.8, "look": 0.05})]
    assert policy(veto=0.5).pairs(candidates(2), turned).dropped == {"veto: motion": 1}


def test_a_veto_of_ratings_is_in_their_units() -> None:
    scores = [(0.9, {"motion": 0.1}), (0.2, {"motion": 0.5})]
    verdicts = [Verdict(0, k, f"v{k}", "c", *row) for k, row in enumerate(scores)]
    assert pairs_of(policy(veto=0.5).pairs(candidates(2), verdicts)) == [(0, 1)]
    assert policy(veto=0.3).pairs(candidates(2), verdicts).dropped == {"veto: motion": 1}


def test_a_veto_without_a_verdict_on_the_two_goes_by_the_strengths() -> None:
    verdicts = [
        compared(0, 1, 1.0, dims={"motion": 0.0}),
        compared(1, 2, 1.0, dims={"motion": 0.0}),
    ]
    assert policy(veto=0.3).pairs(candidates(3), verdicts).dropped == {"veto: motion": 1}
    assert pairs_of(policy(veto=0.95).pairs(candidates(3), verdicts)) == [(0, 2)]


def test_missing_verdicts_are_counted_and_no_outcome() -> None:
    lost = [compared(0, 1, None, fault="timeout"), compared(2, 3, None, fault="timeout"),
            compared(0, 2, None, fault="unreadable")]  # fmt: skip
    labels = policy().pairs(candidates(4), [*lost, compared(0, 3, 0.9)])
    assert pairs_of(labels) == [(0, 3)]
    assert labels.dropped == {"no verdict: timeout": 2, "no verdict: unreadable": 1,
                              "no verdict": 2}  # fmt: skip


def test_faults_of_ratings_are_counted_by_reason() -> None:
    verdicts = [Verdict(0, k, f"v{k}", "c", None, fault="timeout") for k in range(3)]
    dropped = policy().pairs(candidates(3), verdicts).dropped
    assert dropped == {"no verdict: timeout": 3, "fewer than two candidates left": 1}


def test_too_many_missing_verdicts_stop_the_round() -> None:
    lost, kept = compared(0, 1, None, fault="timeout"), compared(0, 2, 0.9)
    policy().check_missing([lost, kept])
    with pytest.raises(InputError, match=r"2 of 3 .* timeout.*max_missing=0.5"):
        policy().check_missing([lost, lost, kept])
    policy(max_missing=1.0).check_missing([lost])
    with pytest.raises(InputError, match="1 of 4"):
        policy(max_missing=0.0).check_missing([lost, kept, kept, kept])


def test_guards_come_first() -> None:
    still = candidates(4, motion={0: 0.1})
    labels = policy(filters=Filters(min_motion=1.0)).pairs(still, LADDER)
    assert pairs_of(labels) == [(1, 3)] and labels.dropped == {"motion below min_motion": 1}


def test_the_flows_band_and_broken_videos() -> None:
    filters = Filters(min_flow=0.5, max_flow=4.0, max_frozen=0.3, max_empty=0.0)
    sound = {"motion": 3.0, "blank": 0.0, "flow": 1.0, "frozen": 0.0, "empty": 0.0}
    assert filters.refuse(sound) is None
    for name, value, reason in (
        ("flow", 0.4, "flow below min_flow"), ("flow", 5.0, "flow above max_flow"),
        ("frozen", 0.5, "frozen above max_frozen"), ("empty", 0.1, "empty above max_empty"),
        ("blank", 1.0, "blank"),
    ):  # fmt: skip
        assert filters.refuse({**sound, name: value}) == reason
    assert Filters().refuse(MOVING) is None  # videos of before there was a flow
    with pytest.raises(InputError, match="not measured"):
        filters.refuse(MOVING)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"motion_ratio": 2.0}, "motion_ratio=2.0: give a number, at least 0 and at most 1"),
        ({"max_frozen": -0.1}, "max_frozen=-0.1: give a number, at least 0 and at most 1"),
        ({"min_flow": 5.0, "max_flow": 1.0}, "min_flow=5.0: it is above max_flow=1.0"),
    ],
)
def test_bounds_that_no_video_can_keep_are_refused(bounds: dict[str, float], message: str) -> None:
    """Else the first round would be rolled out for nothing."""
    with pytest.raises(InputError, match=message):
        Filters(**bounds)


def test_a_tournament_of_less_than_its_rounds_is_refused() -> None:
    with pytest.raises(InputError, match="extra=-1: give a whole number, at least 0"):
        policy(schedule=partial(swiss, extra=-1))


# -------------------------------------------------------------------- rules


def scored(*scores: float) -> list[Standing]:
    return [Standing(one, score, 1.0) for one, score in zip(candidates(len(scores)), scores,
                                                          strict=True)]  # fmt: skip


def accept(**settings: Any) -> Acceptance:
    return Acceptance(settings.pop("filters", Filters()), Counter(), **settings)


def numbers(couples: Any) -> list[tuple[int, int]]:
    return [(one.candidate.candidate, other.candidate.candidate) for one, other in couples]


def test_all_pairs_over_a_margin() -> None:
    took = accept()
    assert numbers(all_pairs(scored(0.0, 1.0, 0.6), took, margin=0.5)) == [(1, 0), (2, 0)]
    assert took.dropped == {"score margin too small": 1}
    assert numbers(all_pairs(scored(0.0, 1.0, 0.6), took, depth=1)) == [(1, 0)]


def test_top_against_bottom() -> None:
    group = scored(0.5, 0.9, 0.1, 0.7, 0.3)
    assert numbers(top_against_bottom(group, accept(), depth=2)) == [(1, 4), (1, 2), (3, 4), (3, 2)]
    assert numbers(top_against_bottom(group[:3], accept(), depth=2)) == [(1, 2)]
    assert numbers(top_against_bottom(group[:3], accept(), depth=None)) == [(1, 2)]


def test_the_widest_acceptable_couple_is_found() -> None:
    """By hand: 1 against 0 is the widest, but the winner stands still; then 3 against 0."""
    group = [Standing(one, score, 1.0) for one, score in zip(
        candidates(4, motion={1: 0.1}), (0.0, 1.0, 0.3, 0.8), strict=True)]  # fmt: skip
    took = accept(filters=Filters(motion_ratio=0.5))
    assert numbers(widest(group, took)) == [(3, 0)]
    assert took.dropped == {"winner moves too little": 1}


def test_without_refusals_the_widest_is_best_versus_worst() -> None:
    draw = random.Random(0)
    for _ in range(50):
        group = scored(*(draw.random() for _ in range(draw.randint(2, 8))))
        for margin in (0.0, 0.4):
            wide = numbers(widest(group, accept(), margin=margin))
            assert wide == numbers(best_versus_worst(group, accept(), margin=margin))


def test_no_rule_uses_the_order_of_the_input() -> None:
    draw = random.Random(1)
    for rule in (all_pairs, top_against_bottom, widest):
        group = scored(*(draw.choice([0.0, 0.5, 1.0]) for _ in range(6)))
        wanted = numbers(rule(group, accept(), depth=2))
        for _ in range(5):
            draw.shuffle(group)
            assert numbers(rule(group, accept(), depth=2)) == wanted


# -------------------------------------------------------------------- points


def test_points_of_comparisons_by_quantile_and_by_score() -> None:
    quantile = policy(lower=0.3, upper=0.7).points(candidates(4), LADDER)
    assert {row.candidate: row.desirable for row in quantile.rows} == {0: True, 3: False}
    assert quantile.dropped == {"between lower and upper": 2}
    values = bradley_terry(4, {(d.first, d.second): 0.9 for d in LADDER}).values
    assert [row.score for row in quantile.rows] == [values[0], values[3]]
    absolute = policy(bounds="score", lower=0.0, upper=0.0).points(candidates(4), LADDER)
    assert {row.candidate: row.desirable for row in absolute.rows} == {
        0: True, 1: True, 2: False, 3: False
    }  # fmt: skip


def test_points_by_an_absolute_score() -> None:
    verdicts = [Verdict(0, k, f"v{k}", "c", score) for k, score in enumerate((3.0, 7.0, 5.0, 9.0))]
    labels = policy(bounds="score", lower=4.0, upper=6.0).points(candidates(4), verdicts)
    assert {row.candidate: row.desirable for row in labels.rows} == {0: False, 1: True, 3: True}
    assert labels.dropped == {"between lower and upper": 1}


# -------------------------------------------------------------------- invariants, figures


def random_verdicts(seed: int) -> tuple[list[Candidate], list[PairVerdict]]:
    draw = random.Random(seed)
    verdicts = [
        compared(i, j, draw.choice([None, 0.1, 0.5, 0.8, 1.0]), consistent=draw.random() < 0.7,
              dims={"a": draw.random()}, certainty=draw.random())
        for i, j in combinations(range(6), 2) if draw.random() < 0.7
    ]  # fmt: skip
    return candidates(6), verdicts


SETTINGS: list[dict[str, Any]] = [
    {}, {"rule": widest, "min_certainty": 0.6, "veto": 0.3}, {"rule": all_pairs, "margin": 0.3},
    {"rule": top_against_bottom, "weight": by_edge},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_order_of_verdicts_changes_nothing(settings: dict[str, Any]) -> None:
    for seed in range(10):
        some, verdicts = random_verdicts(seed)
        for label_kind in ("pairs", "points"):
            wanted = getattr(policy(**settings), label_kind)(some, verdicts)
            random.Random(seed).shuffle(verdicts)
            assert getattr(policy(**settings), label_kind)(some[::-1], verdicts) == wanted


def test_turned_round_every_winner_is_a_loser() -> None:
    for seed in range(10):
        some, verdicts = random_verdicts(seed)
        back = [
            compared(d.first, d.second, None if d.p_first is None else 1 - d.p_first,
                  consistent=d.consistent, certainty=d.certainty)
            for d in verdicts
        ]  # fmt: skip
        there = {(w, ll) for w, ll in pairs_of(policy(all_pairs).pairs(some, verdicts))}
        assert there == {(ll, w) for w, ll in pairs_of(policy(all_pairs).pairs(some, back))}


def test_figures_by_hand() -> None:
    some = candidates(3, motion={0: 1.0, 1: 6.0, 2: 2.0})
    verdicts = [
        compared(0, 1, 0.9, shown=[[0.9, 0.0, 0.1], [0.1, 0.0, 0.9]]),
        compared(0, 2, 0.6, shown=[[0.9, 0.0, 0.1], [0.7, 0.0, 0.3]], consistent=False),
        compared(1, 2, None, shown=[None, [0.8, 0.1, 0.1]], fault="timeout"),
    ]
    one = policy()
    figures = one.pairs(some, verdicts).figures
    assert figures["prompts"] == figures["prompts_labelled"] == 1
    assert (figures["comparisons"], figures["ties"], figures["flips"]) == (3, 0.5, 0.5)
    assert figures["first_wins"] == pytest.approx(4 / 5)
    assert one.pairs(some, [leaning(0, 1), *verdicts[1:]]).figures["ties"] == 1.0
    assert figures["score_motion"] < 0  # the stillest wins


def test_motion_that_scores_follow_shows() -> None:
    some = candidates(3, motion={0: 1.0, 1: 2.0, 2: 3.0})
    verdicts = [Verdict(0, k, f"v{k}", "c", 0.1 * k) for k in range(3)]
    assert policy().pairs(some, verdicts).figures["score_motion"] == pytest.approx(1.0)
    level = [Verdict(0, k, f"v{k}", "c", 0.5) for k in range(3)]
    assert "score_motion" not in policy().pairs(some, level).figures


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"min_certainty": 1.2}, "min_certainty=1.2"), ({"max_missing": -1.0}, "max_missing=-1.0"),
     ({"ridge": 0.0}, "ridge=0.0"), ({"bounds": "rank"}, "bounds=rank"),
     ({"bounds": "score", "lower": 2.0, "upper": 1.0}, "lower=2.0")],
)  # fmt: skip
def test_wrong_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        policy(**settings)
