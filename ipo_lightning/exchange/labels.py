"""People's preferences as training labels: pairs and points of candidates.

Pure functions, for pairwise and pointwise losses. Ties are dropped, and all annotators' answers
about a pair are combined. The weight and the margin in a row, which a published round has, are used
if no other row is about the same pair.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median
from typing import NamedTuple

from ipo_lightning.critics.people.annotations import OVERALL, Annotation, given
from ipo_lightning.critics.people.answers import Answers
from ipo_lightning.critics.protocols import Comparison, Question
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.columns import number, shown
from ipo_lightning.exchange.points import VideoPoint, pairs_of
from ipo_lightning.exchange.videos import Named, video_of, videos_of
from ipo_lightning.metrics.preferences import Preference
from ipo_lightning.storage.records import Candidate, Pair, Point, Verdict

Videos = Mapping[tuple[str, Named], Candidate]
"""(prompt, video as a row names it) -> its candidate; without videos that cannot be used."""


class Labelled(NamedTuple):
    """Labels, and the scores of their videos."""

    rows: list[Pair] | list[Point]
    scores: dict[tuple[int, int], list[float]]
    """(prompt index, candidate) -> its chances of being better, or its ratings."""


def labels_for(
    label_kind: str,
    pairs: Sequence[Annotation],
    points: Sequence[VideoPoint],
    videos: Videos,
    dropped: "Counter[str]",
) -> Labelled:
    """Labels for a pairwise or pointwise loss, from pairs or points."""
    if label_kind == "pointwise" and points:
        return _points_of_points(points, videos, dropped)
    compared = list(_compared([*pairs, *pairs_of(points)], videos, dropped))
    return _pairs(compared, dropped) if label_kind == "pairwise" else _points(compared, dropped)


class Compared(NamedTuple):
    """Two candidates, and people's preference of (first, second)."""

    first: Candidate
    second: Candidate
    preference: Preference
    weight: float
    """The row's own, else the largest share of the annotators."""
    margin: float
    """The row's own, else the difference of the two chances."""


class Carried(NamedTuple):
    """The weight and the margin in a row; None: it has none."""

    weight: float | None = None
    margin: float | None = None


def carried(row: Annotation | VideoPoint) -> Carried:
    """The weight and the margin of a row, as `ipo_lightning.exchange.publishing` writes them.

    Raises:
        InputError: one is not a finite number of at least 0.
    """
    return Carried(*(_carried(row, name) for name in Carried._fields))


def _carried(row: Annotation | VideoPoint, name: str) -> float | None:
    if not given(row.extra.get(name)):
        return None
    value = number(row.extra, name, row.place)
    if value < 0:
        raise InputError(f"{row.place}: {name!r} must be 0 or more, got {shown(value)}")
    return value


def _compared(
    pairs: Sequence[Annotation], videos: Videos, dropped: "Counter[str]"
) -> Iterator[Compared]:
    """The pairs with two usable videos, all annotators' answers combined."""
    rows: list[Annotation] = []
    asked: dict[tuple[str, str], tuple[Candidate, Candidate]] = {}
    for one in pairs:
        first, second = (videos.get((one.prompt, video)) for video in videos_of(one))
        if first is None or second is None:
            dropped["pair without one of its videos"] += 1
        elif first == second:
            dropped["pair of one video"] += 1
        else:
            named = {"video_A": _name(first), "video_B": _name(second)}
            rows.append(replace(one, **named))  # type: ignore[arg-type]
            if (named["video_B"], named["video_A"]) not in asked:
                asked[named["video_A"], named["video_B"]] = first, second
    answers = Answers(rows)
    about: dict[frozenset[str], list[Annotation]] = {}
    for row in answers.rows:
        about.setdefault(frozenset((row.video_A, row.video_B)), []).append(row)
    for (name, other), (first, second) in asked.items():
        said = answers.settle(Question(name, other, first.prompt)) or Comparison(None)
        if said.preference is None:
            dropped[f"no verdict: {said.fault}"] += 1
        else:
            own = about[frozenset((name, other))]
            weight, margin = carried(own[0]) if len(own) == 1 else Carried()
            yield Compared(
                first,
                second,
                said.preference,
                said.certainty if weight is None else weight,
                abs(2 * said.preference.expected - 1) if margin is None else margin,
            )


def _name(one: Candidate) -> str:
    """A name that no other candidate has, whatever its pixels."""
    return f"{one.prompt_index}/{one.candidate}"


def _pairs(compared: Iterable[Compared], dropped: "Counter[str]") -> Labelled:
    rows: list[Pair] = []
    for first, second, preference, weight, margin in compared:
        if preference.outcome == "tie":
            dropped["tie"] += 1
            continue
        winner, loser = (first, second) if preference.outcome == "first" else (second, first)
        rows.append(
            Pair(
                pair=len(rows), prompt_index=winner.prompt_index, prompt=winner.prompt,
                winner=winner.candidate, loser=loser.candidate,
                winner_latents=winner.latents, loser_latents=loser.latents,
                winner_video=winner.video, loser_video=loser.video,
                margin=margin, weight=weight,
            )
        )  # fmt: skip
    return Labelled(rows, _fared(compared))


def _fared(compared: Iterable[Compared]) -> dict[tuple[int, int], list[float]]:
    """(prompt index, candidate) -> its chance of being better in each comparison."""
    scores: dict[tuple[int, int], list[float]] = {}
    for first, second, preference, *_ in compared:
        chance = preference.expected
        scores.setdefault((first.prompt_index, first.candidate), []).append(chance)
        scores.setdefault((second.prompt_index, second.candidate), []).append(1 - chance)
    return scores


def _points(compared: Sequence[Compared], dropped: "Counter[str]") -> Labelled:
    """Points of compared videos: desirable where the mean chance of being better is above 1/2."""
    scores = _fared(compared)
    weights: dict[tuple[int, int], list[float]] = {}
    by_place: dict[tuple[int, int], Candidate] = {}
    for first, second, _, weight, _ in compared:
        for one in (first, second):
            by_place[one.prompt_index, one.candidate] = one
            weights.setdefault((one.prompt_index, one.candidate), []).append(weight)
    rows: list[Point] = []
    for place in sorted(by_place):
        chance = fmean(scores[place])
        if chance == 0.5:
            dropped["as often better as worse"] += 1
            continue
        mean = fmean(weights[place])
        rows.append(_point(len(rows), by_place[place], chance, chance > 0.5, mean, chance))
    return Labelled(rows, scores)


def _points_of_points(
    points: Sequence[VideoPoint], videos: Videos, dropped: "Counter[str]"
) -> Labelled:
    """Points of rated videos: desirable as the file says, else above the median of all ratings."""
    middle = median(one.scores[OVERALL] for one in points)
    scores: dict[tuple[int, int], list[float]] = {}
    rows: list[Point] = []
    for one in points:
        candidate, score = videos.get((one.prompt, video_of(one))), one.scores[OVERALL]
        if candidate is None:
            continue  # counted as a video
        scores.setdefault((candidate.prompt_index, candidate.candidate), []).append(score)
        if one.desirable is None and score == middle:
            dropped["rated as the median"] += 1
            continue
        good = score > middle if one.desirable is None else one.desirable
        weight = carried(one).weight
        rows.append(_point(len(rows), candidate, score, good, 1.0 if weight is None else weight,
                           float(good)))  # fmt: skip
    return Labelled(rows, scores)


def _point(
    number: int, one: Candidate, score: float, good: bool, weight: float, reward: float
) -> Point:
    return Point(
        point=number, prompt_index=one.prompt_index, prompt=one.prompt, candidate=one.candidate,
        latents=one.latents, video=one.video, desirable=good, score=score, weight=weight,
        reward=reward,
    )  # fmt: skip


def verdicts_of(candidates: Sequence[Candidate], made: Labelled, source: str) -> list[Verdict]:
    """A row a candidate: its mean chance of being the better one, or its mean rating."""
    rows = []
    for one in candidates:
        scores = made.scores.get((one.prompt_index, one.candidate))
        rows.append(
            Verdict(
                one.prompt_index, one.candidate, one.video, source,
                fmean(scores) if scores else None,
                fault="" if scores else "no answer",
            )
        )  # fmt: skip
    return rows
