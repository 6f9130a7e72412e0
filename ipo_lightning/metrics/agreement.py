"""Agreement of raters on the same pairs: a critic and people, or people among themselves.

Verdicts are columns (N,) of floats: 1 where the first video is better, -1 where the second is, 0
for a tie, NaN for no verdict. Margins are the critic's: above 0 where it holds the first for the
better, and the larger the surer. Whoever exchanges the two videos of any pair changes nothing here.

Intervals of means are those of `ipo_lightning.metrics.intervals`; of kappa and the like, which are
no means, percentile bootstraps over prompts.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ipo_lightning.metrics.intervals import share_interval
from ipo_lightning.metrics.win_rate import agreement, check_columns

RESAMPLES = 2000
LEVEL = 0.95
CATEGORIES = (-1.0, 0.0, 1.0)
"""Second, tie, first: in the order of preference, which ordinal statistics use."""


class Estimate(NamedTuple):
    """A number with its interval; NaN where there is nothing to tell it from."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """Pairs, or videos, that it is made of."""


def mean_over_prompts(values: Tensor, prompts: Tensor, *, least: float = 0.0) -> Estimate:
    """Mean of (N,) values, NaN left out; ``prompts`` (N,) integers say which belong together.

    With one prompt nothing is known about others, and there is no interval.

    Args:
        least: the least that a value can be; the most is 1.
    """
    check_columns(values, prompts)
    known = ~values.isnan()
    one, count = prompts[known], int(known.sum())
    share = share_interval((values[known].double() - least) / (1 - least), one, LEVEL)
    value, low, high = (least + (1 - least) * bound for bound in share)
    if len(one.unique()) < 2:
        return Estimate(value, n=count)
    return Estimate(value, low, high, count)


def of_tables(
    statistic: Callable[[Tensor], Tensor], tables: Tensor, prompts: Tensor, *, seed: int = 0
) -> Estimate:
    """A statistic of summed tables, such as kappa, with its interval.

    Args:
        statistic: (..., K, K) -> (...), NaN where it is not defined.
        tables: (N, K, K), what each pair adds to the table. prompts: (N,) integers.
    """
    _, index = prompts.unique(return_inverse=True)
    groups, rows = int(index.max()) + 1 if len(index) else 0, int(tables.flatten(1).any(1).sum())
    sums = tables.new_zeros(groups, *tables.shape[1:]).index_add(0, index, tables)
    value = float(statistic(sums.sum(0)))
    if groups < 2:
        return Estimate(value, n=rows)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(groups, (RESAMPLES, groups), generator=generator)
    times = sums.new_zeros(RESAMPLES, groups).scatter_add_(
        1, drawn, torch.ones(drawn.shape).to(sums)
    )
    found = statistic((times @ sums.flatten(1)).unflatten(1, sums.shape[1:]))
    found = found[~found.isnan()]
    if not len(found):
        return Estimate(value, n=rows)
    tail = (1 - LEVEL) / 2
    low, high = found.quantile(torch.tensor([tail, 1 - tail], dtype=found.dtype)).tolist()
    return Estimate(value, low, high, rows)


# --- Accuracy ------------------------------------------------------------------------------------


def credit(people: Tensor, margin: Tensor) -> Tensor:
    """Accuracy without ties, a pair at a time (N,): 1 for the people's side, 0 for the other.

    A margin of exactly 0 has half: half of such pairs would be right by chance. NaN where people
    had no preference, or the critic no verdict.
    """
    check_columns(people, margin)
    return agreement((people * _sign(margin)).masked_fill(people == 0, math.nan))


def three_way(margin: Tensor, threshold: float) -> Tensor:
    """Margins as verdicts: a tie where the margin is at most ``threshold`` >= 0."""
    return _sign(margin).masked_fill(margin.abs() <= threshold, 0.0)


def _sign(values: Tensor) -> Tensor:
    """Signs, with NaN kept: torch calls its sign 0, which would be a tie."""
    return torch.where(values.isnan(), values, values.sign())


def right(people: Tensor, verdicts: Tensor) -> Tensor:
    """Accuracy with ties, a pair at a time (N,): 1 for the people's verdict, a tie included."""
    check_columns(people, verdicts)
    missing = people.isnan() | verdicts.isnan()
    return (people == verdicts).double().masked_fill(missing, math.nan)


def tie_threshold(people: Tensor, margin: Tensor) -> float:
    """The threshold of `three_way` that agrees best with people; the least of several.

    Only thresholds that are some pair's margin are looked at, with all pairs of that margin on the
    same side: VideoAlign's ``calc_accuracy_with_ties`` also counts the states in between, in which
    one of two equal margins is a tie and the other is not. No threshold gives such a state; with a
    critic of few different margins it flatters, the more so if ties come first in the file.

    The idea of choosing it is Deutsch et al. 2023 (https://arxiv.org/abs/2305.14324). Choose it on
    other pairs than those that are reported.
    """
    check_columns(people, margin)
    known = ~(people.isnan() | margin.isnan())
    people, margin = people[known], margin[known].double()
    if not len(margin):
        return 0.0
    # A pair that becomes a tie gains where people tie, and loses where it was right before.
    gain = (people == 0).double() - ((people != 0) & (people == margin.sign())).double()
    levels, place = torch.cat([margin.abs(), margin.new_zeros(1)]).unique(return_inverse=True)
    gains = torch.zeros_like(levels).index_add(0, place[:-1], gain)
    total = gains.cumsum(0)
    return float(levels[total == total.max()][0])


class Selective(NamedTuple):
    """How right a critic is on the pairs that it is surest of."""

    share: float
    """Of the pairs on which people had a preference and the critic a verdict."""
    accuracy: Estimate


def selective(
    people: Tensor, margin: Tensor, prompts: Tensor, shares: tuple[float, ...] = (0.25, 0.5, 0.75)
) -> list[Selective]:
    """Accuracy without ties on the surest shares of the pairs: by the size of the margin.

    Pairs of the margin at which a share ends are taken all, so that no order in a file matters; the
    share that results is told, once where several are the same, and not where it is all pairs.
    """
    credits = credit(people, margin)
    known = ~credits.isnan()
    credits, sizes, prompts = credits[known], margin[known].abs(), prompts[known]
    found = []
    for share in shares if len(sizes) else ():
        least = sizes.sort(descending=True).values[math.ceil(share * len(sizes)) - 1]
        kept = sizes >= least
        accuracy = mean_over_prompts(credits[kept], prompts[kept])
        found.append(Selective(float(kept.double().mean()), accuracy))
    return list({one.share: one for one in found if one.share < 1}.values())


# --- Several people ------------------------------------------------------------------------------


def majority(ratings: Tensor) -> Tensor:
    """What most of the people said of each pair (N,); a tie where several answers lead alike.

    ``ratings``: (people, N) verdicts, NaN where somebody was not asked; NaN where nobody was.
    """
    counts = tallies(ratings)
    most = counts.max(1).values
    leads = (counts == most[:, None]).double()
    verdict = torch.where(leads.sum(1) == 1, leads @ leads.new_tensor(CATEGORIES), 0.0)
    return verdict.masked_fill(most == 0, math.nan)


def tallies(ratings: Tensor) -> Tensor:
    """How many people said second, tie, first of each pair: (people, N) -> (N, 3)."""
    return torch.stack([(ratings == one).sum(0) for one in CATEGORIES], 1).double()


def against_others(ratings: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """`credit` of each person against the majority of the others, and the critic's for the same.

    Both (people * N,): what one more person reaches is the ceiling that a critic is held to, and
    both answer to the same targets. NaN where there are no others with a preference, or either has
    no verdict.
    """
    persons, critic = [], []
    for row in range(len(ratings)):
        others = majority(torch.cat([ratings[:row], ratings[row + 1 :]]))
        own, its = credit(others, ratings[row]), credit(others, margin)
        persons.append(own.masked_fill(its.isnan(), math.nan))
        critic.append(its.masked_fill(own.isnan(), math.nan))
    return torch.cat(persons), torch.cat(critic)


# --- Beyond chance -------------------------------------------------------------------------------


def kappa(table: Tensor) -> Tensor:
    """Cohen's kappa (1960) of `contingency` tables (..., K, K), added up: -> (...).

    1 is full agreement, 0 what two raters with these habits would reach by chance. NaN where both
    always say the same one thing.
    """
    shares = table / table.sum((-1, -2), keepdim=True)
    by_chance = (shares.sum(-1) * shares.sum(-2)).sum(-1)
    observed = shares.diagonal(dim1=-1, dim2=-2).sum(-1)
    return ((observed - by_chance) / (1 - by_chance)).masked_fill(by_chance >= 1, math.nan)


def contingency(first: Tensor, second: Tensor) -> Tensor:
    """What each pair adds to the table of two raters' answers, (N,), (N,) -> (N, 3, 3).

    Nothing, where either has no verdict.
    """
    check_columns(first, second)
    answers = torch.tensor(CATEGORIES, dtype=torch.float64)
    one, other = ((rater[:, None] == answers).double() for rater in (first, second))
    return one[:, :, None] * other[:, None, :]


def nominal_alpha(coincidences_: Tensor) -> Tensor:
    """Krippendorff's alpha of `coincidences` (..., K, K), added up, every disagreement alike.

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability": 1 less observed over expected
    disagreement. NaN where no pair has two ratings, or all ratings are the same.
    """
    return _alpha(coincidences_, 1 - torch.eye(coincidences_.shape[-1]).to(coincidences_))


def ordinal_alpha(coincidences_: Tensor) -> Tensor:
    """As `nominal_alpha`, of ranked categories: the opposite verdict counts for more than a tie."""
    totals = coincidences_.sum(-1)
    middles = totals.cumsum(-1) - totals / 2  # two are as far apart as ratings lie between them
    return _alpha(coincidences_, (middles[..., :, None] - middles[..., None, :]).square())


def _alpha(coincidences_: Tensor, distance: Tensor) -> Tensor:
    totals = coincidences_.sum(-1)
    expected = (totals[..., :, None] * totals[..., None, :] * distance).sum((-1, -2))
    observed = (coincidences_ * distance).sum((-1, -2))
    alpha = 1 - (totals.sum(-1) - 1) * observed / expected
    return alpha.masked_fill(expected == 0, math.nan)


def coincidences(ratings: Tensor, categories: Sequence[float] = CATEGORIES) -> Tensor:
    """What each pair adds to the matrix of coincidences, (N, K, K), for alpha.

    Args:
        ratings: (raters, N), NaN where a rater did not rate; a pair with one rating adds nothing.
        categories: in their order.
    """
    counts = torch.stack([(ratings == one).sum(0) for one in categories], 1).double()
    together = counts[:, :, None] * counts[:, None, :] - torch.diag_embed(counts)
    return together / (counts.sum(1) - 1).clamp_min(1)[:, None, None]


# --- Habits of a critic --------------------------------------------------------------------------


class PlaceBias(NamedTuple):
    """What the place of a video does to a critic that sees two at a time."""

    first: Estimate
    """Share of the first place among its decided answers; 0.5 is fair."""
    flips: Estimate
    """Share of pairs whose verdict is not the same in both orders."""


def place_bias(shown: Tensor, swapped: Tensor, prompts: Tensor) -> PlaceBias:
    """Habits from two answers a pair, each about the video in the first place.

    ``shown`` (N,) answers (A, B), ``swapped`` (N,) answers (B, A): a critic that is blind to the
    place says the opposite in the second, or a tie in both.
    """
    check_columns(shown, swapped, prompts)
    both = ~(shown.isnan() | swapped.isnan())
    answers = torch.cat([shown, swapped])
    decided = agreement(answers.masked_fill(answers == 0, math.nan))
    flips = (shown != -swapped).double().masked_fill(~both, math.nan)
    return PlaceBias(
        mean_over_prompts(decided, torch.cat([prompts, prompts])),
        mean_over_prompts(flips, prompts),
    )


def stability(answers: Tensor) -> Tensor:
    """How alike repeated answers are, a question at a time (N,): share of equal pairs among them.

    ``answers``: (repeats, N) verdicts, NaN for no answer; NaN for a question with fewer than two.
    """
    counts = tallies(answers)
    sizes = counts.sum(1)
    alike = (counts * (counts - 1)).sum(1) / (sizes * (sizes - 1))
    return alike.masked_fill(sizes < 2, math.nan)


# --- Probabilities -------------------------------------------------------------------------------


class Bin(NamedTuple):
    """Pairs about which a critic is equally sure."""

    confidence: float
    """Mean of the probabilities that it gave its own side, 0.5 to 1."""
    accuracy: Estimate
    """Mean share of people on that side, a tie counting half."""


class Reliability(NamedTuple):
    """Whether probabilities mean what they say."""

    bins: list[Bin]
    ece: float
    """Expected calibration error: mean distance of confidence and accuracy, by bin."""
    brier: Estimate
    """Mean squared error of P(A is better); 0.25 is what always saying 0.5 has, without ties."""


def reliability(
    probability: Tensor, people: Tensor, prompts: Tensor, *, bins: int = 10
) -> Reliability:
    """Calibration of P(first is better), a tie counting half.

    Which of two videos is called the first means nothing, so each pair is looked at from the side
    that the critic prefers; where it prefers none, half of the people are on its side.

    Args:
        probability: (N,) in [0, 1]. people: (N,) share of people for the first, a tie half.
        prompts: (N,) integers. bins: of equal width, from 0.5 to 1.
    """
    check_columns(probability, people, prompts)
    known = ~(probability.isnan() | people.isnan())
    probability, people, prompts = probability[known].double(), people[known], prompts[known]
    brier = mean_over_prompts((probability - people).square(), prompts)
    turned = probability < 0.5
    sure = torch.where(turned, 1 - probability, probability)
    side = torch.where(turned, 1 - people, people).masked_fill(probability == 0.5, 0.5)
    index = ((sure - 0.5) * 2 * bins).long().clamp(0, bins - 1)
    members = [index == i for i in range(bins) if (index == i).any()]
    found = [
        Bin(float(sure[rows].mean()), mean_over_prompts(side[rows], prompts[rows]))
        for rows in members
    ]
    total = sum(one.accuracy.n for one in found)
    gaps = [one.accuracy.n * abs(one.confidence - one.accuracy.value) for one in found]
    return Reliability(found, sum(gaps) / total if total else math.nan, brier)


class Adapter(NamedTuple):
    """Margins to probabilities: ``rao_kupper(scale * margin, ties)`` of `preferences`."""

    scale: float
    ties: float
    """k >= 1."""

    def expected(self, margin: Tensor) -> Tensor:
        """Chance that the first is better, a tie counting half, (N,)."""
        difference = self.scale * margin.double()
        first = (difference - math.log(self.ties)).sigmoid()
        second = (-difference - math.log(self.ties)).sigmoid()
        return 0.5 + 0.5 * (first - second)


def fit_adapter(margin: Tensor, votes: Tensor) -> Adapter:
    """Scale and k of Rao and Kupper's model by maximum likelihood.

    The log-likelihood is concave in (scale, ln k), so Newton's method finds its one top. One vote
    for each answer, spread evenly over all pairs, is added: without them a critic that is never
    wrong would have an infinite scale. Where nobody ever ties, k is 1.

    Args:
        margin: (N,), NaN where the critic has none.
        votes: (N, 3) how many people said first, tie, second.
    """
    known = ~margin.isnan() & (votes.sum(1) > 0)
    margin, votes = margin[known].double(), votes[known].double()
    if not len(margin) or not margin.abs().sum() > 0:
        return Adapter(0.0, 1.0)
    unit = float(margin.square().mean().sqrt())  # so that the steps do not depend on it
    ties = bool(votes[:, 1].sum() > 0)
    spread = torch.tensor([1.0, float(ties), 1.0], dtype=torch.float64) / len(votes)
    scale, log_k = _newton(margin / unit, votes + spread, ties)
    return Adapter(scale / unit, math.exp(log_k))


def _log_likelihood(point: Tensor, margin: Tensor, votes: Tensor) -> Tensor:
    """Of (scale, ln k); with k = 1 there is no tie, and its votes must be 0."""
    difference, log_k = point[0] * margin, point[1]
    first, second = logsigmoid(difference - log_k), logsigmoid(-difference - log_k)
    total = (votes[:, 0] * first + votes[:, 2] * second).sum()
    if not votes[:, 1].any():
        return total
    return total + (votes[:, 1] * (first + second + (2 * log_k).expm1().log())).sum()


def _newton(margin: Tensor, votes: Tensor, ties: bool, steps: int = 100) -> tuple[float, float]:
    """The top of the likelihood, by steps that are halved until they climb."""
    point = torch.tensor([0.0, 0.5 if ties else 0.0], dtype=torch.float64)
    free = 2 if ties else 1

    def climb(at: Tensor) -> Tensor:
        return _log_likelihood(torch.cat([at, point[free:]]), margin, votes)

    at = point[:free]
    for _ in range(steps):
        gradient = torch.autograd.functional.jacobian(climb, at)
        hessian = torch.autograd.functional.hessian(climb, at)
        step = torch.linalg.solve(hessian, -gradient)
        here, size = climb(at), 1.0
        while size > 1e-9 and (
            (ties and at[1] + size * step[1] <= 0) or not climb(at + size * step) >= here
        ):
            size /= 2
        at = at + size * step
        if float((size * step).abs().max()) < 1e-10:
            break
    found = torch.cat([at, point[free:]])
    return float(found[0]), float(found[1])


# --- Scores of single videos ---------------------------------------------------------------------


def spearman(first: Tensor, second: Tensor) -> float:
    """Correlation of ranks, equal values sharing their mean rank; NaN where one is constant."""
    check_columns(first, second)
    known = ~(first.isnan() | second.isnan())
    ranks = torch.stack([_ranks(first[known]), _ranks(second[known])])
    ranks = ranks - ranks.mean(1, keepdim=True) if ranks.numel() else ranks
    spread = float(ranks.square().sum(1).prod().sqrt())
    return float((ranks[0] * ranks[1]).sum()) / spread if spread else math.nan


def _ranks(values: Tensor) -> Tensor:
    """(N,) mean ranks from 1, float64."""
    _, place, sizes = values.unique(return_inverse=True, return_counts=True)
    ends = sizes.cumsum(0).double()
    return (ends - (sizes - 1) / 2)[place]


def kendall(first: Tensor, second: Tensor) -> float:
    """Kendall's tau-b: concordant less discordant pairs, corrected for ties; NaN for a constant."""
    check_columns(first, second)
    known = ~(first.isnan() | second.isnan())
    one, other = first[known].double(), second[known].double()
    together = one_known = other_known = 0.0
    for row in range(len(one)):  # by rows: all at once would be N x N
        a, b = (one[row + 1 :] - one[row]).sign(), (other[row + 1 :] - other[row]).sign()
        together += float((a * b).sum())
        one_known += float(a.abs().sum())
        other_known += float(b.abs().sum())
    spread = math.sqrt(one_known * other_known)
    return together / spread if spread else math.nan
