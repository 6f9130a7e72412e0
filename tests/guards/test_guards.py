"""Guards by hand: each raises its alarm on the fault it is for, and none on rounds that improve."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from ipo_lightning.errors import InputError
from ipo_lightning.evaluation import EvaluatedVideo, summary
from ipo_lightning.guards import (
    CriticAlone,
    Diversity,
    Drift,
    FewLabels,
    GaugeBand,
    Guards,
    JudgeFell,
    NotBetter,
    RoundFacts,
    WinnersError,
    alarms,
    best_round,
)
from ipo_lightning.metrics.diversity import diversity
from tests.conftest import composed

LEVEL = 0.95
GAUGES = {"motion": 4.0, "flow": 3.0, "exposure": 30.0, "flicker": 0.01, "real_error": 0.02,
          "diversity": 0.1}  # fmt: skip


def facts(
    number: int, judge: float, critic: float | None = None, noise: float = 0.02, **more: Any
) -> RoundFacts:
    """A round of 12 prompts x 2 videos whose scores lie around the given means."""
    generator = torch.Generator().manual_seed(100 + number)
    spread = (torch.randn(24, generator=generator) * noise).tolist()
    rows = [
        EvaluatedVideo(
            prompt_index=i // 2,
            prompt=f"prompt {i // 2}",
            candidate=i % 2,
            seed=i,
            video=f"{i}",
            score=None if critic is None else critic + one,
            dims={},
            eval_score=judge + one,
            eval_dims={},
            gauges={},
        )  # fmt: skip
        for i, one in enumerate(spread)
    ]
    line = {"round": number, "eval_score": judge, "n_pairs": 40, "gauges": {**GAUGES}, **more}
    return RoundFacts(number, line, rows)


def raised(guard: Any, *rounds: RoundFacts) -> bool:
    """Whether a guard raises an alarm."""
    found = guard.look(rounds, LEVEL)
    assert found is not None and found[1]
    return bool(found[0])


def with_gauges(number: int, **gauges: float) -> RoundFacts:
    return facts(number, 0.8, gauges={**GAUGES, **gauges})


BASE = facts(0, 0.6, critic=0.6)


@pytest.mark.parametrize(
    ("guard", "good", "bad"),
    [
        (JudgeFell(), facts(1, 0.7), facts(1, 0.5)),
        (NotBetter(), facts(1, 0.7), facts(1, 0.5)),
        (CriticAlone(), facts(1, 0.7, critic=0.8), facts(1, 0.59, critic=0.8)),
        (GaugeBand(["motion", "flow"]), with_gauges(1, flow=3.5), with_gauges(1, flow=3.7)),
        (GaugeBand(["motion", "flow"]), with_gauges(1, motion=3.3), with_gauges(1, motion=3.1)),
        (Drift(), with_gauges(1, real_error=0.0219), with_gauges(1, real_error=0.0221)),
        (Drift(), with_gauges(3, real_error=0.0259), with_gauges(3, real_error=0.0261)),
        (Diversity(), with_gauges(1, diversity=0.041), with_gauges(1, diversity=0.039)),
        (FewLabels(), facts(1, 0.7, n_pairs=8), facts(1, 0.7, n_pairs=7)),
        (WinnersError(), facts(1, 0.7, train={"error_win": 0.108, "error_win_change": 0.008}),
         facts(1, 0.7, train={"error_win": 0.112, "error_win_change": 0.012})),
    ],
)  # fmt: skip
def test_each_guard_finds_its_fault_and_no_other(
    guard: Any, good: RoundFacts, bad: RoundFacts
) -> None:
    assert not raised(guard, BASE, good)
    assert raised(guard, BASE, bad)


def test_a_fall_is_seen_against_the_round_before_and_the_best() -> None:
    """A policy that still beats the base may already go wrong; and it may do so slowly."""
    best, after = facts(1, 0.9), facts(2, 0.85)
    assert raised(JudgeFell(), BASE, best, after)
    assert not raised(NotBetter(), BASE, best, after)
    slowly = [facts(1, 0.9), *(facts(k, 0.9 - 0.009 * (k - 1)) for k in (2, 3, 4))]
    assert not raised(JudgeFell(), BASE, *slowly[:2])
    assert raised(JudgeFell(), BASE, *slowly)
    text = JudgeFell().look([BASE, *slowly], LEVEL)
    assert text is not None and "against round 1" in text[1]


def test_what_is_not_measured_raises_nothing() -> None:
    unknown = facts(1, 0.7, gauges={}, n_pairs=None)
    for guard in (Drift(), Diversity(), GaugeBand(["motion"]), CriticAlone(), WinnersError(),
                  FewLabels()):  # fmt: skip
        assert guard.look([facts(0, 0.6), unknown], LEVEL) is None
    assert GaugeBand(["flicker"]).look([BASE, with_gauges(1, flicker=9.0)], LEVEL) is None, (
        "the base's flicker is all but none"
    )


def test_the_chance_of_a_false_alarm_does_not_grow_with_the_rounds() -> None:
    """A level for each round: what they leave to chance sums to less than the run's 5 %."""
    levels: list[float] = []

    class Spy:
        def look(self, rounds: Sequence[RoundFacts], level: float) -> None:
            levels.append(level)

    guards = Guards({"spy": Spy(), "off": None})
    rounds = [BASE, *(facts(k, 0.7) for k in range(1, 9))]
    assert guards.look(rounds[:1]) == []
    for k in range(2, 10):
        assert guards.look(rounds[:k]) == []
    assert levels[0] == pytest.approx(0.975) and levels == sorted(levels)
    assert sum(1 - level for level in levels) < 0.05


def test_the_shipped_guards_are_quiet_where_nothing_is_wrong_and_tell_what_is() -> None:
    guards = instantiate(composed("train").guards)
    good = [facts(0, 0.6, 0.6), facts(1, 0.7, 0.7), facts(2, 0.72, 0.73)]
    found = guards.look(good)
    assert not any(one.alarm for one in found)
    assert {one.guard for one in found} == {*guards.checks} - {"winners"}, "it was not measured"
    bad = facts(2, 0.5, 0.8, n_pairs=3, gauges={**GAUGES, "exposure": 50.0, "real_error": 0.03})
    line = {**bad.line, "guards": [vars(one) for one in guards.look([*good[:2], bad])]}
    told = alarms(line)
    assert {one.partition(":")[0] for one in told} == {
        "judge", "win_rate", "critic", "gauges", "drift", "labels",
    }  # fmt: skip
    assert "gauges: against the base: exposure +67 %" in told
    assert guards.stops(line) is None
    stop = instantiate(composed("train", "guards=stop").guards)
    assert "after round 2: judge:" in str(stop.stops(line))
    assert stop.stops({"round": 2}) is None, "a run of before there were guards"
    assert instantiate(composed("train", "guards=off").guards).look([*good[:2], bad]) == []


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [(lambda: Guards({}, action="pray"), "action"), (lambda: Drift(0.0), "rise"),
     (lambda: GaugeBand(["flow"], below=1.5), "below"), (lambda: FewLabels(0), "least")],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: Callable[[], Any], setting: str) -> None:
    with pytest.raises(InputError, match=setting):
        wrong()


def test_the_best_round_is_the_one_whose_gain_is_surest() -> None:
    lines = [
        {"round": 0},
        {"round": 1, "gain_ci": [0.05, 0.09]},
        {"round": 2, "gain_ci": [0.04, 0.2]},
    ]
    assert best_round(lines) == 1
    assert best_round([*lines, {"round": 3, "gain_ci": [0.05, 0.3]}]) == 3, "the later of equals"
    assert best_round(lines[:1]) is None
    older = [{"round": 0}, {"round": 1, "eval_score": 0.8}, {"round": 2, "eval_score": 0.7}]
    assert best_round(older) == 1
    assert best_round([{"round": 1, "eval_score": None}, {"round": 2, "eval_score": None}]) == 2


def test_a_rounds_line_says_the_gain_over_the_base() -> None:
    line = summary(facts(1, 0.7).rows, BASE.rows)
    assert line["gain"] == pytest.approx(0.1, abs=0.02)
    assert line["gain_ci"][0] < line["gain"] < line["gain_ci"][1] and line["ties"] == 0
    itself = summary(BASE.rows, BASE.rows)
    assert (itself["gain"], itself["gain_ci"], itself["ties"]) == (0, [0, 0], 1)


def test_diversity_is_the_deviation_over_videos() -> None:
    """Two videos that are 51 of 255 apart deviate by 51 / sqrt 2 from their mean."""
    video = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    assert diversity([video, video + 51]) == pytest.approx(0.2 / 2**0.5)
    assert diversity([video, video, video]) == 0
