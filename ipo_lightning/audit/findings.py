"""What follows from people's votes and a critic's answers, as plain JSON.

Everything that is chosen by looking at people's votes (the threshold of ties, the scale and k of
probabilities) is chosen on the calibration split and counted on the other prompts.
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
"""Probabilities of a pairwise critic are taken for at most this, as log-odds must be finite."""


@dataclass(frozen=True)
class Rules:
    """How an audit counts.

    Args:
        calibration: share of the prompts on which thresholds are chosen.
        seed: of the split.
        bins: of the calibration plot.
        dims: people's dimension -> the critic's dimensions whose mean stands for it; those of the
            same name need not be said.
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
        """(N,) integers: which pairs are of one prompt."""
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
        """(people, N) verdicts as a whole."""
        return ratings(self.pairs, OVERALL)

    def margin_of(self, dim: str) -> Tensor:
        """The critic's margins by one of people's dimensions; NaN where it has none."""
        if dim == OVERALL:
            return self.margin
        wanted = [name.casefold() for name in self.rules.dims.get(dim, [dim])]
        return column(_mean_dim(one, wanted) for one in self.answers)


def check_people(pairs: Sequence[Compared], rules: Rules) -> None:
    """Refuse `Rules.dims` of what people were not asked about.

    Raises:
        InputError: names the dimension, and those that there are.
    """
    known = [dim for dim in dimensions(pairs) if dim != OVERALL]
    for theirs in rules.dims:
        if theirs == OVERALL:
            raise InputError(f"dims.{OVERALL}: the critic's own verdict as a whole stands for it")
        if theirs not in known:
            asked = ", ".join(known) or f"{OVERALL} alone"
            raise InputError(f"dims.{theirs}: people were asked about {asked}")


def check_critic(table: Table) -> None:
    """Refuse `Rules.dims` of what the critic does not tell; while it tells nothing, nothing.

    Raises:
        InputError: names the dimension, and those that there are.
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
        InputError: see `check_critic`.
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
    """How much there is of everything."""
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
    """How many pairs have a verdict, and why the others have none."""
    faults = Counter(one.fault or "unreadable" for one in table.answers if math.isnan(one.margin))
    share = mean_over_prompts((~table.margin.isnan()).double(), table.prompts)
    return {"share": plain(share), "faults": dict(faults.most_common())}


# --- Agreement -----------------------------------------------------------------------------------


def by_dimension(table: Table, dim: str) -> Plain:
    """Agreement on one of people's dimensions, beside that of people among themselves."""
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
    """What always giving people's most frequent answer would reach, a tie included."""
    sizes = tallies(decided[None]).sum(0)
    return float(sizes.max() / sizes.sum()) if float(sizes.sum()) else None


def ceiling(people: Tensor, margin: Tensor, prompts: Tensor) -> Plain | None:
    """How often one person agrees with the others, and the critic with the same others.

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
    """Krippendorff's alpha of people alone, and with the critic as one more of them."""
    together = torch.cat([people, verdicts[None]])
    levels = {"nominal": nominal_alpha, "ordinal": ordinal_alpha}
    return {
        f"{name}_{level}": plain(of_tables(alpha, coincidences(raters), prompts))
        for level, alpha in levels.items()
        for name, raters in (("people", people), ("with_critic", together))
    }


def ranks_of_scores(table: Table, dim: str) -> Plain | None:
    """Rank correlations of margins and of people's differences of scores, where people rated.

    None where they compared.
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
    """What the order does to the critic; None for one that sees one video at a time."""
    shown = column(one.shown for one in table.answers)
    swapped = column(one.swapped for one in table.answers)
    if bool((shown.isnan() & swapped.isnan()).all()):
        return None
    bias = place_bias(shown, swapped, table.prompts)
    return {"first": plain(bias.first), "flips": plain(bias.flips)}


def among_people(table: Table) -> Plain:
    """People's own habits: the same person on the same pair again, and the video on the left."""
    again, places = repeats(table.pairs, OVERALL)
    left, left_places = left_choices(table.pairs)
    decided = agreement(left.masked_fill(left == 0, math.nan))
    return {
        "again": plain(mean_over_prompts(stability(again), table.prompts[places])),
        "left": plain(mean_over_prompts(decided, table.prompts[left_places])),
    }


def consistency(table: Table, asked: Sequence[Sequence[Answer]]) -> Plain | None:
    """How alike a critic's answers are when it is asked the same again.

    ``asked``: a sequence of answers for every time, about pairs of which the table's are the first.
    None where it was asked once.
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
    """Margins (N,) that the adapter scales: differences of scores, or the critic's own log-odds."""
    own = column(one.chance for one in table.answers)
    if bool(own.isnan().all()):
        return table.margin
    return own.clamp(1 - SURE, SURE).logit()


def fitted(table: Table) -> Adapter:
    """Scale and k that explain people's votes best, on the calibration split."""
    first_tie_second = tallies(table.people).flip(1)
    return fit_adapter(log_odds(table)[table.calibrating], first_tie_second[table.calibrating])


def calibrations(table: Table, adapter: Adapter) -> Plain:
    """Whether probabilities mean what they say, outside the calibration split.

    ``own``: the critic's, None where it gives scores; ``fitted``: by the adapter. Both are None
    where it gave no verdict.
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
    """A number as JSON: None for what is not known."""
    return value if math.isfinite(value) else None
