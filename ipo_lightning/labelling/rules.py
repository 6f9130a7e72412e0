"""Which candidates of a prompt become pairs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, NamedTuple

from ipo_lightning.labelling.filters import Filters
from ipo_lightning.labelling.standings import Judgement, Scored
from ipo_lightning.settings import Count, NotNegative, Null, checked

Depth = Annotated[Count | None, Null("as many as there are")]
"""Couples a prompt at most."""


class Couple(NamedTuple):
    """A winner and a loser that may be a label."""

    winner: Scored
    loser: Scored
    certainty: float
    """How sure the critic is of it, in [0, 1]: of one that compares, the winner's chance."""


@dataclass(frozen=True)
class Acceptance:
    """What a couple must pass to be a label; what it fails by is counted."""

    filters: Filters
    judgement: Judgement
    dropped: "Counter[str]"
    min_certainty: float = 0.0
    veto: float | None = None

    def __call__(self, winner: Scored, loser: Scored) -> Couple | None:
        """The couple, or None where something speaks against it."""
        sure = self.judgement.certainty(winner, loser)
        reason = self._refusal(winner, loser, sure)
        if reason:
            self.count(reason)
            return None
        return Couple(winner, loser, sure)

    def count(self, reason: str) -> None:
        """Count something that gives no label."""
        self.dropped[reason] += 1

    def _refusal(self, winner: Scored, loser: Scored, sure: float) -> str:
        if self.filters.still_winner(winner.candidate, loser.candidate):
            return "winner moves too little"
        doubt = self.judgement.doubt(winner, loser)
        if doubt:
            return doubt
        if sure < self.min_certainty:
            return "certainty below min_certainty"
        if self.veto is not None:
            for name, ahead in self.judgement.against(winner, loser).items():
                if ahead > self.veto:
                    return f"veto: {name}"
        return ""


PairRule = Callable[[Sequence[Scored], Acceptance], list[Couple]]
"""(candidates of one prompt in any order, what a couple must pass) -> its couples."""

TOO_CLOSE = "score margin too small"


@checked
def best_versus_worst(
    group: Sequence[Scored], accept: Acceptance, *, margin: NotNegative = 0.0, depth: Depth = 1
) -> list[Couple]:
    """(winner, loser) couples of one prompt: the best against the worst, and so on inwards.

    Args:
        group: the candidates of one prompt, in any order.
        accept: asked about each couple; a refused one gives way to the next further inwards.
        margin: scores that differ by this or less, in the critic's units, tie.
        depth: couples a prompt at most: 1 takes best against worst, 2 also second best against
            second worst; None: as many as there are.
    """
    ranked = _ranked(group)
    couples: list[Couple] = []
    for winner, loser in list(zip(ranked, reversed(ranked), strict=True))[: len(ranked) // 2]:
        if len(couples) == depth:
            break
        if winner.score - loser.score <= margin:
            accept.count(TOO_CLOSE)
            break  # couples further inwards differ even less
        couple = accept(winner, loser)
        if couple is not None:
            couples.append(couple)
    return couples


@checked
def widest(
    group: Sequence[Scored], accept: Acceptance, *, margin: NotNegative = 0.0, depth: Depth = 1
) -> list[Couple]:
    """The couples that lie furthest apart among those that pass: a refused best against worst gives
    way to the next widest, whichever that is. No candidate is used twice.

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
        couple = accept(winner, loser)
        if couple is not None:
            couples.append(couple)
            used |= {winner.candidate.candidate, loser.candidate.candidate}
    return couples


@checked
def all_pairs(
    group: Sequence[Scored], accept: Acceptance, *, margin: NotNegative = 0.0, depth: Depth = None
) -> list[Couple]:
    """Every couple that passes, the widest apart first: up to N (N - 1) / 2 a prompt.

    Args:
        group, accept, margin: as of `best_versus_worst`.
        depth: couples a prompt at most; None: all.
    """
    return _passing(_by_gap(group), accept, margin)[:depth]


@checked
def top_against_bottom(
    group: Sequence[Scored], accept: Acceptance, *, margin: NotNegative = 0.0, depth: Depth = 2
) -> list[Couple]:
    """Each of the k best against each of the k worst: up to k^2 couples a prompt.

    Args:
        group, accept, margin: as of `best_versus_worst`.
        depth: k; of fewer than 2 k candidates, and with None, as many at either end as do not
            overlap.
    """
    ranked = _ranked(group)
    half = len(ranked) // 2
    k = half if depth is None else min(depth, half)
    best, worst = ranked[:k], ranked[len(ranked) - k :]
    return _passing([(winner, loser) for winner in best for loser in worst], accept, margin)


def _passing(
    couples: Sequence[tuple[Scored, Scored]], accept: Acceptance, margin: float
) -> list[Couple]:
    passed = []
    for winner, loser in couples:
        if winner.score - loser.score <= margin:
            accept.count(TOO_CLOSE)
            continue
        couple = accept(winner, loser)
        if couple is not None:
            passed.append(couple)
    return passed


def _ranked(group: Sequence[Scored]) -> list[Scored]:
    return sorted(group, key=lambda one: (-one.score, one.candidate.candidate))


def _by_gap(group: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    """All couples, the better first, by how far apart their scores lie."""
    couples = list(combinations(_ranked(group), 2))
    return sorted(couples, key=lambda two: two[1].score - two[0].score)  # stable: rank decides
