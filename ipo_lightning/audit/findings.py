"""Statistics of people's votes and a critic's answers, as plain JSON.

What is fitted to people's votes (the threshold of ties, the scale and k of probabilities) is fitted
on the calibration split and evaluated on the other prompts.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ipo_lightning.audit.asking import Answer
from ipo_lightning.audit.votes import (
    Compared,
    calibration,
    dimensions,
    left_choices,
    prompt_index,
    ratings,
    repeats,
)
from ipo_lightning.critics.people.annotations import OVERALL
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.agreement import (
    Adapter,
    Estimate,
    against_others,
    coincidences,
    contingency,
    credit,
    fit_adapter,
    kappa,
    kendall,
    majority,
    mean_over_prompts,
    nominal_alpha,
    of_tables,
    ordinal_alpha,
    place_bias,
    reliability,
    right,
    selective,
    spearman,
    stability,
    tallies,
    three_way,
    tie_threshold,
)
from ipo_lightning.metrics.win_rate import agreement

Plain = dict[str, Any]
SURE = 0.999
"""Upper bound of a pairwise critic's probabilities, so that log-odds are finite."""


@dataclass(frozen=True)
class Rules:
    """Settings of an audit.

    Args:
        calibration: share of the prompts on which thresholds are fitted.
        seed: of the split.
        bins: of the calibration plot.
        dims: people's dimension -> the critic's dimensions whose mean is compared with it; default:
            the one of the same name.
    """

    calibration: float = 0.3
    seed: int = 0
    bins: int = 10
    dims: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The audited pairs as columns (N,)."""

    pairs: Sequence[Compared]
    answers: Sequence[Answer]
    rules: Rules

    @cached_property
    def prompts(self) -> Tensor:
        """(N,) integers, equal for pairs of one prompt."""
        return prompt_index(self.pairs)

    @cached_property
    def calibrating(self) -> Tensor:
        """(N,) bool: whether a pair is of the calibration split."""
        return calibration(self.pairs, self.rules.calibration, self.rules.seed)

    @cached_property
    def margin(self) -> Tensor:
        """(N,), NaN where the critic has no verdict."""
        return column(one.margin for one in self.answers)

    @cached_property
    def people(self) -> Tensor:
        """(people, N) overall verdicts."""
        return ratings(self.pairs, OVERALL)

    def margin_of(self, dim: str) -> Tensor:
        """The critic's margins (N,) in one of people's dimensions; NaN where it has none."""
        if dim == OVERALL:
            return self.margin
        wanted = [name.casefold() for name in self.rules.dims.get(dim, [dim])]
        return column(_mean_dim(one, wanted) for one in self.answers)


def check_people(pairs: Sequence[Compared], rules: Rules) -> None:
    """Check that people were asked about the dimensions of `Rules.dims`.

    Raises:
        InputError: names the unknown dimension, and the known ones.
    """
    known = [dim for dim in dimensions(pairs) if dim != OVERALL]
    for theirs in rules.dims:
        if theirs == OVERALL:
            raise InputError(
                f"dims.{OVERALL}: it is compared with the critic's overall verdict; remove it"
            )
        if theirs not in known:
            asked = ", ".join(known) or f"{OVERALL} alone"
            raise InputError(f"dims.{theirs}: people were asked about {asked}")


def check_critic(table: Table) -> None:
    """Check that the critic has the dimensions of `Rules.dims`, if it gave any verdict.

    Raises:
        InputError: names the unknown dimension, and the known ones.
    """
    if table.margin.isnan().all():
        return
    known = sorted({name for one in table.answers for name in one.dims})
    folded = {name.casefold() for name in known}
    for theirs, its in table.rules.dims.items():
        for name in its:
            if name.casefold() not in folded:
                told = f"'s dimensions are {', '.join(known)}" if known else " has no dimensions"
                raise InputError(f"dims.{theirs}={name}: the critic{told}")


def column(values: Any) -> Tensor:
    """(N,) float64."""
    return torch.tensor(list(values), dtype=torch.float64)


def _mean_dim(answer: Answer, wanted: Sequence[str]) -> float:
    known = {name.casefold(): value for name, value in answer.dims.items()}
    found = [known[name] for name in wanted if name in known]
    return sum(found) / len(found) if len(found) == len(wanted) else math.nan


def findings(table: Table) -> Plain:
    """All numbers of an audit.

    Raises:
        InputError: as `check_critic`.
    """
    check_critic(table)
    dims = [dim for dim in dimensions(table.pairs) if not table.margin_of(dim).isnan().all()]
    adapter = fitted(table)
    return {
        "counts": counts(table),
        "answered": answered(table),
        "dims": {dim: by_dimension(table, dim) for dim in dict.fromkeys([OVERALL, *dims])},
        "unmatched": [dim for dim in dimensions(table.pairs) if dim not in (OVERALL, *dims)],
        "place": place(table),
        "people": among_people(table),
        "surest": [
            {"share": one.share, "accuracy": plain(one.accuracy)}
            for one in selective(majority(table.people), table.margin, table.prompts)
        ],
        "adapter": {"scale": adapter.scale, "ties": adapter.ties},
        "calibration": calibrations(table, adapter),
    }


def counts(table: Table) -> Plain:
    """Numbers of pairs, prompts, people and votes."""
    votes = [vote for pair in table.pairs for vote in pair.votes[OVERALL]]
    tally = tallies(table.people)
    decided = majority(table.people)
    return {
        "pairs": len(table.pairs),
        "prompts": int(table.prompts.max()) + 1,
        "videos": len({file for pair in table.pairs for file in (pair.first, pair.second)}),
        "votes": len(votes),
        "annotators": len({vote.annotator for vote in votes if vote.annotator}),
        "preferred": int((decided.abs() == 1).sum()),
        "ties": int((decided == 0).sum()),
        "divided": int(((tally == tally.max(1, keepdim=True).values).sum(1) > 1).sum()),
        "calibration": int(table.calibrating.sum()),
    }


def answered(table: Table) -> Plain:
    """The share of pairs with a verdict of the critic, and the faults of the others."""
    faults = Counter(one.fault or "unreadable" for one in table.answers if math.isnan(one.margin))
    share = mean_over_prompts((~table.margin.isnan()).double(), table.prompts)
    return {"share": plain(share), "faults": dict(faults.most_common())}


# --- Agreement -----------------------------------------------------------------------------------


def by_dimension(table: Table, dim: str) -> Plain:
    """Agreement of the critic with people, and of people among themselves, in one dimension."""
    people, margin, prompts = ratings(table.pairs, dim), table.margin_of(dim), table.prompts
    decided = majority(people)
    threshold = tie_threshold(decided[table.calibrating], margin[table.calibrating])
    rest = ~table.calibrating
    verdicts = three_way(margin, threshold)
    correct = credit(decided, margin)
    unanswered = (decided.abs() == 1) & margin.isnan()
    share = 0.5 + 0.5 * people.nanmean(0)
    return {
        "accuracy": plain(mean_over_prompts(correct, prompts)),
        "accuracy_all": plain(mean_over_prompts(correct.masked_fill(unanswered, 0.0), prompts)),
        "abstained": plain(mean_over_prompts(
            (margin == 0).double().masked_fill(correct.isnan(), math.nan), prompts)),
        "threshold": threshold,
        "accuracy_ties": plain(mean_over_prompts(right(decided, verdicts)[rest], prompts[rest])),
        "majority_class": _largest_class(decided[rest]),
        "kappa": plain(of_tables(
            kappa, contingency(decided[rest], verdicts[rest]), prompts[rest])),
        "spearman": number(spearman(margin, share)),
        "kendall": number(kendall(margin, share)),
        "scores": ranks_of_scores(table, dim),
        "people": ceiling(people, margin, prompts),
        "alpha": alphas(people[:, rest], verdicts[rest], prompts[rest]),
    }  # fmt: skip


def _largest_class(decided: Tensor) -> float | None:
    """The accuracy of always giving people's most frequent answer, ties included."""
    sizes = tallies(decided[None]).sum(0)
    return float(sizes.max() / sizes.sum()) if float(sizes.sum()) else None


def ceiling(people: Tensor, margin: Tensor, prompts: Tensor) -> Plain | None:
    """Agreement of one person with the others, and of the critic with the same others.

    None where no pair has verdicts by two people.
    """
    persons, critic = against_others(people, margin)
    everywhere = prompts.repeat(len(people))
    if bool(persons.isnan().all()):
        return None
    return {
        "accuracy": plain(mean_over_prompts(persons, everywhere)),
        "critic": plain(mean_over_prompts(critic, everywhere)),
        "difference": plain(mean_over_prompts(critic - persons, everywhere, least=-1.0)),
    }


def alphas(people: Tensor, verdicts: Tensor, prompts: Tensor) -> Plain:
    """Krippendorff's alpha of people, and of people and the critic together."""
    together = torch.cat([people, verdicts[None]])
    levels = {"nominal": nominal_alpha, "ordinal": ordinal_alpha}
    return {
        f"{name}_{level}": plain(of_tables(alpha, coincidences(raters), prompts))
        for level, alpha in levels.items()
        for name, raters in (("people", people), ("with_critic", together))
    }


def ranks_of_scores(table: Table, dim: str) -> Plain | None:
    """Rank correlations of the critic's margins and the differences of people's scores.

    None where people compared videos.
    """
    gaps = column(
        one.scores[dim][0] - one.scores[dim][1] if dim in one.scores else math.nan
        for one in table.pairs
    )
    margin = table.margin_of(dim)
    if bool(gaps.isnan().all()):
        return None
    return {"spearman": number(spearman(margin, gaps)), "kendall": number(kendall(margin, gaps))}


# --- Habits --------------------------------------------------------------------------------------


def place(table: Table) -> Plain | None:
    """The critic's position bias; None of a critic that rates one video at a time."""
    shown = column(one.shown for one in table.answers)
    swapped = column(one.swapped for one in table.answers)
    if bool((shown.isnan() & swapped.isnan()).all()):
        return None
    bias = place_bias(shown, swapped, table.prompts)
    return {"first": plain(bias.first), "flips": plain(bias.flips)}


def among_people(table: Table) -> Plain:
    """People's agreement with themselves on repeated pairs, and how often they prefer the left."""
    again, places = repeats(table.pairs, OVERALL)
    left, left_places = left_choices(table.pairs)
    decided = agreement(left.masked_fill(left == 0, math.nan))
    return {
        "again": plain(mean_over_prompts(stability(again), table.prompts[places])),
        "left": plain(mean_over_prompts(decided, table.prompts[left_places])),
    }


def consistency(table: Table, asked: Sequence[Sequence[Answer]]) -> Plain | None:
    """How often a critic gives the same answer when it is asked again; None: it was asked once.

    Args:
        asked: its answers, a sequence for each time; they are about the first pairs of the table.
    """
    if len(asked) < 2:
        return None
    size = len(asked[-1])
    verdicts = torch.stack([column(one.margin for one in turn[:size]) for turn in asked])
    threshold = tie_threshold(
        majority(table.people)[table.calibrating], table.margin[table.calibrating]
    )
    alike = stability(three_way(verdicts, threshold))
    return {"times": len(asked), "pairs": size,
            "alike": plain(mean_over_prompts(alike, table.prompts[:size]))}  # fmt: skip


# --- Probabilities -------------------------------------------------------------------------------


def log_odds(table: Table) -> Tensor:
    """(N,) the adapter's input: differences of scores, or the critic's own log-odds."""
    own = column(one.chance for one in table.answers)
    if bool(own.isnan().all()):
        return table.margin
    return own.clamp(1 - SURE, SURE).logit()


def fitted(table: Table) -> Adapter:
    """Maximum likelihood scale and k of people's votes, on the calibration split."""
    first_tie_second = tallies(table.people).flip(1)
    return fit_adapter(log_odds(table)[table.calibrating], first_tie_second[table.calibrating])


def calibrations(table: Table, adapter: Adapter) -> Plain:
    """Calibration of the critic's probabilities, outside of the calibration split.

    ``own``: its own ones, None of a critic that rates; ``fitted``: those of the adapter. Both are
    None where it gave no verdict.
    """
    rest = ~table.calibrating
    share = 0.5 + 0.5 * table.people.nanmean(0)
    own = column(one.chance for one in table.answers)
    found: Plain = {"own": None, "fitted": None}
    for name, chance in (("own", own), ("fitted", adapter.expected(log_odds(table)))):
        if not bool(chance.isnan().all()):
            one = reliability(chance[rest], share[rest], table.prompts[rest], bins=table.rules.bins)
            shown = [{"confidence": part.confidence, "accuracy": plain(part.accuracy)}
                     for part in one.bins]  # fmt: skip
            found[name] = {"ece": number(one.ece), "brier": plain(one.brier), "bins": shown}
    always = torch.full_like(share[rest], 0.5).masked_fill(table.margin[rest].isnan(), math.nan)
    guess = reliability(always, share[rest], table.prompts[rest])
    found["brier_of_half"] = number(guess.brier.value)
    return found


# --- Plain JSON ----------------------------------------------------------------------------------


def plain(estimate: Estimate) -> Plain:
    """An estimate as JSON, which has no NaN."""
    return {name: number(value) for name, value in estimate._asdict().items()}


def number(value: float) -> float | int | None:
    """A number as JSON; None for NaN."""
    return value if math.isfinite(value) else None
