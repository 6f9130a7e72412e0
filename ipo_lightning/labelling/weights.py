"""How much each pair of a round counts."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

from ipo_lightning.errors import InputError
from ipo_lightning.labelling.rules import Couple

PairWeight = Callable[[Sequence[Couple], Sequence[float]], list[float]]
"""(couples of a whole round, scores of all its candidates that count) -> one weight a couple."""


def by_certainty(couples: Sequence[Couple], scores: Sequence[float]) -> list[float]:
    """A pair counts as much as the critic is sure of it."""
    return [winner.certainty_over(loser) for winner, loser in couples]


def by_edge(couples: Sequence[Couple], scores: Sequence[float]) -> list[float]:
    """A pair counts ``2 p - 1``, p the critic's certainty read as a chance: what it knows beyond a
    coin. For critics that compare."""
    return [max(2 * sure - 1, 0.0) for sure in by_certainty(couples, scores)]


def uniform(couples: Sequence[Couple], scores: Sequence[float]) -> list[float]:
    """All pairs count alike, whatever the critic's certainty."""
    return [1.0] * len(couples)


def by_margin(
    couples: Sequence[Couple], scores: Sequence[float], *, power: float = 1.0
) -> list[float]:
    """The clearer the difference of scores the more: ``margin^power``, times the certainty.

    The powers are divided by their mean over the round, so that a round weighs what it would
    without them.

    Args:
        power: >= 0; 0 is `by_certainty`, below 1 flattens, above 1 sharpens.
    """
    _check("power", power, power >= 0, "at least 0")
    margins = [max(winner.score - loser.score, 0.0) ** power for winner, loser in couples]
    average = fmean(margins) if any(margins) else 1.0
    sure = by_certainty(couples, scores)
    return [one / average * certainty for one, certainty in zip(margins, sure, strict=True)]


def by_rarity(
    couples: Sequence[Couple], scores: Sequence[float], *, alpha: float = 0.72, bin: float = 0.01
) -> list[float]:
    """VideoDPO's re-weighting (arXiv 2412.14167), times the certainty: the rarer the scores the
    more.

    ``(p_max / sqrt(p(s_w) p(s_l)))^alpha`` with p the share of the round's scores that fall into
    the same bin and p_max that of the fullest: at least 1, and 1 for a pair within that bin. Not
    normalised, as there; a spread-out round weighs more.

    The paper has alpha = 0.72. The released code has ``(0.72 / p)^dupbeta``, with 0.72 in the place
    of p_max, and ships dupbeta = 0, that is off; p comes from a file that is not released. This is
    the paper.

    Args:
        alpha: >= 0; 0 is `by_certainty`.
        bin: width of the histogram's bins, in units of the score. Their middles are multiples of
            it, so that scores of few decimals do not lie on an edge. Few candidates need wide bins:
            where no two scores share one, all weights are equal.
    """
    _check("alpha", alpha, alpha >= 0, "at least 0")
    _check("bin", bin, bin > 0, "above 0")
    counts = Counter(_place(score, bin) for score in scores)
    fullest = max(counts.values(), default=0)
    weights = []
    for couple, certainty in zip(couples, by_certainty(couples, scores), strict=True):
        rarity = math.prod(fullest / counts[_place(one.score, bin)] for one in couple)
        weights.append(math.sqrt(rarity) ** alpha * certainty)
    return weights


def _place(score: float, bin: float) -> int:
    """Number of the bin that a score falls into."""
    return math.floor(score / bin + 0.5)


def _check(name: str, value: float, valid: bool, wanted: str) -> None:
    if not valid:
        raise InputError(f"labelling.weight.{name}={value}: give {wanted}")
