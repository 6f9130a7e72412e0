"""Agreement of critics and people: by hand, by invariants, against published examples."""

import math
import random
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ipo_lightning.metrics.agreement import (
    Adapter,
    coincidences,
    contingency,
    credit,
    fit_adapter,
    kappa,
    kendall,
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
    three_way,
    tie_threshold,
)
from ipo_lightning.metrics.preferences import rao_kupper

NAN = math.nan


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def prompts(count: int) -> Tensor:
    return torch.arange(count)


def drawn(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """People's verdicts and a critic's margins, of few different values."""
    generator = torch.Generator().manual_seed(seed)
    people = torch.randint(-1, 2, (count,), generator=generator).double()
    return people, (people + torch.randint(-2, 3, (count,), generator=generator)).double()


# ---------------------------------------------------------------- accuracy


def test_credit_by_hand() -> None:
    people = column(1, 1, 1, -1, 0, NAN, 1)
    margin = column(0.2, -3, 0, -1, 5, 1, NAN)
    torch.testing.assert_close(
        credit(people, margin), column(1, 0, 0.5, 1, NAN, NAN, NAN), equal_nan=True
    )


def test_an_infinite_margin_is_a_side() -> None:
    assert credit(column(1, -1), column(math.inf, math.inf)).tolist() == [1, 0]


def test_exchanging_the_videos_changes_nothing() -> None:
    people, margin = drawn(200)
    flip = torch.where(torch.arange(200) % 3 == 0, -1.0, 1.0).double()
    torch.testing.assert_close(
        credit(people * flip, margin * flip), credit(people, margin), equal_nan=True
    )
    assert tie_threshold(people * flip, margin * flip) == tie_threshold(people, margin)
    assert fit_adapter(margin * flip, votes(people * flip)) == pytest.approx(
        fit_adapter(margin, votes(people))
    )
    chance = Adapter(0.7, 1.5).expected(margin)
    share = 0.5 + 0.5 * people
    turned = torch.where(flip < 0, 1 - chance, chance), torch.where(flip < 0, 1 - share, share)
    assert reliability(*turned, prompts(200)).ece == pytest.approx(
        reliability(chance, share, prompts(200)).ece
    )


def test_threshold_by_hand() -> None:
    """0.3 makes three ties right and loses one right answer; 0.5 would lose another."""
    people = column(0, 0, 0, 1, 1, -1)
    margin = column(0.1, 0.3, -0.3, 0.2, 0.5, -0.9)
    threshold = tie_threshold(people, margin)
    assert threshold == pytest.approx(0.3)
    assert right(people, three_way(margin, threshold)).tolist() == [1, 1, 1, 0, 1, 1]


def test_without_ties_among_people_only_no_margin_is_a_tie() -> None:
    assert tie_threshold(column(1, -1, 1), column(0.2, -0.1, 0.5)) == 0
    verdicts = three_way(column(0.0, 0.1, NAN), 0.0)
    assert verdicts[:2].tolist() == [0, 1]
    assert verdicts[2].isnan(), "no verdict is no tie"


def test_threshold_is_the_best_of_all() -> None:
    """Against every threshold in turn."""
    for seed in range(20):
        people, margin = drawn(40, seed)
        every = [0.0, *margin.abs().tolist()]
        shares = {t: float(right(people, three_way(margin, t)).mean()) for t in every}
        best = max(shares.values())
        assert tie_threshold(people, margin) == min(t for t in shares if shares[t] == best)


def best_state(people: Tensor, margin: Tensor) -> float:
    """What VideoAlign's count maximises: it makes pairs ties one at a time, in the order of their
    margins and, among equal ones, of the file, and looks at the accuracy after each."""
    order = margin.abs().argsort(stable=True)
    people, margin = people[order], margin[order]
    before = ((people != 0) & (people == margin.sign())).double()
    after = (people == 0).double()
    states = [(after[:k].sum() + before[k:].sum()) / len(people) for k in range(1, len(people) + 1)]
    return float(torch.stack(states).max())


def test_a_tie_count_that_over_reports_and_ours_that_does_not() -> None:
    """A critic of three answers that guesses, on a file whose ties come first."""
    generator = torch.Generator().manual_seed(0)
    people = torch.randint(-1, 2, (3000,), generator=generator).double()
    guesses = torch.randint(-1, 2, (3000,), generator=generator).double()
    ties_first = (people != 0).double().argsort(stable=True)
    possible = max(
        float(right(people, three_way(guesses, t)).mean()) for t in (0.0, 1.0)
    )  # what any threshold reaches
    theirs = best_state(people[ties_first], guesses[ties_first])
    assert theirs > possible + 0.15
    assert best_state(people, guesses) > possible
    for order in (torch.arange(3000), ties_first):
        threshold = tie_threshold(people[order], guesses[order])
        ours = float(right(people, three_way(guesses, threshold)).mean())
        assert ours == pytest.approx(possible)
        assert ours == pytest.approx(1 / 3, abs=0.02)


def test_the_smallest_case_that_over_reports() -> None:
    people, margin = column(0, 1), column(1, 1)
    assert best_state(people, margin) == 1
    assert float(right(people, three_way(margin, tie_threshold(people, margin))).mean()) == 0.5


def test_surest_shares_by_hand() -> None:
    people, margin = column(1, 1, 1, 1, 0), column(4, 3, -2, -1, 9)
    found = selective(people, margin, prompts(5), (0.25, 0.5, 0.75, 1.0))
    assert [(one.share, one.accuracy.value, one.accuracy.n) for one in found] == [
        (0.25, 1, 1), (0.5, 1, 2), (0.75, pytest.approx(2 / 3), 3),
    ]  # fmt: skip


def test_equal_margins_are_taken_together() -> None:
    found = selective(column(1, -1, 1, 1), column(2, 2, 2, 1), prompts(4), (0.25, 0.5))
    assert [(one.share, one.accuracy.n) for one in found] == [(0.75, 3)]
    assert selective(column(1, 1), column(1, 1), prompts(2), (0.5,)) == [], "nothing to choose by"
    assert selective(column(0), column(1), prompts(1)) == []


# ---------------------------------------------------------------- intervals


def test_intervals_are_over_prompts() -> None:
    """Ten equal pairs of a prompt tell no more than one."""
    values = (torch.arange(40) % 4 == 0).double()
    alone = mean_over_prompts(values, prompts(40))
    repeated = mean_over_prompts(values.repeat_interleave(10), prompts(40).repeat_interleave(10))
    assert alone.value == repeated.value == 0.25
    assert (alone.low, alone.high) == pytest.approx((repeated.low, repeated.high))
    assert alone.low < 0.25 < alone.high and (alone.n, repeated.n) == (40, 400)
    narrow = mean_over_prompts(values.repeat(10), prompts(400))
    assert narrow.high - narrow.low < 0.5 * (alone.high - alone.low)


def test_few_prompts_that_are_all_right_are_no_proof() -> None:
    """Were chance 1/2, three of three would be right in 12.5 % of audits, eight of eight in 0.4."""
    three = mean_over_prompts(column(1, 1, 1), prompts(3))
    assert (three.value, three.high) == (1, 1)
    assert mean_over_prompts(torch.ones(5), prompts(5)).low < 0.5
    assert mean_over_prompts(torch.ones(8), prompts(8)).low > 0.5
    wrong = mean_over_prompts(torch.zeros(3), prompts(3))
    assert (wrong.low, wrong.high) == (0, pytest.approx(1 - three.low))
    ahead = mean_over_prompts(torch.ones(3), prompts(3), least=-1.0)
    assert ahead.low == pytest.approx(2 * three.low - 1)


def test_what_is_not_known_is_nan() -> None:
    nothing = mean_over_prompts(column(NAN, NAN), prompts(2))
    assert math.isnan(nothing.value) and nothing.n == 0
    one = mean_over_prompts(column(1, 0), torch.zeros(2))
    assert one.value == 0.5 and math.isnan(one.low)


def test_bootstrap_of_tables_agrees_with_the_interval_of_a_mean() -> None:
    """The share of the diagonal, by both."""
    first, second = drawn(90)
    second = second.sign()
    found = of_tables(
        lambda table: table.diagonal(dim1=-1, dim2=-2).sum(-1) / table.sum((-1, -2)),
        contingency(first, second), prompts(90) // 2,
    )  # fmt: skip
    mean = mean_over_prompts(right(first, second), prompts(90) // 2)
    assert (found.value, found.n) == (pytest.approx(mean.value), mean.n)
    assert (found.low, found.high) == pytest.approx((mean.low, mean.high), abs=0.02)


# ---------------------------------------------------------------- beyond chance


def cohen_kappa(first: Tensor, second: Tensor) -> float:
    return float(kappa(contingency(first, second).sum(0)))


def test_kappa_by_hand() -> None:
    """Observed 3/4; by chance 1/2 x 1/4 + 1/4 x 1/4 + 1/4 x 1/2 = 5/16; (12 - 5) / (16 - 5)."""
    first, second = column(1, 1, 0, -1, NAN), column(1, -1, 0, -1, 1)
    assert cohen_kappa(first, second) == pytest.approx(7 / 11)
    assert cohen_kappa(second, first) == cohen_kappa(first, second)
    assert cohen_kappa(first, first) == 1
    assert math.isnan(cohen_kappa(column(1, 1), column(1, 1)))


def test_kappa_of_a_guess_is_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    people, guesses = (torch.randint(-1, 2, (20000,), generator=generator) for _ in range(2))
    assert abs(cohen_kappa(people.double(), guesses.double())) < 0.02


# Krippendorff 2011, section D: four observers, twelve units, values missing.
PUBLISHED = torch.tensor([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
])  # fmt: skip


def krippendorff_alpha(ratings: Tensor, level: str) -> float:
    alpha = {"nominal": nominal_alpha, "ordinal": ordinal_alpha}[level]
    categories = sorted(set(ratings[~ratings.isnan()].tolist()))
    return float(alpha(coincidences(ratings, categories).sum(0)))


def test_alpha_of_the_published_example() -> None:
    assert krippendorff_alpha(PUBLISHED, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(PUBLISHED, "ordinal") == pytest.approx(0.815, abs=5e-4)


def test_alpha_of_two_observers_and_binary_values() -> None:
    """Krippendorff 2011, section A: ten units, four zeros against ones; alpha 0.095."""
    first = column(0, 1, 0, 0, 0, 0, 0, 0, 1, 0)
    second = column(1, 1, 1, 0, 0, 1, 0, 0, 0, 0)
    alpha = krippendorff_alpha(torch.stack([first, second]), "nominal")
    assert alpha == pytest.approx(0.095, abs=5e-4)


def test_alpha_by_hand() -> None:
    """Units (1, 1) and (-1, 0): two disagreeing coincidences of 4 values; 1 - 3 x 2 / 10."""
    ratings = torch.tensor([[1.0, -1.0], [1.0, 0.0]])
    assert krippendorff_alpha(ratings, "nominal") == pytest.approx(0.4)
    assert math.isnan(krippendorff_alpha(torch.ones(2, 3), "nominal"))
    assert math.isnan(krippendorff_alpha(torch.tensor([[1.0, NAN], [NAN, 0.0]]), "ordinal"))


def test_alpha_as_the_package_has_it() -> None:
    package = pytest.importorskip("krippendorff")
    generator = torch.Generator().manual_seed(1)
    ratings = torch.randint(-1, 2, (5, 40), generator=generator).double()
    ratings[torch.rand(5, 40, generator=generator) < 0.4] = NAN
    for level in ("nominal", "ordinal"):
        theirs = package.alpha(ratings.numpy(), level_of_measurement=level)
        assert krippendorff_alpha(ratings, level) == pytest.approx(theirs)


def test_ordinal_alpha_forgives_a_tie() -> None:
    """More than the opposite verdict, where the counts are the same."""
    sides = column(1, 1, 1, -1, -1, -1, 0, 0, 0)
    near, far = sides.clone(), sides.clone()
    near[0], near[6] = 0, 1
    far[0], far[3] = -1, 1
    alphas = [krippendorff_alpha(torch.stack([sides, one]), "ordinal") for one in (near, far)]
    assert alphas[0] > alphas[1] + 0.1


# ---------------------------------------------------------------- habits


def test_place_bias_by_hand() -> None:
    shown = column(1, 1, 1, 0, NAN)  # (A, B)
    swapped = column(1, -1, 0, 0, 1)  # (B, A)
    bias = place_bias(shown, swapped, prompts(5))
    assert bias.first.value == pytest.approx(5 / 6)  # of 3 + 3 decided answers
    assert bias.flips.value == pytest.approx(2 / 4)


def test_a_critic_that_always_takes_the_first_always_flips() -> None:
    bias = place_bias(torch.ones(50), torch.ones(50), prompts(50))
    assert bias.first.value == 1 and bias.flips.value == 1


def test_a_critic_blind_to_the_place_never_flips() -> None:
    answers, _ = drawn(100)
    bias = place_bias(answers, -answers, prompts(100))
    assert bias.first.value == 0.5 and bias.flips.value == 0


def test_stability_by_hand() -> None:
    """Three asks: all alike; two of three, 1 pair in 3; one answer, which tells nothing."""
    answers = torch.tensor([[1.0, 1, NAN], [1, 0, NAN], [1, 0, 1]])
    torch.testing.assert_close(stability(answers), column(1, 1 / 3, NAN), equal_nan=True)


# ---------------------------------------------------------------- probabilities


def test_reliability_by_hand() -> None:
    """0.9 and 0.1 are equally sure: 3 of 4 on their side. 0.6 with a tie: half."""
    chance, people = column(0.9, 0.9, 0.1, 0.1, 0.6), column(1, 1, 0, 1, 0.5)
    found = reliability(chance, people, prompts(5), bins=5)
    assert [one.accuracy.n for one in found.bins] == [1, 4]
    assert found.bins[1].confidence == pytest.approx(0.9)
    assert found.bins[1].accuracy.value == 0.75
    assert found.ece == pytest.approx((4 * 0.15 + 1 * 0.1) / 5)
    assert found.brier.value == pytest.approx((3 * 0.01 + 0.81 + 0.01) / 5)


def test_always_a_half_has_a_brier_score_of_a_quarter() -> None:
    people = (torch.arange(100) % 2).double()
    found = reliability(torch.full((100,), 0.5), people, prompts(100))
    assert found.brier.value == 0.25 and found.ece == pytest.approx(0)


def test_nothing_to_calibrate() -> None:
    found = reliability(column(NAN), column(1), prompts(1))
    assert found.bins == [] and math.isnan(found.ece) and math.isnan(found.brier.value)


def votes(people: Tensor) -> Tensor:
    """One vote a pair."""
    return torch.stack([people == 1, people == 0, people == -1], 1).double()


def test_adapter_finds_the_model_that_made_the_votes() -> None:
    chance = random.Random(0)
    margin = torch.randn(6000, generator=torch.Generator().manual_seed(0)) * 0.3
    people = []
    for value in margin.tolist():
        odds, draw = rao_kupper(8.0 * value, 1.6), chance.random()
        people.append(1 if draw < odds.first else 0 if draw < odds.first + odds.tie else -1)
    found = fit_adapter(margin, votes(torch.tensor(people)))
    assert found.scale == pytest.approx(8.0, rel=0.05)
    assert found.ties == pytest.approx(1.6, rel=0.05)
    expected = [rao_kupper(found.scale * m, found.ties).expected for m in margin[:5].tolist()]
    assert found.expected(margin[:5]).tolist() == pytest.approx(expected)


def test_adapter_is_at_the_top() -> None:
    """A step in any direction is worse, with the votes that are added."""
    people, margin = drawn(60)
    counts = votes(people)
    best = fit_adapter(margin, counts)

    def likelihood(scale: float, ties: float) -> float:
        total = 0.0
        for m, row in zip(margin.tolist(), (counts + 1 / 60).tolist(), strict=True):
            total += sum(
                n * math.log(p) for n, p in zip(row, rao_kupper(scale * m, ties), strict=True)
            )
        return total

    top = likelihood(*best)
    for scale, ties in ((1.01, 1), (0.99, 1), (1, 1.01), (1, 0.995)):
        assert likelihood(best.scale * scale, best.ties * ties) < top


def test_adapter_of_a_critic_that_is_never_wrong_is_finite() -> None:
    margin = torch.linspace(-1, 1, 50)
    found = fit_adapter(margin, votes(margin.sign()))
    assert 5 < found.scale < 1000 and found.ties == 1
    scaled = fit_adapter(1000 * margin, votes(margin.sign()))
    assert scaled.scale == pytest.approx(found.scale / 1000)


def test_adapter_of_one_that_is_always_wrong_turns_it() -> None:
    margin = torch.linspace(-1, 1, 50)
    assert fit_adapter(margin, votes(-margin.sign())).scale < -5


def test_adapter_of_nothing() -> None:
    assert fit_adapter(torch.zeros(3), torch.ones(3, 3)) == Adapter(0.0, 1.0)
    assert fit_adapter(column(NAN), torch.ones(1, 3)) == Adapter(0.0, 1.0)


# ---------------------------------------------------------------- ranks


def test_ranks_by_hand() -> None:
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 x 5). Tau-b: 5 / sqrt(5 x 6)."""
    first, second = column(1, 2, 2, 5), column(10, 20, 30, 40)
    assert spearman(first, second) == pytest.approx(4.5 / math.sqrt(22.5))
    assert kendall(first, second) == pytest.approx(5 / math.sqrt(30))


def test_ranks_see_the_order_alone() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    for statistic in (spearman, kendall):
        assert statistic(values, values.exp()) == pytest.approx(1)
        assert statistic(values, -values) == pytest.approx(-1)
        assert math.isnan(statistic(values, torch.zeros(50)))
        assert math.isnan(statistic(values[:0], values[:0]))


def test_ordered_thresholds() -> None:
    """A larger threshold makes no fewer ties."""
    _, margin = drawn(50)
    ties = [int((three_way(margin, t) == 0).sum()) for t in (0.0, 1.0, 2.0, 3.0)]
    assert all(a <= b for a, b in pairwise(ties))
