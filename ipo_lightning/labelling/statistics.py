"""Figures of a round's verdicts and labels: they show position bias, ties and stillness."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from ipo_lightning.labelling.standings import Standing
from ipo_lightning.storage.records import AnyVerdict, Pair, PairVerdict, Point


def statistics(
    groups: Sequence[Sequence[Standing]],
    verdicts: Iterable[AnyVerdict],
    labels: Sequence[Pair] | Sequence[Point],
) -> dict[str, float]:
    """Figures by name; what cannot be told of these is absent.

    - ``prompts``, ``prompts_labelled``: how many there are, and how many gave a label;
    - ``score_motion``: correlation between the score and the motion of siblings, in [-1, 1]: far
      from 0 a critic rewards stillness, or restlessness;
    - ``comparisons``, ``ties``, ``flips``, ``first_wins``: of a critic that compares, see
      `of_comparisons`.
    """
    labelled = len({row.prompt_index for row in labels})
    figures: dict[str, float] = {
        "prompts": len(groups),
        "prompts_labelled": labelled,
        "score_motion": _motion(groups),
    }
    figures |= of_comparisons([one for one in verdicts if isinstance(one, PairVerdict)])
    return {
        name: value if isinstance(value, int) else round(value, 6)
        for name, value in figures.items()
        if not math.isnan(value)
    }


def of_comparisons(verdicts: Sequence[PairVerdict]) -> dict[str, float]:
    """Figures of a round's comparisons; nan where none can tell.

    - ``comparisons``: how many couples were compared;
    - ``ties``: share of them that are a tie, or whose two orders disagree;
    - ``flips``: share of those shown in both orders whose two answers disagree;
    - ``first_wins``: share of the answers for one of two places that were for the first: 1/2 of a
      critic that is fair to both.
    """
    if not verdicts:
        return {}
    asked = [one for one in verdicts if one.first_video != one.second_video]
    answered = [one for one in asked if one.outcome is not None]
    twice = [one for one in answered if one.shown and None not in one.shown]
    gaps = [shown[0] - shown[2] for one in verdicts for shown in one.shown if shown is not None]
    return {
        "comparisons": len(asked),
        "ties": _mean([one.tied for one in answered]),
        "flips": _mean([not one.consistent for one in twice]),
        "first_wins": _mean([gap > 0 for gap in gaps if gap]),
    }


def _mean(values: Sequence[bool]) -> float:
    return fmean(values) if values else math.nan


def _motion(groups: Sequence[Sequence[Standing]]) -> float:
    """Pearson's correlation about each prompt's own means; nan of drafts that are not decoded."""
    scores: list[float] = []
    motions: list[float] = []
    for found in groups:
        group = [one for one in found if one.candidate.video]
        scores += _centred([one.score for one in group])
        motions += _centred([one.candidate.gauges["motion"] for one in group])
    spread = math.sqrt(_product(scores, scores) * _product(motions, motions))
    return _product(scores, motions) / spread if spread > 1e-12 else math.nan


def _centred(values: Sequence[float]) -> list[float]:
    """The values less their mean."""
    mean = fmean(values) if values else 0.0
    return [value - mean for value in values]


def _product(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(one, other, strict=True))
