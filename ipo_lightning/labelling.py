"""Verdicts to pairs or points: pure functions, nothing is decided by the order of the input.

Every candidate that gives no label is counted under a reason; ties are dropped, not broken.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean, mean
from typing import Literal, NamedTuple

from ipo_lightning.errors import InputError
from ipo_lightning.records import Candidate, Pair, Point, Verdict


class Scored(NamedTuple):
    """A candidate that passed the guards, with its verdict."""

    candidate: Candidate
    score: float
    certainty: float


class Labels(NamedTuple):
    """What labelling made of a round's candidates."""

    rows: list[Pair] | list[Point]
    dropped: dict[str, int]
    """Reason -> how many candidates or prompts gave no label."""


@dataclass(frozen=True)
class Guards:
    """Model-free bounds that a candidate must keep before a critic's word counts.

    Real critics reward stillness; a video that does not move, or is blank, is no example of
    anything. ``motion`` is the mean change between neighbouring frames, in grey levels (0..255).
    """

    min_motion: float = 0.0
    max_motion: float = float("inf")
    motion_ratio: float = 0.0
    """A winner must move at least this share of its loser's motion, in [0, 1]."""

    def refuse(self, gauges: Mapping[str, float]) -> str | None:
        """Why a candidate is left out, or None."""
        motion = gauges["motion"]
        if gauges["blank"]:
            return "blank"
        if motion < self.min_motion:
            return "motion below min_motion"
        if motion > self.max_motion:
            return "motion above max_motion"
        return None

    def still_winner(self, winner: Candidate, loser: Candidate) -> bool:
        """Whether a winner moves too little beside its loser."""
        return winner.gauges["motion"] < self.motion_ratio * loser.gauges["motion"]


Couple = tuple[Scored, Scored]
"""Winner and loser."""

PairRule = Callable[[Sequence[Scored], Guards, "Counter[str]"], list[Couple]]

PairWeight = Callable[[Sequence[Couple], Sequence[float]], list[float]]
"""(couples of a whole round, scores of all its candidates that count) -> one weight a couple."""


def best_versus_worst(
    group: Sequence[Scored],
    guards: Guards,
    dropped: "Counter[str]",
    *,
    margin: float = 0.0,
    depth: int = 1,
) -> list[Couple]:
    """(winner, loser) couples of one prompt: the best against the worst, and so on inwards.

    Args:
        group: the candidates of one prompt, in any order.
        margin: scores that differ by this or less, in the critic's units, tie.
        depth: couples a prompt at most: 1 takes best against worst, 2 also second best against
            second worst.
    """
    ranked = sorted(group, key=lambda one: (-one.score, one.candidate.candidate))
    couples: list[Couple] = []
    for winner, loser in list(zip(ranked, reversed(ranked), strict=True))[: len(ranked) // 2]:
        if len(couples) == depth:
            break
        if winner.score - loser.score <= margin:
            dropped["score margin too small"] += 1
            break  # couples further inwards differ even less
        if guards.still_winner(winner.candidate, loser.candidate):
            dropped["winner moves too little"] += 1
            continue
        couples.append((winner, loser))
    if len(group) < 2:
        dropped["fewer than two candidates left"] += 1
    return couples


def by_certainty(couples: Sequence[Couple], scores: Sequence[float]) -> list[float]:
    """A pair counts as much as the critic is sure of its less certain member."""
    return [min(winner.certainty, loser.certainty) for winner, loser in couples]


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


@dataclass(frozen=True)
class Labelling:
    """The policy that turns a round's verdicts into training labels.

    Args:
        pair_rule: couples the candidates of one prompt (`best_versus_worst`, partially applied).
        guards: bounds that candidates must keep.
        upper, lower: for points: quantiles of the score, in [0, 1]. Above ``upper`` a video is
            desirable, below ``lower`` undesirable.
        within: for points: whether the quantiles are those of the video's own prompt or of the
            whole round. ``prompt`` asks "better than its siblings", ``round`` "good".
        middle: for points: ``drop`` drops the band between the quantiles; ``keep`` makes a point of
            every video, desirable where its score is not below the band's middle, for losses
            that go by ``reward``.
        weight: for pairs: how much each counts (`by_certainty`, `by_margin`, `by_rarity`,
            `uniform`). A point counts as much as the critic is sure.
    """

    pair_rule: PairRule
    guards: Guards
    upper: float = 0.5
    lower: float = 0.5
    within: Literal["prompt", "round"] = "prompt"
    middle: Literal["drop", "keep"] = "drop"
    weight: PairWeight = by_certainty

    def __post_init__(self) -> None:
        if not 0 <= self.lower <= self.upper <= 1:
            raise InputError(
                f"labelling: lower={self.lower}, upper={self.upper}: "
                "give 0 <= lower <= upper <= 1 (quantiles of the score)"
            )
        if self.within not in ("prompt", "round"):
            raise InputError(f"labelling.within={self.within}: choose prompt or round")
        if self.middle not in ("drop", "keep"):
            raise InputError(f"labelling.middle={self.middle}: choose drop or keep")
        self.weight([], [])  # refuses wrong settings before anything is generated

    def pairs(self, candidates: Iterable[Candidate], verdicts: Iterable[Verdict]) -> Labels:
        """Pairs of a round, at most ``depth`` a prompt."""
        dropped: Counter[str] = Counter()
        groups = self._groups(candidates, verdicts, dropped)
        couples = [
            couple for group in groups for couple in self.pair_rule(group, self.guards, dropped)
        ]
        weights = self.weight(couples, [one.score for group in groups for one in group])
        rows = [
            _pair(number, winner, loser, weight)
            for number, ((winner, loser), weight) in enumerate(zip(couples, weights, strict=True))
        ]
        return Labels(rows, dict(sorted(dropped.items())))

    def points(self, candidates: Iterable[Candidate], verdicts: Iterable[Verdict]) -> Labels:
        """Desirable and undesirable videos of a round."""
        dropped: Counter[str] = Counter()
        groups = self._groups(candidates, verdicts, dropped)
        rewards = _rewards(groups)
        if self.within == "round":
            groups = [[one for group in groups for one in group]]
        rows: list[Point] = []
        for group in groups:
            scores = [one.score for one in group]
            low, high = _quantile(scores, self.lower), _quantile(scores, self.upper)
            for one in group:
                if self.middle == "drop" and low <= one.score <= high:
                    dropped["between lower and upper"] += 1
                    continue
                good = one.score >= (low + high) / 2
                rows.append(_point(len(rows), one, rewards[_key(one)], desirable=good))
        return Labels(rows, dict(sorted(dropped.items())))

    def _groups(
        self,
        candidates: Iterable[Candidate],
        verdicts: Iterable[Verdict],
        dropped: "Counter[str]",
    ) -> list[list[Scored]]:
        """The candidates that count, by prompt."""
        by_place = {(v.prompt_index, v.candidate): v for v in verdicts}
        ordered = sorted(candidates, key=lambda c: (c.prompt_index, c.candidate))
        groups = []
        for _, siblings in groupby(ordered, key=lambda c: c.prompt_index):
            group = []
            for candidate in siblings:
                verdict = by_place.get((candidate.prompt_index, candidate.candidate))
                reason = self.guards.refuse(candidate.gauges)
                if reason:
                    dropped[reason] += 1
                elif verdict is None or verdict.score is None:
                    dropped["no verdict"] += 1
                else:
                    group.append(Scored(candidate, verdict.score, verdict.certainty))
            groups.append(group)
        return groups


def _rewards(groups: Sequence[Sequence[Scored]]) -> dict[tuple[int, int], float]:
    """How good each candidate is beside its siblings, see `Point.reward`."""
    ahead: dict[tuple[int, int], float] = {}
    for group in groups:
        if group:
            own = mean(one.score for one in group)  # exact: equal scores are not ahead of another
            ahead |= {_key(one): one.score - own for one in group}
    scale = math.sqrt(fmean(gap * gap for gap in ahead.values())) if ahead else 0.0
    return {
        key: 0.5 + 0.5 * max(-1.0, min(1.0, gap / scale)) if scale > 0 else 0.5
        for key, gap in ahead.items()
    }


def _key(one: Scored) -> tuple[int, int]:
    return one.candidate.prompt_index, one.candidate.candidate


def _place(score: float, bin: float) -> int:
    """Number of the bin that a score falls into."""
    return math.floor(score / bin + 0.5)


def _check(name: str, value: float, valid: bool, wanted: str) -> None:
    if not valid:
        raise InputError(f"labelling.weight.{name}={value}: give {wanted}")


def _quantile(scores: Sequence[float], q: float) -> float:
    """Quantile with linear interpolation, as numpy's default; nan of nothing."""
    if not scores:
        return float("nan")
    ranked = sorted(scores)
    place = q * (len(ranked) - 1)
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)


def _pair(number: int, winner: Scored, loser: Scored, weight: float) -> Pair:
    first, second = winner.candidate, loser.candidate
    return Pair(
        pair=number,
        prompt_index=first.prompt_index,
        prompt=first.prompt,
        winner=first.candidate,
        loser=second.candidate,
        winner_latents=first.latents,
        loser_latents=second.latents,
        winner_video=first.video,
        loser_video=second.video,
        margin=winner.score - loser.score,
        weight=weight,
    )


def _point(number: int, one: Scored, reward: float, *, desirable: bool) -> Point:
    candidate = one.candidate
    return Point(
        point=number,
        prompt_index=candidate.prompt_index,
        prompt=candidate.prompt,
        candidate=candidate.candidate,
        latents=candidate.latents,
        video=candidate.video,
        desirable=desirable,
        score=one.score,
        weight=one.certainty,
        reward=reward,
    )
