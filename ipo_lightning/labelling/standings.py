"""The standing of each candidate among those of its prompt, by the critic's verdicts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from ipo_lightning.metrics.preferences import RIDGE, Strengths, bradley_terry, sigmoid
from ipo_lightning.storage.records import Candidate, PairVerdict, Verdict


class Standing(NamedTuple):
    """A candidate with what the verdicts say of it; it has passed the filters."""

    candidate: Candidate
    score: float
    """The critic's own; of a critic that compares, its Bradley-Terry strength in logits."""
    certainty: float
    """How sure the critic is, in [0, 1]."""
    dims: Mapping[str, float] = {}
    """Scores by dimension, in the same units."""
    compared: "PromptComparisons | None" = None
    """The comparisons of its prompt; None of a critic that rates one video at a time."""

    def certainty_over(self, loser: "Standing") -> float:
        """The certainty that this candidate is better than the loser, in [0, 1].

        Of two ratings it is the smaller one; of comparisons see `PromptComparisons.certainty`.
        """
        if self.compared is None:
            return min(self.certainty, loser.certainty)
        return self.compared.certainty(self.candidate.candidate, loser.candidate.candidate)

    def doubt_over(self, loser: "Standing") -> str:
        """Why the two cannot be a pair, whatever their scores; "" where they can."""
        if self.compared is None:
            return ""
        return self.compared.doubt(self.candidate.candidate, loser.candidate.candidate)

    def behind(self, loser: "Standing") -> dict[str, float]:
        """By dimension, how far the loser is ahead; negative where it is behind.

        In the critic's units; of comparisons the loser's chance minus the winner's, in [-1, 1].
        """
        shared = sorted(self.dims.keys() & loser.dims.keys())
        if self.compared is None:
            return {name: loser.dims[name] - self.dims[name] for name in shared}
        direct = self.compared.behind(self.candidate.candidate, loser.candidate.candidate)
        if direct is not None:
            return direct
        return {name: 1 - 2 * sigmoid(self.dims[name] - loser.dims[name]) for name in shared}


@dataclass(frozen=True)
class PromptComparisons:
    """The comparisons of a prompt's candidates, which are named by their numbers.

    For two candidates that were compared their own verdict counts, for others the strengths.
    """

    verdicts: Mapping[tuple[int, int], PairVerdict]
    """By the two numbers, the smaller first; without those that have no outcome."""
    strengths: Strengths
    places: Mapping[int, int]
    """Number of a candidate -> its place among the strengths."""

    def certainty(self, winner: int, loser: int) -> float:
        """The chance that the winner is better, in [0, 1].

        It is the chance in the two's own verdict, but at most the verdict's certainty. Without a
        verdict it follows from the difference of the strengths and its standard error.
        """
        direct = self._direct(winner, loser)
        if direct is None:
            return self.strengths.certainty(self.places[winner], self.places[loser])
        found, chance = direct
        return min(chance, found.certainty)

    def doubt(self, winner: int, loser: int) -> str:
        """Why the two cannot be a pair; "" where they can.

        If they were compared, the winner must have won. If not, there must be a chain: the winner
        beat a candidate that beat a candidate ... that beat the loser. Without a chain, as where
        comparisons got no answer, the two's strengths cannot be compared.
        """
        direct = self._direct(winner, loser)
        if direct is None:
            return "" if loser in self._beaten(winner) else "no chain of duels between the two"
        found, chance = direct
        if not found.consistent:
            return "the two orders disagree"
        if found.tied:
            return "a tie of the two"
        return "" if chance > 0.5 else "the loser won the two's own duel"

    def behind(self, winner: int, loser: int) -> dict[str, float] | None:
        """By dimension, the loser's chance minus the winner's in their own verdict, in [-1, 1]."""
        direct = self._direct(winner, loser)
        if direct is None:
            return None
        found, _ = direct
        turned = 1 if found.first == winner else -1
        return {name: turned * (1 - 2 * chance) for name, chance in found.dims.items()}

    def _beaten(self, winner: int) -> set[int]:
        """The candidates that one beat, directly or through those that it beat, and itself."""
        outcomes = ((two, verdict.outcome) for two, verdict in self.verdicts.items())
        wins = [
            (i, j) if outcome > 0.5 else (j, i)
            for (i, j), outcome in outcomes
            if outcome is not None and outcome != 0.5
        ]
        reached = {winner}
        while more := {loser for one, loser in wins if one in reached} - reached:
            reached |= more
        return reached

    def _direct(self, winner: int, loser: int) -> tuple[PairVerdict, float] | None:
        """The two's own verdict and the winner's chance in it, a tie counting half."""
        found = self.verdicts.get((min(winner, loser), max(winner, loser)))
        if found is None or found.outcome is None:
            return None
        return found, found.outcome if found.first == winner else 1 - found.outcome


def rated(
    candidates: Sequence[Candidate], verdicts: Sequence[Verdict], dropped: "Counter[str]"
) -> list[Standing]:
    """The candidates of one prompt that have a score; those without are counted."""
    by_number = {verdict.candidate: verdict for verdict in verdicts}
    standings = []
    for one in candidates:
        found = by_number.get(one.candidate)
        if found is None or found.score is None:
            dropped[no_verdict(found.fault if found else "")] += 1
        else:
            standings.append(Standing(one, found.score, found.certainty, found.dims))
    return standings


def compared(
    candidates: Sequence[Candidate],
    verdicts: Sequence[PairVerdict],
    dropped: "Counter[str]",
    ridge: float = RIDGE,
) -> list[Standing]:
    """The candidates of one prompt that were compared, by their strengths.

    Comparisons without an outcome are counted, and so are candidates that are left without any.
    """
    numbers = {one.candidate for one in candidates}
    known = [verdict for verdict in verdicts if {verdict.first, verdict.second} <= numbers]
    for verdict in known:
        if verdict.outcome is None:
            dropped[no_verdict(verdict.fault)] += 1
    answered = {(one.first, one.second): one for one in known if one.outcome is not None}
    met = {number for two in answered for number in two}
    for one in candidates:
        if one.candidate not in met:
            dropped[no_verdict("")] += 1
    return _by_strength([one for one in candidates if one.candidate in met], answered, ridge)


def _by_strength(
    candidates: Sequence[Candidate], verdicts: Mapping[tuple[int, int], PairVerdict], ridge: float
) -> list[Standing]:
    places = {one.candidate: place for place, one in enumerate(candidates)}

    def strengths(chances: Mapping[tuple[int, int], float]) -> Strengths:
        outcomes = {(places[i], places[j]): chance for (i, j), chance in chances.items()}
        return bradley_terry(len(places), outcomes, ridge)

    overall = strengths({two: v.outcome for two, v in verdicts.items() if v.outcome is not None})
    names = sorted({name for verdict in verdicts.values() for name in verdict.dims})
    dims = {
        name: strengths({two: v.dims[name] for two, v in verdicts.items() if name in v.dims})
        for name in names
    }
    comparisons = PromptComparisons(verdicts, overall, places)
    standings = []
    for one in candidates:
        place = places[one.candidate]
        sure = fmean(v.certainty for two, v in verdicts.items() if one.candidate in two)
        parts = {name: dims[name].values[place] for name in names}
        standings.append(Standing(one, overall.values[place], sure, parts, comparisons))
    return standings


def no_verdict(fault: str) -> str:
    """The reason under which a missing verdict is counted."""
    return f"no verdict: {fault}" if fault else "no verdict"
