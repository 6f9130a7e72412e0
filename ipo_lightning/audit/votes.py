"""People's votes on pairs of videos, one entry a pair, whatever the sides in the rows."""

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ipo_lightning.critics.people.annotations import OVERALL, Annotation
from ipo_lightning.critics.people.answers import latest
from ipo_lightning.errors import InputError
from ipo_lightning.seeds import derive_seed

SIDES = {"A": 1.0, "same": 0.0, "B": -1.0}
NAMED = 3
"""How many missing files a message names."""


class Vote(NamedTuple):
    """One person's verdict on one pair."""

    annotator: str
    value: float
    """1 for the first video, 0 for a tie, -1 for the second."""
    left: float = math.nan
    """The same for the video that was shown on the left; NaN where that is unknown."""


@dataclass(frozen=True)
class Compared:
    """Two videos of a prompt that people compared."""

    prompt: str
    first: Path
    second: Path
    votes: dict[str, list[Vote]] = field(default_factory=dict)
    """By dimension, in the order of the file."""
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By dimension, the scores of the two videos, where people rated single videos."""


class Gathered(NamedTuple):
    """The pairs of a file."""

    pairs: list[Compared]
    left_out: dict[str, int]
    """Reason -> how many rows or pairs were left out."""


Find = Callable[[Annotation], tuple[Path, Path]]


def gather(rows: Sequence[Annotation], find: Find, *, skip_missing: bool = False) -> Gathered:
    """Rows of annotations as pairs: all rows on the same two videos are one pair.

    Of an answer that was changed in a later download of a page the later one counts
    (`ipo_lightning.critics.people.answers.latest`).

    Args:
        find: row -> the files of its two videos.
        skip_missing: leave out pairs with a missing video, and count them.

    Raises:
        InputError: a video is missing, or nothing is left.
    """
    counted = latest(rows)
    left_out: Counter[str] = Counter({"answered anew later": len(rows) - len(counted)})
    places: dict[Path, str] = {}
    pairs = _pairs(counted, find, places, left_out)
    voted = [pair for pair in pairs if pair.votes.get(OVERALL)]
    left_out["without a verdict"] += len(pairs) - len(voted)
    missing = {p for pair in voted for p in (pair.first, pair.second) if not os.path.isfile(p)}
    if missing and not skip_missing:
        raise InputError(_not_there({path: places[path] for path in sorted(missing)}))
    kept = [pair for pair in voted if not {pair.first, pair.second} & missing]
    left_out["a video is missing"] += len(voted) - len(kept)
    if not kept:
        raise InputError("pairs: no pair has a verdict by a person and both videos")
    return Gathered(kept, {reason: count for reason, count in left_out.items() if count})


def _pairs(
    rows: Sequence[Annotation], find: Find, places: dict[Path, str], left_out: "Counter[str]"
) -> list[Compared]:
    """One entry for all rows on the same two videos.

    Args:
        places: video -> the row that names it first, which is added to.
        left_out: reasons, which are counted.
    """
    pairs: dict[tuple[str, frozenset[Path]], Compared] = {}
    for row in rows:
        first, second = find(row)
        if first == second:
            left_out["a video against itself"] += 1
            continue
        for video in (first, second):
            places.setdefault(video, row.place)
        key = row.prompt, frozenset((first, second))
        pair = pairs.setdefault(key, Compared(row.prompt, first, second))
        swapped = pair.first != first
        _add(row, pair, -1.0 if swapped else 1.0, left_out)
        _add_scores(row, pair, swapped)
    return list(pairs.values())


def _not_there(missing: Mapping[Path, str]) -> str:
    """The message about missing videos, each with the row that names it."""
    names = ", ".join(f"{path} (of {row})" for path, row in list(missing.items())[:NAMED])
    return (
        f"pairs: {len(missing)} videos are missing: {names}{', ...' * (len(missing) > NAMED)}"
        "\ngive videos=DIR, their folder, or paths.store=DIR, the store of videos that rows name "
        "by their sha256; skip_missing=true leaves out their pairs"
    )


def _add(row: Annotation, pair: Compared, side: float, left_out: Counter[str]) -> None:
    """Add a row's labels to the pair's votes; ``side`` is -1 where the row has them swapped."""
    shown = {"A": 1.0, "B": -1.0}.get(row.shown_left, math.nan)
    for dim, label in row.labels.items():
        if label in SIDES:
            vote = Vote(row.annotator, side * SIDES[label], shown * SIDES[label])
            pair.votes.setdefault(dim, []).append(vote)
        elif dim == OVERALL:
            left_out["called invalid"] += 1


def _add_scores(row: Annotation, pair: Compared, swapped: bool) -> None:
    """Keep the scores of two rated videos, which `ipo_lightning.exchange` puts into a row."""
    of_a, of_b = (_scores(row, f"scores_{side}") for side in "AB")
    for dim in of_a.keys() & of_b.keys():
        pair.scores[dim] = (of_b[dim], of_a[dim]) if swapped else (of_a[dim], of_b[dim])


def _scores(row: Annotation, name: str) -> Mapping[str, float]:
    given = row.extra.get(name) or {}
    sound = isinstance(given, Mapping) and all(
        isinstance(value, int | float) for value in given.values()
    )
    if not sound:
        raise InputError(
            f"pairs: {name}={given!r}: give an object with a number for each dimension"
        )
    return given


def drawn(pairs: Sequence[Compared], n: int | None, seed: int) -> list[Compared]:
    """``n`` random pairs, whole prompts except the last; None: all pairs."""
    if n is None or n >= len(pairs):
        return list(pairs)
    order = shuffled(pairs, seed, "drawn")
    chosen = sorted(range(len(pairs)), key=lambda i: (order[pairs[i].prompt], i))[:n]
    return [pairs[i] for i in sorted(chosen)]


def calibration(pairs: Sequence[Compared], share: float, seed: int) -> Tensor:
    """(N,) bool: whether a pair is in the calibration split, a share of the prompts."""
    order = shuffled(pairs, seed, "calibration")
    count = min(max(round(share * len(order)), 1), len(order) - 1)
    return torch.tensor([order[pair.prompt] < count for pair in pairs])


def shuffled(pairs: Sequence[Compared], seed: int, purpose: str) -> dict[str, int]:
    """Prompt -> its place in a random order, a function of the prompts and the seed."""
    prompts = {pair.prompt for pair in pairs}
    order = sorted(prompts, key=lambda prompt: derive_seed(seed, "audit", purpose, prompt))
    return {prompt: place for place, prompt in enumerate(order)}


def prompt_index(pairs: Sequence[Compared]) -> Tensor:
    """(N,) integers, equal for pairs of one prompt."""
    places: dict[str, int] = {}
    return torch.tensor([places.setdefault(pair.prompt, len(places)) for pair in pairs])


def dimensions(pairs: Sequence[Compared]) -> list[str]:
    """The dimensions that people were asked about, the overall verdict first."""
    found = dict.fromkeys(dim for pair in pairs for dim in pair.votes)
    return [OVERALL, *(dim for dim in found if dim != OVERALL)]


def ratings(pairs: Sequence[Compared], dim: str) -> Tensor:
    """(people, N) verdicts, NaN for none: the first of each person on each pair.

    Rows without a name are of different people.
    """
    columns = [[vote.value for vote in _firsts(pair.votes.get(dim, ()))] for pair in pairs]
    height = max(1, *(len(column) for column in columns))
    padded = [column + [math.nan] * (height - len(column)) for column in columns]
    return torch.tensor(padded, dtype=torch.float64).T


def repeats(pairs: Sequence[Compared], dim: str) -> tuple[Tensor, Tensor]:
    """Repeated verdicts of a person on a pair.

    Returns:
        (times, M) verdicts, NaN for none, and (M,) the pairs' indices.
    """
    columns, places = [], []
    for place, pair in enumerate(pairs):
        by_name: dict[str, list[float]] = {}
        for vote in pair.votes.get(dim, ()):
            if vote.annotator:
                by_name.setdefault(vote.annotator, []).append(vote.value)
        again = [values for values in by_name.values() if len(values) > 1]
        columns += again
        places += [place] * len(again)
    height = max((len(column) for column in columns), default=0)
    padded = [column + [math.nan] * (height - len(column)) for column in columns]
    shape = torch.tensor(padded, dtype=torch.float64).reshape(len(columns), height)
    return shape.T, torch.tensor(places, dtype=torch.long)


def left_choices(pairs: Sequence[Compared]) -> tuple[Tensor, Tensor]:
    """(M,) verdicts about the video on the left, where it is known, and (M,) the pairs' indices."""
    found = [
        (vote.left, place)
        for place, pair in enumerate(pairs)
        for vote in pair.votes.get(OVERALL, ())
        if not math.isnan(vote.left)
    ]
    values, places = zip(*found, strict=True) if found else ((), ())
    return torch.tensor(values, dtype=torch.float64), torch.tensor(places, dtype=torch.long)


def _firsts(votes: Sequence[Vote]) -> list[Vote]:
    seen: set[str] = set()
    kept = []
    for vote in votes:
        if not vote.annotator or vote.annotator not in seen:
            kept.append(vote)
        seen.add(vote.annotator)
    return kept
