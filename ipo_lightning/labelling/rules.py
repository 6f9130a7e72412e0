"""Which candidates of a prompt become pairs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated

from ipo_lightning.labelling.drafts import TURNED, Drafts
from ipo_lightning.labelling.filters import Filters
from ipo_lightning.labelling.standings import Standing
from ipo_lightning.settings import Count, NotNegative, Null, checked

Depth = Annotated[Count | None, Null("as many as there are")]
"""Couples a prompt at most."""

Couple = tuple[Standing, Standing]
"""A winner and a loser of one prompt, which may become a pair."""


@dataclass(frozen=True)
class Acceptance:
    """The conditions that a couple must meet to become a pair; each refusal is counted.

    Args:
        filters: bounds on the winner's motion.
        dropped: reason -> how often, which is added to.
        min_certainty, veto: as of `Labelling`.
        drafts: must not rank the two the other way; None: they were not drafted.
    """

    filters: Filters
    dropped: "Counter[str]"
    min_certainty: float = 0.0
    veto: float | None = None
    drafts: Drafts | None = None

    def __call__(self, winner: Standing, loser: Standing) -> bool:
        """Whether the two may become a pair."""
        reason = self._refusal(winner, loser)
        if reason:
            self.count(reason)
        return not reason

    def count(self, reason: str) -> None:
        """Count a reason for which a candidate or couple gives no label."""
        self.dropped[reason] += 1

    def _refusal(self, winner: Standing, loser: Standing) -> str:
        if self.drafts is not None and self.drafts.turned(winner, loser):
            return TURNED
        if self.filters.still_winner(winner.candidate, loser.candidate):
            return "winner moves too little"
        doubt = winner.doubt_over(loser)
        if doubt:
            return doubt
        if winner.certainty_over(loser) < self.min_certainty:
            return "certainty below min_certainty"
        if self.veto is not None:
            for name, ahead in winner.behind(loser).items():
                if ahead > self.veto:
                    return f"veto: {name}"
        return ""


PairRule = Callable[[Sequence[Standing], Acceptance], list[Couple]]
"""(candidates of one prompt in any order, the conditions of a pair) -> its couples."""

TOO_CLOSE = "score margin too small"


@checked
def best_versus_worst(
    group: Sequence[Standing], accept: Acceptance, *, margin: NotNegative = 0.0, depth: Depth = 1
) -> list[Couple]:
    """The best against the worst, then the second best against the second worst, and so on.

    Args:
        group: the candidates of one prompt, in any order.
        accept: decides on each couple; after a refusal the next couple inwards is tried.
        margin: scores that differ by this or less, in the critic's units, tie.
        depth: largest number of couples a prompt; None: as many as there are.
    """
    ranked = _ranked(group)
    couples: list[Couple] = []
    for winner, loser in list(zip(ranked, reversed(ranked), strict=True))[: len(ranked) // 2]:
        if len(couples) == depth:
            break
        if winner.score - loser.score <= margin:
            accept.count(TOO_CLOSE)
            break  # couples further inwards differ even less
        if accept(winner, loser):
            couples.append((winner, loser))
    return couples


@checked
def widest(
    group: Sequence[Standing], accept: Acceptance, *, margin: NotNegative = 0.0, depth: Depth = 1
) -> list[Couple]:
    """The couples with the largest difference of scores that pass, no candidate used twice.

    Unlike in `best_versus_worst`, a refused couple is replaced by the next widest of all couples.

    Args:
        group, accept, margin, depth: as of `best_versus_worst`.
    """
    couples: list[Couple] = []
    used: set[int] = set()
    for winner, loser in _by_gap(group):
        if len(couples) == depth:
            break
        if winner.score - loser.score <= margin:
            if not couples:
                accept.count(TOO_CLOSE)
            break
        if {winner.candidate.candidate, loser.candidate.candidate} & used:
            continue
        if accept(winner, loser):
            couples.append((winner, loser))
            used |= {winner.candidate.candidate, loser.candidate.candidate}
    return couples


@checked
def all_pairs(
    group: Sequence[Standing], accept: Acceptance, *, margin: NotNegative = 0.0, depth: Depth = None
) -> list[Couple]:
    """Every couple that passes, the largest difference first: up to N (N - 1) / 2 a prompt.

    Args:
        group, accept, margin: as of `best_versus_worst`.
        depth: largest number of couples a prompt; None: all.
    """
    return _passing(_by_gap(group), accept, margin)[:depth]


@checked
def top_against_bottom(
    group: Sequence[Standing], accept: Acceptance, *, margin: NotNegative = 0.0, depth: Depth = 2
) -> list[Couple]:
    """Each of the k best against each of the k worst: up to k^2 couples a prompt.

    Args:
        group, accept, margin: as of `best_versus_worst`.
        depth: k, or half of the candidates where there are fewer than 2 k; None: half of them.
    """
    ranked = _ranked(group)
    half = len(ranked) // 2
    k = half if depth is None else min(depth, half)
    best, worst = ranked[:k], ranked[len(ranked) - k :]
    return _passing([(winner, loser) for winner in best for loser in worst], accept, margin)


def _passing(couples: Sequence[Couple], accept: Acceptance, margin: float) -> list[Couple]:
    passed = []
    for winner, loser in couples:
        if winner.score - loser.score <= margin:
            accept.count(TOO_CLOSE)
            continue
        if accept(winner, loser):
            passed.append((winner, loser))
    return passed


def _ranked(group: Sequence[Standing]) -> list[Standing]:
    return sorted(group, key=lambda one: (-one.score, one.candidate.candidate))


def _by_gap(group: Sequence[Standing]) -> list[Couple]:
    """All couples (better, worse), the largest difference of scores first."""
    couples = list(combinations(_ranked(group), 2))
    return sorted(couples, key=lambda two: two[1].score - two[0].score)  # stable: rank decides
