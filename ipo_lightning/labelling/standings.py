"""What a critic said of the candidates of one prompt: ratings, or duels and their strengths."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, Protocol

from ipo_lightning.metrics.preferences import RIDGE, Strengths, bradley_terry, sigmoid
from ipo_lightning.storage.records import Candidate, Duel, Verdict


class Scored(NamedTuple):
    """A candidate that passed the guards, with what the critic makes of it."""

    candidate: Candidate
    score: float
    """The critic's own, or the strength of its duels in logits (Bradley-Terry)."""
    certainty: float
    dims: Mapping[str, float] = {}
    """Its parts by dimension, in the same units."""


class Judgement(Protocol):
    """What else is known of two candidates of a prompt."""

    def certainty(self, winner: Scored, loser: Scored) -> float:
        """How sure it is that the winner is better, in [0, 1]."""
        ...

    def doubt(self, winner: Scored, loser: Scored) -> str:
        """Why the two are no couple whatever their scores; "" where nothing speaks against it."""
        ...

    def against(self, winner: Scored, loser: Scored) -> dict[str, float]:
        """By dimension: how far the loser is ahead; negative where it is behind."""
        ...


class Group(NamedTuple):
    """The candidates of one prompt that count."""

    scored: list[Scored]
    judgement: Judgement


class Ratings:
    """Of a critic that rates one video at a time: nothing beyond the ratings."""

    def certainty(self, winner: Scored, loser: Scored) -> float:
        """That of the less certain rating."""
        return min(winner.certainty, loser.certainty)

    def doubt(self, winner: Scored, loser: Scored) -> str:
        """Never: a rating knows of no other video."""
        return ""

    def against(self, winner: Scored, loser: Scored) -> dict[str, float]:
        """Differences in the critic's units."""
        return {
            name: loser.dims[name] - winner.dims[name]
            for name in sorted(winner.dims.keys() & loser.dims.keys())
        }


@dataclass(frozen=True)
class Fought:
    """Of a critic that compares: the direct duel where there was one, else the strengths."""

    duels: Mapping[tuple[int, int], Duel]
    """By the numbers of two candidates, the smaller first; answered ones alone."""
    strengths: Strengths
    places: Mapping[int, int]
    """Number of a candidate -> its place among the strengths."""

    def certainty(self, winner: Scored, loser: Scored) -> float:
        """The chance that the winner is better: the direct duel's, but no more than the critic is
        sure of; without one the strengths', by their difference and its standard error."""
        direct = self._direct(winner, loser)
        if direct is None:
            place = self.places[winner.candidate.candidate], self.places[loser.candidate.candidate]
            return self.strengths.certainty(*place)
        found, won = direct
        return min(won, found.certainty)

    def doubt(self, winner: Scored, loser: Scored) -> str:
        """Where the two met, the duel must have been the winner's; where not, the winner must have
        beaten somebody who beat somebody who ... the loser. Without such a chain, as where duels
        between them got no answer, two strengths say nothing of each other."""
        direct = self._direct(winner, loser)
        if direct is None:
            chained = loser.candidate.candidate in self._beaten(winner.candidate.candidate)
            return "" if chained else "no chain of duels between the two"
        found, won = direct
        if not found.consistent:
            return "the two orders disagree"
        if found.tied:
            return "a tie of the two"
        return "" if won > 0.5 else "the loser won the two's own duel"

    def against(self, winner: Scored, loser: Scored) -> dict[str, float]:
        """The loser's chance minus the winner's, in [-1, 1]."""
        direct = self._direct(winner, loser)
        if direct is not None:
            found, _ = direct
            turned = 1 if found.first == winner.candidate.candidate else -1
            return {name: turned * (1 - 2 * chance) for name, chance in found.dims.items()}
        return {
            name: 1 - 2 * sigmoid(winner.dims[name] - loser.dims[name])
            for name in sorted(winner.dims.keys() & loser.dims.keys())
        }

    def _beaten(self, winner: int) -> set[int]:
        """Numbers of the candidates that one won against, itself or through those that it beat."""
        duels = ((couple, duel.outcome) for couple, duel in self.duels.items())
        wins = [
            (i, j) if outcome > 0.5 else (j, i)
            for (i, j), outcome in duels
            if outcome is not None and outcome != 0.5
        ]
        reached = {winner}
        while more := {loser for one, loser in wins if one in reached} - reached:
            reached |= more
        return reached

    def _direct(self, winner: Scored, loser: Scored) -> tuple[Duel, float] | None:
        """The two's own duel and the winner's chance in it, a tie counting half."""
        one, other = winner.candidate.candidate, loser.candidate.candidate
        found = self.duels.get((min(one, other), max(one, other)))
        if found is None or found.outcome is None:
            return None
        return found, found.outcome if found.first == one else 1 - found.outcome


def rated(
    candidates: Sequence[Candidate], verdicts: Sequence[Verdict], dropped: "Counter[str]"
) -> Group:
    """The candidates of one prompt that have a score; those without are counted."""
    by_number = {verdict.candidate: verdict for verdict in verdicts}
    scored = []
    for one in candidates:
        found = by_number.get(one.candidate)
        if found is None or found.score is None:
            dropped[no_verdict(found.fault if found else "")] += 1
        else:
            scored.append(Scored(one, found.score, found.certainty, found.dims))
    return Group(scored, Ratings())


def fought(
    candidates: Sequence[Candidate],
    duels: Sequence[Duel],
    dropped: "Counter[str]",
    ridge: float = RIDGE,
) -> Group:
    """The candidates of one prompt that duels tell something of, by their strengths.

    Duels without a verdict are counted one by one, and so are candidates that are left without any.
    """
    numbers = {one.candidate for one in candidates}
    known = [duel for duel in duels if {duel.first, duel.second} <= numbers]
    for duel in known:
        if duel.outcome is None:
            dropped[no_verdict(duel.fault)] += 1
    answered = {(duel.first, duel.second): duel for duel in known if duel.outcome is not None}
    met = {number for couple in answered for number in couple}
    for one in candidates:
        if one.candidate not in met:
            dropped[no_verdict("")] += 1
    counting = [one for one in candidates if one.candidate in met]
    return _by_strength(counting, answered, ridge)


def _by_strength(
    candidates: Sequence[Candidate], duels: Mapping[tuple[int, int], Duel], ridge: float
) -> Group:
    places = {one.candidate: place for place, one in enumerate(candidates)}

    def strengths(chances: Mapping[tuple[int, int], float]) -> Strengths:
        outcomes = {(places[i], places[j]): chance for (i, j), chance in chances.items()}
        return bradley_terry(len(places), outcomes, ridge)

    overall = strengths({key: one.outcome for key, one in duels.items() if one.outcome is not None})
    names = sorted({name for duel in duels.values() for name in duel.dims})
    dims = {
        name: strengths({key: one.dims[name] for key, one in duels.items() if name in one.dims})
        for name in names
    }
    scored = []
    for one in candidates:
        place = places[one.candidate]
        sure = fmean(duel.certainty for key, duel in duels.items() if one.candidate in key)
        parts = {name: dims[name].values[place] for name in names}
        scored.append(Scored(one, overall.values[place], sure, parts))
    return Group(scored, Fought(duels, overall, places))


def no_verdict(fault: str) -> str:
    """The reason under which a missing verdict is counted."""
    return f"no verdict: {fault}" if fault else "no verdict"
