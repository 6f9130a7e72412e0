"""Which drafts a label needs, and what becomes of labels whose finals disagree with the drafts."""

from functools import partial

import pytest

from ipo_lightning.labelling import (
    Filters,
    Labelling,
    Labels,
    all_pairs,
    best_versus_worst,
    by_rarity,
    top_against_bottom,
    widest,
)
from ipo_lightning.storage.records import AnyVerdict, Candidate, Pair, PairVerdict, Verdict

FILTERS = Filters(motion_ratio=0.0)
KEPT = partial(best_versus_worst, margin=0.05)
FIVE = [0.1, 0.5, 0.9, 0.7, 0.3]  # ranked: 2, 3, 1, 4, 0


def made(scores: dict[int, float], prompt: int = 0) -> tuple[list[Candidate], list[Verdict]]:
    """Videos of a prompt by their numbers, and their ratings."""
    gauges = {"motion": 5.0, "blank": 0.0}
    videos = [Candidate(prompt, "p", k, k, f"l{k}", f"v{k}", gauges) for k in scores]
    return videos, [Verdict(prompt, k, f"v{k}", "c", score) for k, score in scores.items()]


def twice(rules: Labelling, kind: str, drafts: list[float], finals: dict[int, float]) -> Labels:
    """The labels of drafts that were then made in full."""
    found = rules.drafts(kind, *made(dict(enumerate(drafts))))
    assert found.wanted == ({0: tuple(sorted(finals))} if finals else {})
    return rules.labels(kind, *made(finals), found)


def couples(labels: Labels) -> list[tuple[int, int]]:
    return [(row.winner, row.loser) for row in labels.rows if isinstance(row, Pair)]


def test_best_and_worst_are_wanted_and_paired_by_their_second_scores() -> None:
    labels = twice(Labelling(KEPT, FILTERS), "pairwise", FIVE, {0: 0.2, 2: 0.4})
    assert couples(labels) == [(2, 0)] and labels.dropped == {}
    assert labels.rows[0].weight == 1.0
    assert isinstance(labels.rows[0], Pair) and labels.rows[0].margin == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("finals", "reason"),
    [
        ({0: 0.6, 2: 0.4}, "turned"),
        ({0: 0.4, 2: 0.42}, "score margin too small"),
    ],
)
def test_finals_that_disagree_give_no_pair(finals: dict[int, float], reason: str) -> None:
    labels = twice(Labelling(KEPT, FILTERS), "pairwise", FIVE, finals)
    assert labels.rows == [] and labels.dropped == {reason: 1}


def test_nothing_is_wanted_of_drafts_that_are_too_close() -> None:
    found = Labelling(KEPT, FILTERS).drafts("pairwise", *made({0: 0.5, 1: 0.52, 2: 0.54}))
    assert found.wanted == {} and found.dropped == {"score margin too small": 1}
    assert found.prompts == 1


def test_of_several_pairs_only_the_turned_ones_are_dropped() -> None:
    rules = Labelling(partial(top_against_bottom, margin=0.0, depth=2), FILTERS)
    finals = {0: 0.5, 2: 0.9, 3: 0.4, 4: 0.1}
    labels = twice(rules, "pairwise", FIVE, finals)  # 2 and 3 against 4 and 0; 0 passes 3
    # By the second scores 2 and 0 stand against 3 and 4: of these (0, 3) and (0, 4) have turned.
    assert couples(labels) == [(2, 3), (2, 4)]
    assert labels.dropped == {"turned": 2}


def test_a_turned_couple_is_replaced_where_the_rule_looks_on() -> None:
    rules = Labelling(partial(widest, margin=0.0, depth=2), FILTERS)
    labels = twice(rules, "pairwise", FIVE, {0: 0.9, 2: 0.8, 3: 0.7, 4: 0.1})
    assert couples(labels) == [(2, 4)]  # for (0, 4), which has turned; (0, 3) has as well
    assert labels.dropped == {"turned": 2}


def compared(first: int, second: int, p_first: float) -> PairVerdict:
    return PairVerdict(0, first, second, f"v{first}", f"v{second}", "c", p_first, 0, 1 - p_first)


@pytest.mark.parametrize(("p_first", "reason"), [(0.9, {}), (0.1, {"turned": 1})])
def test_critics_that_compare(p_first: float, reason: dict[str, int]) -> None:
    rules = Labelling(partial(widest, margin=0.5), FILTERS, min_certainty=0.65)
    videos, _ = made(dict.fromkeys(range(3), 0.0))
    verdicts: list[AnyVerdict] = [compared(0, 1, 0.9), compared(1, 2, 0.9), compared(0, 2, 0.9)]
    found = rules.drafts("pairwise", videos, verdicts)
    assert found.wanted == {0: (0, 2)}
    labels = rules.pairs([videos[0], videos[2]], [compared(0, 2, p_first)], found)
    assert labels.dropped == reason and len(labels.rows) == (not reason)


POINTS = Labelling(filters=FILTERS, upper=0.7, lower=0.3)
SIX = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def sides(labels: Labels) -> dict[int, bool]:
    return {row.candidate: row.desirable for row in labels.rows if not isinstance(row, Pair)}


def test_points_keep_all_finals_that_stay_on_their_side() -> None:
    """Their own quantiles would drop half of what was made in full."""
    labels = twice(POINTS, "pointwise", SIX, {0: 0.2, 1: 0.1, 4: 0.3, 5: 0.4})
    assert sides(labels) == {0: False, 1: False, 4: True, 5: True} and labels.dropped == {}


def test_points_that_change_sides_are_dropped() -> None:
    labels = twice(POINTS, "pointwise", SIX, {0: 0.35, 1: 0.1, 4: 0.3, 5: 0.4})
    assert sides(labels) == {1: False, 5: True} and labels.dropped == {"turned": 2}


def test_points_all_on_one_side() -> None:
    rules = Labelling(filters=FILTERS, upper=1.0, lower=0.5)  # none is desirable
    labels = twice(rules, "pointwise", SIX, {0: 0.2, 1: 0.1, 2: 0.3})
    assert sides(labels) == {0: False, 1: False, 2: False}


def test_points_by_scores_keep_their_bounds() -> None:
    rules = Labelling(filters=FILTERS, bounds="score", upper=0.45, lower=0.25)
    labels = twice(rules, "pointwise", SIX, {0: 0.1, 1: 0.3, 4: 0.1, 5: 0.9})
    assert sides(labels) == {0: False, 5: True}
    assert labels.dropped == {"between lower and upper": 1, "turned": 1}


@pytest.mark.parametrize(
    ("kind", "rules", "finals"),
    [
        ("pairwise", Labelling(KEPT), 2),
        ("pairwise", Labelling(partial(best_versus_worst, depth=2)), 4),
        ("pairwise", Labelling(partial(top_against_bottom, depth=3)), 6),
        ("pairwise", Labelling(all_pairs, min_certainty=1.0, veto=0.0), 8),
        ("pairwise", Labelling(KEPT, weight=partial(by_rarity, bin=0.01)), 2),
        ("pointwise", POINTS, 6),  # of 0 to 7 those below 2.1 and above 4.9
        ("pointwise", Labelling(bounds="score", upper=0.5, lower=0.5), 8),
    ],
)
def test_how_many_finals_a_rule_needs_of_eight_drafts(
    kind: str, rules: Labelling, finals: int
) -> None:
    assert rules.finals(kind, 8) == finals
