"""The rules by which a round's verdicts become training labels."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean, mean
from typing import Annotated, Literal, NamedTuple

from ipo_lightning.errors import InputError, within
from ipo_lightning.labelling.drafts import TURNED, Drafts, drafts_of, place_of
from ipo_lightning.labelling.filters import Filters
from ipo_lightning.labelling.rules import Acceptance, Couple, PairRule, best_versus_worst
from ipo_lightning.labelling.standings import Standing, compared, rated
from ipo_lightning.labelling.statistics import statistics
from ipo_lightning.labelling.tournaments import Schedule, swiss
from ipo_lightning.labelling.weights import PairWeight, by_certainty, uniform
from ipo_lightning.metrics.preferences import RIDGE
from ipo_lightning.settings import Endless, NotNegative, Null, Positive, Share, checked
from ipo_lightning.storage.records import (
    AnyVerdict,
    Candidate,
    Pair,
    PairVerdict,
    Point,
    Verdict,
)


class Labels(NamedTuple):
    """The labels of a round, and what gave none."""

    rows: list[Pair] | list[Point]
    dropped: dict[str, int]
    """Reason -> how many candidates, couples, comparisons or prompts gave no label."""
    figures: dict[str, float]
    """Statistics of the round's verdicts and labels, see `statistics`."""


@checked
@dataclass(frozen=True)
class Labelling:
    """The rules by which a round's verdicts become training labels.

    Args:
        pair_rule: couples the candidates of one prompt (`best_versus_worst`, partially applied).
        filters: bounds on candidates' gauges; a critic that compares is not asked about candidates
            outside of them.
        upper, lower: for points: bounds of the score. Above ``upper`` a video is desirable, below
            ``lower`` undesirable.
        bounds: for points: whether the two are quantiles of the score, in [0, 1], or scores
            themselves, in the critic's units. The scores of a critic that compares are strengths in
            logits, whose mean over a prompt is 0.
        within: for points: whether the quantiles are those of the video's own prompt or of the
            whole round.
        middle: for points: ``drop`` drops the videos between the two bounds; ``keep`` makes a point
            of every video, desirable where its score is at least the middle of the bounds, for
            losses that use ``reward``.
        weight: for pairs: the weight of each (`by_certainty`, `by_edge`, `by_margin`, `by_rarity`,
            `uniform`). A point's weight is the critic's certainty.
        min_certainty: for pairs: least certainty that the winner is better, in [0, 1]
            (`Standing.certainty_over`).
        veto: for pairs: if the loser is ahead in any dimension by more than this, the couple is
            dropped: in the critic's units, or, of a critic that compares, in chances from 0 to 1.
            None: no veto.
        schedule: of a critic that compares: which candidates meet
            (`ipo_lightning.labelling.tournaments`).
        both_orders: of a critic that compares: whether each couple is shown in both orders.
        ridge: of a critic that compares: precision of the strengths' prior (`bradley_terry`).
        max_missing: largest share of verdicts that may be missing; with more the run stops.
    """

    pair_rule: PairRule = best_versus_worst
    filters: Filters = Filters()
    upper: Annotated[float, Endless()] = 0.5
    lower: Annotated[float, Endless()] = 0.5
    bounds: Literal["quantile", "score"] = "quantile"
    within: Literal["prompt", "round"] = "prompt"
    middle: Literal["drop", "keep"] = "drop"
    weight: PairWeight = by_certainty
    min_certainty: Share = 0.0
    veto: Annotated[NotNegative | None, Null("none")] = None
    schedule: Schedule = swiss
    both_orders: bool = True
    ridge: Positive = RIDGE
    max_missing: Share = 0.5

    def __post_init__(self) -> None:
        self._check_bounds()
        with within("weight"):
            self.weight([], [])  # refuses wrong settings before anything is generated
        with within("schedule"):
            self.schedule(2, [])

    def _check_bounds(self) -> None:
        if self.bounds == "score" and not self.lower <= self.upper:
            order = f"give at most upper={self.upper} (bounds=score)"
            raise InputError(setting="lower", value=self.lower, expected=order)
        if self.bounds == "quantile" and not 0 <= self.lower <= self.upper <= 1:
            order = f"with upper={self.upper}; give 0 <= lower <= upper <= 1 (bounds=quantile)"
            raise InputError(setting="lower", value=self.lower, expected=order)

    def labels(
        self,
        label_kind: str,
        candidates: Iterable[Candidate],
        verdicts: Sequence[AnyVerdict],
        drafts: Drafts | None = None,
    ) -> Labels:
        """The pairs of a round for a pairwise loss, or its points for a pointwise one."""
        rule = self.pairs if label_kind == "pairwise" else self.points
        return rule(candidates, verdicts, drafts)

    def drafts(
        self, label_kind: str, candidates: Sequence[Candidate], verdicts: Sequence[AnyVerdict]
    ) -> Drafts:
        """Which of a round's drafts a label needs."""
        labels = self.labels(label_kind, candidates, verdicts)
        groups = self._groups(candidates, verdicts, Counter())
        return drafts_of(groups, labels.rows, labels.dropped)

    def finals(self, label_kind: str, n: int) -> int:
        """How many of ``n`` drafts of a prompt a label needs if their scores lie far apart; of
        points in the mean over the prompts."""
        if label_kind == "pointwise" and self.bounds == "score":
            return n
        gauges = {"motion": 1.0, "blank": 0.0}
        apart = [Candidate(0, "", k, k, "", "", gauges) for k in range(n)]
        verdicts = [Verdict(0, k, "", "", float(10**6 * k)) for k in range(n)]
        rules = replace(self, filters=Filters(), weight=uniform, min_certainty=0.0, veto=None)
        return sum(map(len, rules.drafts(label_kind, apart, verdicts).wanted.values()))

    def pairs(
        self,
        candidates: Iterable[Candidate],
        verdicts: Sequence[AnyVerdict],
        drafts: Drafts | None = None,
    ) -> Labels:
        """The pairs of a round.

        Args:
            drafts: of these candidates: a couple that they rank the other way is no pair.
        """
        dropped: Counter[str] = Counter()
        groups = self._groups(candidates, verdicts, dropped)
        couples = [couple for group in groups for couple in self._couples(group, dropped, drafts)]
        weights = self.weight(couples, [one.score for group in groups for one in group])
        rows = [
            _pair(number, couple, weight)
            for number, (couple, weight) in enumerate(zip(couples, weights, strict=True))
        ]
        return Labels(rows, dict(sorted(dropped.items())), statistics(groups, verdicts, rows))

    def _couples(
        self, group: Sequence[Standing], dropped: "Counter[str]", drafts: Drafts | None
    ) -> list[Couple]:
        if len(group) < 2:
            dropped["fewer than two candidates left"] += 1
        accept = Acceptance(self.filters, dropped, self.min_certainty, self.veto, drafts)
        return self.pair_rule(group, accept)

    def points(
        self,
        candidates: Iterable[Candidate],
        verdicts: Sequence[AnyVerdict],
        drafts: Drafts | None = None,
    ) -> Labels:
        """The desirable and undesirable videos of a round.

        Args:
            drafts: of these candidates: as many are desirable as of the drafts were, where the
                bounds are quantiles, and one whose draft was on the other side is no point.
        """
        dropped: Counter[str] = Counter()
        groups = self._groups(candidates, verdicts, dropped)
        rewards = _rewards(groups)
        within = groups if self.within == "prompt" else [[one for some in groups for one in some]]
        rows: list[Point] = []
        for group in within:
            low, high = self._band(group, drafts)
            for one in group:
                if self.middle == "drop" and low <= one.score <= high:
                    dropped["between lower and upper"] += 1
                    continue
                good = one.score >= (low + high) / 2
                if drafts is not None and drafts.sides[place_of(one)] != good:
                    dropped[TURNED] += 1
                    continue
                rows.append(_point(len(rows), one, rewards[place_of(one)], desirable=good))
        return Labels(rows, dict(sorted(dropped.items())), statistics(groups, verdicts, rows))

    def _band(self, group: Sequence[Standing], drafts: Drafts | None) -> tuple[float, float]:
        """The scores between which a video is neither desirable nor undesirable."""
        if self.bounds == "score":
            return self.lower, self.upper
        if drafts is not None:
            return (drafts.bound(group),) * 2
        scores = [one.score for one in group]
        return _quantile(scores, self.lower), _quantile(scores, self.upper)

    def check_missing(self, verdicts: Sequence[AnyVerdict]) -> None:
        """Check that at most ``max_missing`` of the verdicts are missing.

        Raises:
            InputError: more are; it names the most common fault.
        """
        faults = Counter(one.fault for one in verdicts if _is_missing(one))
        missing, asked = sum(faults.values()), len(verdicts)
        if missing > self.max_missing * asked:
            reason, count = faults.most_common(1)[0]
            raise InputError(
                f"{missing} of {asked} verdicts are missing (most common, {count}: "
                f"{reason or 'no verdict'}), more than labelling.max_missing={self.max_missing} "
                "allows. All answers are kept; the same command asks again where a fault was "
                "transient"
            )

    def _groups(
        self,
        candidates: Iterable[Candidate],
        verdicts: Iterable[AnyVerdict],
        dropped: "Counter[str]",
    ) -> list[list[Standing]]:
        """The standings of the candidates that pass the filters, by prompt."""
        ratings: dict[int, list[Verdict]] = {}
        comparisons: dict[int, list[PairVerdict]] = {}
        for one in verdicts:
            if isinstance(one, PairVerdict):
                comparisons.setdefault(one.prompt_index, []).append(one)
            else:
                ratings.setdefault(one.prompt_index, []).append(one)
        ordered = sorted(candidates, key=lambda c: (c.prompt_index, c.candidate))
        groups = []
        for prompt, siblings in groupby(ordered, key=lambda c: c.prompt_index):
            kept = self._filtered(siblings, dropped)
            if comparisons:
                groups.append(compared(kept, comparisons.get(prompt, []), dropped, self.ridge))
            else:
                groups.append(rated(kept, ratings.get(prompt, []), dropped))
        return groups

    def _filtered(
        self, candidates: Iterable[Candidate], dropped: "Counter[str]"
    ) -> list[Candidate]:
        """The candidates that pass the filters."""
        kept = []
        for one in candidates:
            reason = self.filters.refuse(one.gauges) if one.video else None  # else not decoded
            if reason:
                dropped[reason] += 1
            else:
                kept.append(one)
        return kept


def _is_missing(one: AnyVerdict) -> bool:
    return (one.p_first if isinstance(one, PairVerdict) else one.score) is None


def _rewards(groups: Sequence[Sequence[Standing]]) -> dict[tuple[int, int], float]:
    """The reward of each candidate, see `Point.reward`."""
    ahead: dict[tuple[int, int], float] = {}
    for group in groups:
        if group:
            own = mean(one.score for one in group)  # exact: equal scores are not ahead of another
            ahead |= {place_of(one): one.score - own for one in group}
    scale = math.sqrt(fmean(gap * gap for gap in ahead.values())) if ahead else 0.0
    return {
        key: 0.5 + 0.5 * max(-1.0, min(1.0, gap / scale)) if scale > 0 else 0.5
        for key, gap in ahead.items()
    }


def _quantile(scores: Sequence[float], q: float) -> float:
    """Quantile with linear interpolation, as numpy's default; nan of nothing."""
    if not scores:
        return float("nan")
    ranked = sorted(scores)
    place = q * (len(ranked) - 1)
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)


def _pair(number: int, couple: Couple, weight: float) -> Pair:
    winner, loser = couple
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
        certainty=winner.certainty_over(loser),
    )


def _point(number: int, one: Standing, reward: float, *, desirable: bool) -> Point:
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
