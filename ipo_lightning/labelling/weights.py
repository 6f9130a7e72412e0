"""Weights of a round's pairs."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

from ipo_lightning.labelling.rules import Couple
from ipo_lightning.settings import NotNegative, Positive, checked

PairWeight = Callable[[Sequence[Couple], Sequence[float]], list[float]]
"""(couples of a whole round, scores of all its candidates) -> one weight a couple."""


def by_certainty(couples: Sequence[Couple], scores: Sequence[float]) -> list[float]:
    """The critic's certainty that the winner is better."""
    return [winner.certainty_over(loser) for winner, loser in couples]


def by_edge(couples: Sequence[Couple], scores: Sequence[float]) -> list[float]:
    """``2 p - 1``, with p the critic's certainty, at least 0. For critics that compare, of which a
    certainty of 1/2 means that the videos tie."""
    return [max(2 * sure - 1, 0.0) for sure in by_certainty(couples, scores)]


def uniform(couples: Sequence[Couple], scores: Sequence[float]) -> list[float]:
    """1 for every pair, whatever the critic's certainty."""
    return [1.0] * len(couples)


@checked
def by_margin(
    couples: Sequence[Couple], scores: Sequence[float], *, power: NotNegative = 1.0
) -> list[float]:
    """``margin^power`` times the certainty: the larger the difference of scores, the more.

    The powers are divided by their mean over the round, so that they do not change the weight of a
    round.

    Args:
        power: >= 0; 0 is `by_certainty`, below 1 flattens, above 1 sharpens.
    """
    margins = [max(winner.score - loser.score, 0.0) ** power for winner, loser in couples]
    average = fmean(margins) if any(margins) else 1.0
    sure = by_certainty(couples, scores)
    return [one / average * certainty for one, certainty in zip(margins, sure, strict=True)]


@checked
def by_rarity(
    couples: Sequence[Couple],
    scores: Sequence[float],
    *,
    alpha: NotNegative = 0.72,
    bin: Positive = 0.01,
) -> list[float]:
    """VideoDPO's re-weighting (arXiv 2412.14167) times the certainty: the rarer the scores, the
    more.

    ``(p_max / sqrt(p(s_w) p(s_l)))^alpha``, where p is the share of the round's scores in the same
    bin and p_max that of the fullest bin. It is at least 1, and not normalised, as in the paper: a
    round with more different scores weighs more.

    This is the paper's formula, with its alpha = 0.72. The released code has ``(0.72 / p)^dupbeta``
    instead, with 0.72 in the place of p_max, dupbeta = 0 (off), and p from a file that is not
    released.

    Args:
        alpha: >= 0; 0 is `by_certainty`.
        bin: width of the histogram's bins, in units of the score. Their centres are multiples of
            it, so that rounded scores are not on an edge. Few candidates need wide bins: if no two
            scores share a bin, all weights are equal.
    """
    counts = Counter(_place(score, bin) for score in scores)
    fullest = max(counts.values(), default=0)
    weights = []
    for couple, certainty in zip(couples, by_certainty(couples, scores), strict=True):
        rarity = math.prod(fullest / counts[_place(one.score, bin)] for one in couple)
        weights.append(math.sqrt(rarity) ** alpha * certainty)
    return weights


def _place(score: float, bin: float) -> int:
    """The number of a score's bin."""
    return math.floor(score / bin + 0.5)
