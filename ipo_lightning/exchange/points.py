"""Videos that were rated one at a time, and the pairs that follow from them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from ipo_lightning.critics.people.annotations import OVERALL, Annotation, Choice
from ipo_lightning.errors import InputError

MOST_PAIRS = 2**20
"""Pairs that are made of rated videos: a thousand videos of one prompt are half as many."""


@dataclass(frozen=True)
class VideoPoint:
    """One video with people's ratings."""

    prompt: str
    path: str
    """The video's file, relative to the file of ratings; empty where only its hash is known."""
    scores: Mapping[str, float]
    """By dimension, higher is better; `OVERALL` is among them."""
    desirable: bool | None = None
    """The file's own label; None: it has only scores."""
    sha256: str = ""
    """Of the file; "" where it is unknown."""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: str = field(default="", compare=False)
    """File and line of the row, for messages."""


def pairs_of(points: Iterable[VideoPoint]) -> list[Annotation]:
    """A pair of every two videos of a prompt, in order; equal scores are ``same``.

    Raises:
        InputError: there are too many of them.
    """
    by_prompt: dict[str, list[VideoPoint]] = {}
    for point in points:
        by_prompt.setdefault(point.prompt, []).append(point)
    count = sum(math.comb(len(group), 2) for group in by_prompt.values())
    if count > MOST_PAIRS:
        largest = max(by_prompt.values(), key=len)
        raise InputError(
            f"{largest[0].place}: {len(largest):,} videos of one prompt, {count:,} pairs in all, "
            f"of which {MOST_PAIRS:,} are made; rate fewer videos of a prompt, or give pairs"
        )
    couples = [pair for group in by_prompt.values() for pair in combinations(group, 2)]
    return [_pair(number, first, second) for number, (first, second) in enumerate(couples, 1)]


def _pair(number: int, first: VideoPoint, second: VideoPoint) -> Annotation:
    shared = [name for name in first.scores if name in second.scores]
    return Annotation(
        pair_id=f"{first.source}-{number}",
        prompt=first.prompt,
        path_A=first.path,
        path_B=second.path,
        video_A=first.sha256,
        video_B=second.sha256,
        labels={name: _better(first.scores[name], second.scores[name]) for name in shared},
        source=first.source,
        extra={"scores_A": dict(first.scores), "scores_B": dict(second.scores)},
        place=first.place,
    )


def _better(first: float, second: float) -> Choice:
    if first == second:
        return "same"
    return "A" if first > second else "B"


def mean_score(scores: Sequence[float]) -> float:
    """The overall score of scores by dimension: their mean, exact for whole numbers."""
    return round(sum(scores) / len(scores), 9)


def with_mean(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores by dimension, and `OVERALL`."""
    return {**scores, OVERALL: mean_score(list(scores.values()))}
