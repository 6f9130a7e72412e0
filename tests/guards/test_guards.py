"""Guards by hand: each raises its alarm on the fault it is for, and none on rounds that improve."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from ipo_lightning.errors import InputError
from ipo_lightning.evaluation import EvaluatedVideo, agreement, chosen, summary
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
    best_of,
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
    line = {**bad.line, **guards.told(guards.look([*good[:2], bad]))}
    assert {one["action"] for one in line["guards"]} == {"watch"}
    assert {*line["checks"]} == {*guards.checks} - {"winners"}
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


def gained(number: int, low: float, mean: float, **more: Any) -> dict[str, Any]:
    """A round's line with a gain over the base."""
    return {"round": number, "gain": {"low": low, "mean": mean, "high": 2 * mean - low}, **more}


def test_the_best_round_is_the_one_whose_gain_is_surest() -> None:
    lines = [gained(0, 0, 0), gained(1, 0.05, 0.07), gained(2, 0.04, 0.12)]
    assert best_of(lines) == {"round": 1, "by": "the judge's gain, evaluated split", "low": 0.05}
    assert best_of([*lines, gained(3, 0.05, 0.2)])["round"] == 3, "the later of equals"
    worse = [gained(0, 0, 0), gained(1, -0.02, -0.01), gained(2, -0.5, -0.01)]
    assert best_of(worse) == {"round": 0, "by": "the judge's gain, evaluated split", "low": 0}
    assert best_of([*worse, gained(3, -0.9, 0.01)])["round"] == 1, "none is worse for sure"
    assert best_of(lines[:1])["round"] == 0
    older = [{"round": 0}, {"round": 1, "eval_score": 0.8}, {"round": 2, "eval_score": 0.7}]
    assert best_of(older) == {"round": 1, "by": "the judge's score, evaluated split", "low": None}
    assert (
        best_of([{"round": 1, "eval_score": None}, {"round": 2, "eval_score": None}])["round"] == 2
    )


def test_rounds_are_chosen_by_other_prompts_than_they_are_reported_by() -> None:
    lines = [
        gained(0, 0, 0, choice=gained(0, 0, 0)),
        gained(1, 0.05, 0.07, choice=gained(0, 0.01, 0.03)),
        gained(2, 0.01, 0.03, choice=gained(0, 0.02, 0.03)),
    ]
    assert best_of(lines) == {"round": 2, "by": "the judge's gain, select split", "low": 0.02}
    told = chosen(facts(1, 0.7).rows, BASE.rows)
    assert (told["prompts"], told["videos"]) == (12, 24)
    assert told["gain"]["mean"] == pytest.approx(0.1, abs=0.02)


def test_a_rollback_starts_from_the_best_round_with_a_smaller_learning_rate() -> None:
    guards = Guards({}, action="rollback", lr_scale=0.5)
    alarm = [{"guard": "judge", "action": "rollback", "reason": "fell"}]
    lines = [gained(0, 0, 0), gained(1, 0.05, 0.07), gained(2, -0.1, 0.02, guards=alarm)]
    assert guards.start_after(lines[:2]) is None
    first = guards.start_after(lines)
    assert first == {"round": 1, "lr_scale": 0.5}
    lines.append(gained(3, 0.06, 0.08, start=first))
    assert guards.start_after(lines) == {"round": 3, "lr_scale": 0.5}, "the rate stays small"
    lines.append(gained(4, 0.0, 0.02, start=first, guards=alarm))
    assert guards.start_after(lines) == {"round": 3, "lr_scale": 0.25}
    assert (
        "alarms in round 4" in str(guards.distrusts(lines[-1])) and guards.stops(lines[-1]) is None
    )
    assert guards.distrusts(lines[3]) is None
    assert Guards({}, action="watch").start_after(lines) is None


def test_agreement_counts_orders_within_a_prompt() -> None:
    """Prompt 0: alike; prompt 1: the judge turns it round; prompt 2: a tie of the judge."""
    scores = [(0.1, 0.2), (0.3, 0.4), (0.1, 0.4), (0.3, 0.2), (0.1, 0.5), (0.3, 0.5), (0.9, None)]
    rows = [
        dataclasses.replace(BASE.rows[0], prompt_index=i // 2, score=critic, eval_score=judge)
        for i, (critic, judge) in enumerate(scores)
    ]
    found = agreement(rows)
    assert (found["pairs"], found["share"]) == (3, 0.5)
    assert found["ci"][0] < 0.5 < found["ci"][1]
    assert agreement(rows[-1:]) == {"pairs": 0, "share": None, "ci": [None, None]}


def test_a_rounds_line_says_the_gain_over_the_base() -> None:
    line = summary(facts(1, 0.7).rows, BASE.rows)
    gain = line["gain"]
    assert gain["mean"] == pytest.approx(0.1, abs=0.02)
    assert gain["low"] < gain["mean"] < gain["high"] and line["ties"] == 0
    itself = summary(BASE.rows, BASE.rows)
    assert (itself["gain"], itself["ties"]) == ({"mean": 0, "low": 0, "high": 0}, 1)


def test_diversity_is_the_deviation_over_videos() -> None:
    """Two videos that are 51 of 255 apart deviate by 51 / sqrt 2 from their mean."""
    video = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    assert diversity([video, video + 51]) == pytest.approx(0.2 / 2**0.5)
    assert diversity([video, video, video]) == 0
    latents = torch.zeros(3, 2, 4, 4)
    assert diversity([latents, latents + 3.0]) == pytest.approx(3 / 2**0.5), "in their own units"
