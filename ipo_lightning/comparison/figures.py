"""The figures of a comparison: who wins, by how much, at what, and what it could have shown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import torch

from ipo_lightning.critics.people.annotations import OVERALL
from ipo_lightning.critics.people.answers import Answers, key_of
from ipo_lightning.evaluation import EvaluatedVideo, compared, paired, plain
from ipo_lightning.metrics.intervals import Interval, detectable, prompts_to_show, share_interval

LEVEL = 0.95
POWER = 0.8
Plain = dict[str, Any]


class Sides(NamedTuple):
    """The videos of two policies, of the same prompts and seeds, with the judge's scores."""

    a: Sequence[EvaluatedVideo]
    b: Sequence[EvaluatedVideo]


def level_of(looks: int) -> float:
    """The level of each of ``looks`` intervals that hold together at 95 % (Bonferroni)."""
    return 1 - (1 - LEVEL) / looks


def figures(
    sides: Sides,
    *,
    categories: Mapping[str, str] | None = None,
    looks: int = 1,
    difference: float | None = None,
) -> Plain:
    """What the comparison found of b against a, as plain JSON.

    Args:
        categories: prompt -> category. looks: how many comparisons are made in all.
        difference: of scores, for which the number of prompts is computed that would show it; None:
            the one that is found.

    Raises:
        InputError: the rows are of different prompts or seeds.
    """
    level, found = level_of(looks), block(sides, level_of(looks))
    return {
        "looks": looks,
        "level": level,
        "overall": found,
        "dims": {name: block(by_dim(sides, name), level) for name in dims_of(sides)},
        "categories": {
            name: block(some, level) for name, some in by_category(sides, categories or {}).items()
        },
        "power": power(found, level, difference),
        "verdict": verdict(found),
    }


def block(sides: Sides, level: float) -> Plain:
    """Win rate and gain of b against a, each with its interval over prompts."""
    found = compared(sides.b, sides.a, level)
    return {
        "win_rate": _interval(Interval(*found.win_rate)),
        "gain": _interval(found.gain),
        "ties": plain(found.ties),
        "pairs": found.pairs,
        "prompts": found.prompts,
        "missing": found.missing,
    }


def dims_of(sides: Sides) -> list[str]:
    """The judge's dimensions, those of a member of an ensemble among them."""
    return sorted({name for row in sides.b for name in row.eval_dims})


def by_dim(sides: Sides, name: str) -> Sides:
    """The same videos, scored by one dimension alone.

    A judge that compares says of b's videos how likely they beat a's; a's then have 1/2.
    """
    compares = not any(row.eval_dims for row in sides.a)

    def scored(row: EvaluatedVideo, unknown: float | None) -> EvaluatedVideo:
        return replace(row, eval_score=row.eval_dims.get(name, unknown))

    a = [scored(row, 0.5 if compares else None) for row in sides.a]
    return Sides(a, [scored(row, None) for row in sides.b])


def by_category(sides: Sides, categories: Mapping[str, str]) -> dict[str, Sides]:
    """The videos of each category's prompts, by its name."""
    names = sorted({categories[row.prompt] for row in sides.b if row.prompt in categories})
    return {
        name: Sides(
            *([row for row in rows if categories.get(row.prompt) == name] for rows in sides)
        )
        for name in names
    }


def power(found: Plain, level: float, difference: float | None) -> Plain:
    """What the comparison could have shown, and how many prompts would show a difference."""
    gain, prompts = found["gain"], found["prompts"]
    asked = gain["value"] if difference is None else difference
    if gain["low"] is None or asked is None:
        return {"power": POWER, "detectable": None, "difference": asked, "prompts_to_show": None}
    known = Interval(asked, gain["low"], gain["high"])
    return {
        "power": POWER,
        "detectable": plain(detectable(known, prompts, POWER, level)),
        "difference": asked,
        "prompts_to_show": prompts_to_show(known, prompts, POWER, level),
    }


def verdict(found: Plain) -> str:
    """The conclusion from the interval of the gain."""
    low, high = found["gain"]["low"], found["gain"]["high"]
    if low is None:
        return "unknown: one prompt, or none, tells nothing about others"
    if low > 0:
        return "b is better than a"
    return "b is worse than a" if high < 0 else "no clear difference between a and b"


def people(sides: Sides, answers: Answers) -> Plain:
    """How often two people gave the same answer about a pair of these videos."""
    alike, clusters = [], []
    for row, other in zip(sides.b, paired(sides.b, sides.a), strict=True):
        said = answers.by_question.get(key_of(row.prompt, row.video, other.video)[0], [])
        votes = {one.annotator: one.labels[OVERALL] for one in said}
        for first, second in combinations(sorted(votes), 2):
            alike.append(float(votes[first] == votes[second]))
            clusters.append(row.prompt_index)
    found = share_interval(torch.tensor(alike, dtype=torch.float64), torch.tensor(clusters))
    names = {one.annotator for one in answers.accounts()}
    return {
        "annotators": len(names),
        "couples": len(alike),
        "alike": _interval(found),
        "notes": [account.line() for account in answers.accounts()],
    }


def video_rows(sides: Sides, categories: Mapping[str, str] | None = None) -> list[Plain]:
    """One row a pair of videos, in the order of b's."""
    rows = []
    for b, a in zip(sides.b, paired(sides.b, sides.a), strict=True):
        known = a.eval_score is not None and b.eval_score is not None
        rows.append({
            "prompt": b.prompt, "prompt_index": b.prompt_index, "candidate": b.candidate,
            "seed": b.seed, "category": (categories or {}).get(b.prompt),
            "a_video": a.video, "b_video": b.video, "a_score": a.eval_score,
            "b_score": b.eval_score,
            "change": b.eval_score - a.eval_score if known else None,  # type: ignore[operator]
        })  # fmt: skip
    return rows


def _interval(found: Interval) -> Plain:
    return {"value": plain(found.value), "low": plain(found.low), "high": plain(found.high)}
