"""Verdicts to pairs and points: hand-made rounds, and invariants over random ones."""

import random
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest

from ipo_lightning.errors import InputError
from ipo_lightning.labelling import (
    Acceptance,
    Couple,
    Filters,
    Labelling,
    Labels,
    Standing,
    best_versus_worst,
    by_certainty,
    by_margin,
    by_rarity,
    uniform,
)
from ipo_lightning.storage.records import Candidate, Pair, Point, Verdict

Round = tuple[list[Candidate], list[Verdict]]


def one_round(
    scores: dict[int, list[float | None]], motion: Any = 5.0, blank: float = 0.0
) -> Round:
    """Candidates and verdicts: prompt index -> scores of its candidates."""
    candidates, verdicts = [], []
    for prompt, row in scores.items():
        for k, score in enumerate(row):
            moved = motion[prompt][k] if isinstance(motion, dict) else motion
            gauges = {"motion": moved, "blank": blank}
            name = f"{prompt}-{k}"
            candidates.append(
                Candidate(prompt, f"prompt {prompt}", k, 7, f"l{name}", f"v{name}", gauges)
            )
            verdicts.append(Verdict(prompt, k, f"v{name}", "critic", score))
    return candidates, verdicts


def labelling(margin: float = 0.0, depth: int = 1, **settings: Any) -> Labelling:
    filters = settings.pop("filters", Filters())
    return Labelling(partial(best_versus_worst, margin=margin, depth=depth), filters, **settings)


def couples(labels: Labels) -> list[tuple[int, int, int]]:
    return [(row.prompt_index, row.winner, row.loser) for row in labels.rows]


def verdicts_of(labels: Labels) -> dict[tuple[int, int], bool]:
    return {(row.prompt_index, row.candidate): row.desirable for row in labels.rows}


# -------------------------------------------------------------------- pairs


def test_the_best_beats_the_worst() -> None:
    labels = labelling().pairs(*one_round({0: [0.2, 0.9, 0.5], 3: [0.7, 0.1]}))
    assert couples(labels) == [(0, 1, 0), (3, 0, 1)]
    assert labels.dropped == {}
    first = labels.rows[0]
    assert isinstance(first, Pair)
    assert (first.pair, first.prompt, first.weight) == (0, "prompt 0", 1.0)
    assert (first.winner_latents, first.loser_latents) == ("l0-1", "l0-0")
    assert (first.winner_video, first.loser_video) == ("v0-1", "v0-0")
    assert first.margin == pytest.approx(0.7)
    assert [row.pair for row in labels.rows] == [0, 1]


def test_depth_couples_inwards() -> None:
    scores = {0: [0.1, 0.2, 0.4, 0.7, 1.0]}
    assert couples(labelling(depth=2).pairs(*one_round(scores))) == [(0, 4, 0), (0, 3, 1)]
    assert len(labelling(depth=9).pairs(*one_round(scores)).rows) == 2  # the middle has no match


def test_no_candidate_is_used_twice() -> None:
    draw = random.Random(0)
    for count in range(2, 9):
        data = one_round({0: [draw.random() for _ in range(count)]})
        used = Counter(x for _, w, ll in couples(labelling(depth=5).pairs(*data)) for x in (w, ll))
        assert max(used.values()) == 1


def test_a_margin_must_be_exceeded() -> None:
    scores = {0: [0.0, 0.25], 1: [0.0, 0.5]}
    labels = labelling(margin=0.25).pairs(*one_round(scores))
    assert couples(labels) == [(1, 1, 0)]
    assert labels.dropped == {"score margin too small": 1}


@pytest.mark.parametrize("count", [2, 3, 6])
def test_ties_are_dropped_not_broken_by_order(count: int) -> None:
    labels = labelling(depth=3).pairs(*one_round({0: [0.5] * count}))
    assert labels.rows == []
    assert labels.dropped == {"score margin too small": 1}


def test_couples_further_inwards_end_at_the_first_tie() -> None:
    labels = labelling(depth=3).pairs(*one_round({0: [0.0, 0.5, 0.5, 0.5, 0.5, 1.0]}))
    assert couples(labels) == [(0, 5, 0)]
    assert labels.dropped == {"score margin too small": 1}


def test_swapping_the_scores_swaps_the_pair() -> None:
    there = labelling().pairs(*one_round({0: [0.2, 0.9]}))
    back = labelling().pairs(*one_round({0: [0.9, 0.2]}))
    assert couples(there) == [(0, 1, 0)]
    assert couples(back) == [(0, 0, 1)]


def test_certainty_becomes_the_weight_of_the_less_sure() -> None:
    candidates, _ = one_round({0: [0.0, 1.0]})
    verdicts = [
        Verdict(0, 0, "v0-0", "critic", 0.0, certainty=0.4),
        Verdict(0, 1, "v0-1", "critic", 1.0, certainty=0.9),
    ]
    assert labelling().pairs(candidates, verdicts).rows[0].weight == 0.4
    points = {p.candidate: p.weight for p in labelling().points(candidates, verdicts).rows}
    assert points == {0: 0.4, 1: 0.9}


# -------------------------------------------------------------------- weights of pairs


def couple(winner: float, loser: float, *certainty: float) -> Couple:
    """A pair of these scores."""
    one = Candidate(0, "a", 0, 7, "l", "v")
    sure = certainty or (1.0, 1.0)
    return Standing(one, winner, sure[0]), Standing(one, loser, sure[1])


def test_weights_by_hand() -> None:
    pairs = [couple(0.5, 0.4, 0.9, 0.8), couple(0.9, 0.6), couple(0.7, 0.5)]
    scores = [one.score for pair in pairs for one in pair]
    assert by_certainty(pairs, scores) == [0.8, 1.0, 1.0]
    assert uniform(pairs, scores) == [1.0, 1.0, 1.0]
    assert by_margin(pairs, scores) == pytest.approx([0.8 * 0.5, 1.5, 1.0])  # mean margin 0.2
    squared = by_margin(pairs, scores, power=2.0)  # 0.01, 0.09, 0.04: mean 0.14 / 3
    assert squared == pytest.approx([0.8 * 0.03 / 0.14, 0.27 / 0.14, 0.12 / 0.14])
    assert by_margin(pairs, scores, power=0.0) == by_certainty(pairs, scores)


def test_margins_keep_the_weight_of_a_round() -> None:
    draw = random.Random(2)
    pairs = [couple(draw.uniform(1, 2), draw.random()) for _ in range(9)]
    for power in (0.0, 0.5, 1.0, 3.0):
        assert sum(by_margin(pairs, [], power=power)) == pytest.approx(9)
    assert by_margin([couple(0.5, 0.5)], []) == [0.0]  # a rule of one's own may couple ties


def test_rarity_by_hand() -> None:
    # 8 scores: four at 0.5, two at 0.4, one at 0.9 and one at 0.1; p_max = 4 / 8.
    scores = [0.5] * 4 + [0.4] * 2 + [0.9, 0.1]
    pairs = [couple(0.5, 0.4), couple(0.9, 0.1, 0.5, 1.0), couple(0.504, 0.496)]
    # The root of 1 times 2, of 4 times 4, and of 1 times 1.
    assert by_rarity(pairs, [*scores], alpha=1.0) == pytest.approx([2**0.5, 4 * 0.5, 1.0])
    half = by_rarity(pairs, [*scores], alpha=0.5)
    assert half == pytest.approx([2**0.25, 2 * 0.5, 1.0])
    default = by_rarity(pairs, scores)
    assert default == pytest.approx([2**0.36, 4**0.72 * 0.5, 1.0])
    assert by_rarity(pairs, scores, alpha=0.0) == by_certainty(pairs, scores)
    assert by_rarity(pairs, scores, bin=10.0) == by_certainty(pairs, scores)  # one bin for all


def test_rarity_is_symmetric_and_without_ties_says_nothing() -> None:
    draw = random.Random(3)
    scores = [round(draw.random(), 1) for _ in range(30)]
    there = [couple(a, b) for a, b in zip(scores[::2], scores[1::2], strict=True)]
    back = [(loser, winner) for winner, loser in there]
    assert by_rarity(there, scores) == pytest.approx(by_rarity(back, scores))
    assert min(by_rarity(there, scores)) >= 1
    apart = [k / 10 for k in range(30)]
    pairs = [couple(a, b) for a, b in zip(apart[::2], apart[1::2], strict=True)]
    assert by_rarity(pairs, apart) == [1.0] * 15


def test_scores_of_few_decimals_do_not_lie_on_an_edge() -> None:
    for k in range(100):
        near = [k / 100, sum([0.01] * k), 1 - (100 - k) / 100]
        assert by_rarity([couple(*near[:2])], near) == [1.0], k


def test_a_rounds_pairs_get_their_weights() -> None:
    data = one_round({0: [0.0, 0.2], 1: [0.4, 1.0], 2: [0.3, 0.3]})
    rows = labelling(weight=by_margin).pairs(*data).rows
    assert [row.weight for row in rows] == pytest.approx([0.5, 1.5])
    seen: list[tuple[int, list[float]]] = []

    def mine(pairs: Any, scores: Any) -> list[float]:
        seen.append((len(pairs), list(scores)))
        return [0.25] * len(pairs)

    rows = labelling(weight=mine).pairs(*data).rows
    assert [row.weight for row in rows] == [0.25, 0.25]
    assert seen == [(0, []), (2, [0.0, 0.2, 0.4, 1.0, 0.3, 0.3])]  # first a trial on nothing


@pytest.mark.parametrize("rule", [by_certainty, by_margin, by_rarity, uniform])
def test_no_pairs_have_no_weights(rule: Any) -> None:
    assert rule([], []) == []


# -------------------------------------------------------------------- guards, missing verdicts


def test_guards_leave_candidates_out_before_ranking() -> None:
    motion = {0: [0.1, 3.0, 4.0, 99.0]}
    filters = Filters(min_motion=1.0, max_motion=50.0)
    data = one_round({0: [1.0, 0.6, 0.3, 0.0]}, motion)
    labels = labelling(filters=filters).pairs(*data)
    assert couples(labels) == [(0, 1, 2)]
    assert labels.dropped == {"motion above max_motion": 1, "motion below min_motion": 1}


def test_blank_videos_label_nothing() -> None:
    labels = labelling().pairs(*one_round({0: [1.0, 0.0]}, blank=1.0))
    assert labels.rows == []
    assert labels.dropped == {"blank": 2, "fewer than two candidates left": 1}


def test_a_winner_must_move_beside_its_loser() -> None:
    filters = Filters(motion_ratio=0.5)
    data = one_round({0: [1.0, 0.0], 1: [1.0, 0.0]}, {0: [1.9, 4.0], 1: [2.0, 4.0]})
    labels = labelling(filters=filters).pairs(*data)
    assert couples(labels) == [(1, 0, 1)]
    assert labels.dropped == {"winner moves too little": 1}


def test_a_couple_refused_for_stillness_gives_way_to_the_next() -> None:
    filters = Filters(motion_ratio=0.5)
    data = one_round({0: [1.0, 0.8, 0.3, 0.0]}, {0: [0.1, 4.0, 4.0, 4.0]})
    labels = labelling(filters=filters).pairs(*data)
    assert couples(labels) == [(0, 1, 2)]
    assert labels.dropped == {"winner moves too little": 1}


@pytest.mark.parametrize("label_kind", ["pairs", "points"])
def test_missing_verdicts_are_counted_and_never_replaced(label_kind: str) -> None:
    candidates, verdicts = one_round({0: [0.9, None, 0.1, 0.4], 1: [None, 0.3]})
    verdicts = [v for v in verdicts if (v.prompt_index, v.candidate) != (0, 3)]
    labels = getattr(labelling(), label_kind)(candidates, verdicts)
    assert labels.dropped["no verdict"] == 3
    seen = {row.prompt_index for row in labels.rows}
    assert seen == {0}
    if label_kind == "pairs":
        assert couples(labels) == [(0, 0, 2)]
        assert labels.dropped["fewer than two candidates left"] == 1


# -------------------------------------------------------------------- points


def test_points_within_a_prompt() -> None:
    scores = {0: [0.1, 0.2, 0.3, 0.4], 1: [0.6, 0.7, 0.8, 0.9]}
    labels = labelling().points(*one_round(scores))
    wanted = {(p, k): k >= 2 for p in (0, 1) for k in range(4)}
    assert verdicts_of(labels) == wanted
    first = labels.rows[0]
    assert isinstance(first, Point)
    assert (first.point, first.latents, first.video, first.score) == (0, "l0-0", "v0-0", 0.1)


def test_points_within_the_round() -> None:
    scores = {0: [0.1, 0.2, 0.3, 0.4], 1: [0.6, 0.7, 0.8, 0.9]}
    labels = labelling(within="round").points(*one_round(scores))
    assert verdicts_of(labels) == {(p, k): p == 1 for p in (0, 1) for k in range(4)}


def test_the_band_between_the_quantiles_is_dropped() -> None:
    labels = labelling(lower=0.25, upper=0.75).points(*one_round({0: [0.0, 1.0, 2.0, 3.0, 4.0]}))
    assert verdicts_of(labels) == {(0, 0): False, (0, 4): True}  # quantiles 1 and 3 themselves stay
    assert labels.dropped == {"between lower and upper": 3}


@pytest.mark.parametrize("within", ["prompt", "round"])
def test_equal_scores_label_nothing(within: Any) -> None:
    labels = labelling(within=within).points(*one_round({0: [0.5] * 4, 1: [0.5] * 3}))
    assert labels.rows == []
    assert labels.dropped == {"between lower and upper": 7}


def test_the_middle_may_be_kept() -> None:
    data = one_round({0: [0.0, 1.0, 2.0, 3.0, 4.0]})
    labels = labelling(lower=0.25, upper=0.75, middle="keep").points(*data)
    assert verdicts_of(labels) == {(0, k): k >= 2 for k in range(5)}  # the middle is 2
    assert labels.dropped == {}
    even = labelling(middle="keep").points(*one_round({0: [0.0, 1.0, 1.0, 3.0]}))
    assert verdicts_of(even) == {(0, 0): False, (0, 1): True, (0, 2): True, (0, 3): True}


def test_keeping_the_middle_changes_no_other_label() -> None:
    for seed in range(20):
        data = random_round(seed)
        for settings in SETTINGS:
            dropped = verdicts_of(labelling(**settings).points(*data))
            kept = verdicts_of(labelling(**settings, middle="keep").points(*data))
            assert dropped.items() <= kept.items()


# -------------------------------------------------------------------- graded rewards


def rewards_of(labels: Labels) -> dict[tuple[int, int], float]:
    return {(row.prompt_index, row.candidate): row.reward for row in labels.rows}


def test_rewards_by_hand() -> None:
    # About their means 0.5 and 10: -0.3, 0.1, 0.2 and -0.1, 0.1. Squares 0.14 + 0.02 over 5.
    scores = {0: [0.2, 0.6, 0.7], 1: [9.9, 10.1]}
    scale = (0.16 / 5) ** 0.5
    got = rewards_of(labelling(middle="keep").points(*one_round(scores)))
    assert got == pytest.approx(
        {
            (0, 0): 0.0,  # 0.3 is more than the scale of 0.179
            (0, 1): 0.5 + 0.05 / scale,
            (0, 2): 1.0,
            (1, 0): 0.5 - 0.05 / scale,
            (1, 1): 0.5 + 0.05 / scale,
        }
    )


def test_rewards_are_those_of_numpy() -> None:
    draw = np.random.default_rng(0)
    scores = draw.random((5, 4))
    ahead = scores - scores.mean(1, keepdims=True)
    wanted = 0.5 + 0.5 * np.clip(ahead / ahead.std(), -1, 1)
    data = one_round({k: list(row) for k, row in enumerate(scores)})
    for within in ("prompt", "round"):
        got = rewards_of(labelling(middle="keep", within=within).points(*data))
        assert got == pytest.approx(
            {(p, k): wanted[p, k] for p in range(5) for k in range(4)}, rel=1e-9
        )


def test_rewards_mirror_the_scores() -> None:
    scores = {0: [0.1, 0.4, 0.7, 0.9], 1: [0.2, 0.3]}
    keep = labelling(middle="keep")
    there = rewards_of(keep.points(*one_round(scores)))
    turned = {p: [-3 * s + p for s in row] for p, row in scores.items()}
    back = rewards_of(keep.points(*one_round(turned)))
    assert there == pytest.approx({key: 1 - value for key, value in back.items()})


@pytest.mark.parametrize(
    "scores", [{0: [0.1] * 3, 1: [0.7] * 7}, {0: [0.3], 1: [0.9]}], ids=["no spread", "single"]
)
def test_without_siblings_that_differ_a_reward_is_a_half(scores: dict[int, list[Any]]) -> None:
    labels = labelling(middle="keep").points(*one_round(scores))
    assert set(rewards_of(labels).values()) == {0.5}
    assert len(labels.rows) == sum(map(len, scores.values()))


def test_a_point_written_before_there_were_rewards_can_be_read() -> None:
    old = {"point": 0, "prompt_index": 0, "prompt": "a", "candidate": 0, "latents": "l",
           "video": "v", "desirable": True, "score": 0.3}  # fmt: skip
    assert Point(**old).reward == 0.5  # type: ignore[arg-type]


def test_quantiles_are_those_of_numpy() -> None:
    draw = random.Random(1)
    for count in (1, 2, 5, 8):
        scores = [draw.random() for _ in range(count)]
        low, high = np.quantile(scores, 0.3), np.quantile(scores, 0.8)
        wanted = {(0, k): s > high for k, s in enumerate(scores) if s > high or s < low}
        labels = labelling(lower=0.3, upper=0.8).points(*one_round({0: list(scores)}))
        assert verdicts_of(labels) == wanted


# -------------------------------------------------------------------- invariants


def random_round(seed: int) -> Round:
    """Ties, gaps, stillness and missing verdicts, as they fall."""
    draw = random.Random(seed)
    scores: dict[int, list[float | None]] = {}
    motion: dict[int, list[float]] = {}
    for prompt in draw.sample(range(20), 6):
        count = draw.randint(1, 6)
        scores[prompt] = [draw.choice([None, 0.0, 0.25, 0.5, 1.0]) for _ in range(count)]
        motion[prompt] = [draw.choice([0.0, 1.0, 2.0, 9.0]) for _ in range(count)]
    return one_round(scores, motion)


SETTINGS: list[dict[str, Any]] = [
    {"margin": 0.25, "depth": 2, "within": "prompt"},
    {"depth": 3, "filters": Filters(min_motion=1.0, motion_ratio=0.6), "within": "round"},
    {"lower": 0.2, "upper": 0.7, "filters": Filters(max_motion=5.0)},
    {"lower": 0.2, "upper": 0.7, "weight": partial(by_rarity, bin=0.3)},
    {"depth": 2, "weight": by_margin},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("label_kind", ["pairs", "points"])
def test_the_order_of_the_input_changes_nothing(settings: dict[str, Any], label_kind: str) -> None:
    for seed in range(20):
        candidates, verdicts = random_round(seed)
        wanted = getattr(labelling(**settings), label_kind)(candidates, verdicts)
        draw = random.Random(seed)
        draw.shuffle(candidates)
        draw.shuffle(verdicts)
        assert getattr(labelling(**settings), label_kind)(candidates, verdicts) == wanted


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_candidate_is_a_point_or_counted(settings: dict[str, Any]) -> None:
    for seed in range(20):
        candidates, verdicts = random_round(seed)
        labels = labelling(**settings).points(candidates, verdicts)
        assert len(labels.rows) + sum(labels.dropped.values()) == len(candidates)


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_prompt_gives_a_pair_or_a_reason(settings: dict[str, Any]) -> None:
    of_prompts = {"score margin too small", "winner moves too little"}
    too_few = "fewer than two candidates left"
    for seed in range(20):
        candidates, verdicts = random_round(seed)
        for prompt in {c.prompt_index for c in candidates}:
            own = [c for c in candidates if c.prompt_index == prompt]
            labels = labelling(**settings).pairs(own, verdicts)
            assert (
                bool(labels.rows)
                or of_prompts & labels.dropped.keys()
                or (labels.dropped.get(too_few) == 1)
            )
            lost = sum(n for reason, n in labels.dropped.items() if reason not in of_prompts)
            left = len(own) - (lost - labels.dropped.get(too_few, 0))
            assert (left < 2) == (too_few in labels.dropped)


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_winner_always_has_the_higher_score(settings: dict[str, Any]) -> None:
    for seed in range(20):
        candidates, verdicts = random_round(seed)
        scores = {(v.prompt_index, v.candidate): v.score for v in verdicts}
        for row in labelling(**settings).pairs(candidates, verdicts).rows:
            gap = scores[row.prompt_index, row.winner] - scores[row.prompt_index, row.loser]
            assert gap == row.margin > settings.get("margin", 0.0)


def test_nothing_gives_nothing() -> None:
    assert labelling().pairs([], []) == Labels([], {}, {"prompts": 0, "prompts_labelled": 0})
    assert labelling().points([], []) == Labels([], {}, {"prompts": 0, "prompts_labelled": 0})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lower": 0.6, "upper": 0.5}, "lower=0.6"),
        ({"upper": 1.1}, "upper=1.1"),
        ({"lower": -0.1}, "lower=-0.1"),
        ({"within": "video"}, "within=video"),
        ({"middle": "half"}, "middle=half"),
        ({"weight": partial(by_margin, power=-1.0)}, "weight.power=-1.0"),
        ({"weight": partial(by_rarity, alpha=-0.1)}, "weight.alpha=-0.1"),
        ({"weight": partial(by_rarity, bin=0.0)}, "weight.bin=0.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        labelling(**settings)


def test_a_pair_rule_alone_does_not_know_the_order_either() -> None:
    """A rule may be called with a prompt's candidates in any order, equal scores among them."""
    candidates, _ = one_round({0: [0.0, 1.0, 1.0, 0.0, 0.5, 0.5]})
    scores = [0.0, 1.0, 1.0, 0.0, 0.5, 0.5]
    group = [Standing(c, s, 1.0) for c, s in zip(candidates, scores, strict=True)]
    accept = Acceptance(Filters(), Counter())
    wanted = best_versus_worst(group, accept, depth=2)
    assert len(wanted) == 2
    for seed in range(10):
        random.Random(seed).shuffle(group)
        assert best_versus_worst(group, accept, depth=2) == wanted
