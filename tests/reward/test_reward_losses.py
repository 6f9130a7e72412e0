"""Losses on human labels: values by hand, gradients, symmetry, and what a missing label does."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, tensor

from ipo_lightning.errors import InputError
from ipo_lightning.metrics.preferences import rao_kupper
from ipo_lightning.reward.losses import (
    RewardLoss,
    bradley_terry,
    bradley_terry_ties,
    label_kind,
    mean_over_valid,
    regression,
    try_loss,
)

NONE = math.nan
PAIRWISE = [bradley_terry, partial(bradley_terry_ties, ties=2.0), partial(bradley_terry_ties)]
FIRST, SECOND = tensor([[2.0, 0.5], [-1.0, 3.0]]), tensor([[1.0, 0.5], [1.0, 2.0]])


def random_pairs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 6, 3, generator=generator, dtype=dtype)
    labels = tensor([[1, -1, 0], [0, NONE, 1], [NONE, NONE, NONE], [-1, 1, NONE], [1, 1, 1],
                     [0, 0, NONE]], dtype=dtype)  # fmt: skip
    return first, second, labels


def test_bradley_terry_by_hand() -> None:
    """d = 1 with label 1: log(1 + e^-1) = 0.3132617; d = -2 with label -1: log(1 + e^-2) =
    0.1269280; the tie and the missing label are left out."""
    found = bradley_terry(FIRST, SECOND, tensor([[1, 0], [-1, NONE]]))
    assert found.loss.tolist() == pytest.approx([0.3132617, 0.1269280], abs=1e-6)
    assert found.valid.tolist() == [True, True]


def test_bradley_terry_with_ties_by_hand() -> None:
    """k = 2, ln k = 0.6931472. d = 1, first: log(1 + e^-0.3068528) = 0.5514447. d = 0, tie:
    twice log(1 + e^0.6931472) = log 9, minus log 3: log 3 = 1.0986123. d = -2, first:
    log(1 + e^2.6931472) = 2.7586240. d = 1, second: log(1 + e^1.6931472) = 1.8619946."""
    found = bradley_terry_ties(FIRST, SECOND, tensor([[1.0, 0], [1, -1]]), ties=2)
    by_hand = [(0.5514447 + 1.0986123) / 2, (2.7586240 + 1.8619946) / 2]
    assert found.loss.tolist() == pytest.approx(by_hand, abs=1e-5)


def test_a_tie_of_equals_has_the_chance_that_the_docstring_says() -> None:
    equal = torch.zeros(1, 1)
    loss = bradley_terry_ties(equal, equal, torch.zeros(1, 1), ties=5.0).loss
    assert math.exp(-loss.item()) == pytest.approx(4 / 6)


def test_regression_by_hand() -> None:
    found = regression(FIRST, tensor([[1.0, NONE], [1.0, 3.5]]))
    assert found.loss.tolist() == pytest.approx([1.0, (4 + 0.25) / 2])


@pytest.mark.parametrize("difference", [-6.0, -0.3, 0.0, 1.7])
@pytest.mark.parametrize("ties", [1.01, 2.0, 5.0])
def test_the_three_outcomes_have_all_the_probability(difference: float, ties: float) -> None:
    """And they are the probabilities that a critic's scores become comparisons by."""
    first = torch.full((3, 1), difference, dtype=torch.float64)
    labels = tensor([[1.0], [0.0], [-1.0]])
    loss = bradley_terry_ties(first, torch.zeros_like(first), labels, ties=ties).loss
    chances = (-loss.double()).exp()
    assert chances.sum().item() == pytest.approx(1, abs=1e-5)
    assert chances.tolist() == pytest.approx([*rao_kupper(difference, ties)], abs=1e-5)


@pytest.mark.parametrize("loss", PAIRWISE)
def test_exchanging_the_videos_changes_nothing(loss: partial[RewardLoss]) -> None:
    first, second, labels = random_pairs()
    there, back = loss(first, second, labels), loss(second, first, -labels)
    assert there.loss.tolist() == pytest.approx(back.loss.tolist(), abs=1e-6)
    assert there.valid.equal(back.valid)


@pytest.mark.parametrize("loss", PAIRWISE)
def test_a_constant_on_both_changes_nothing(loss: partial[RewardLoss]) -> None:
    first, second, labels = random_pairs()
    assert loss(first + 4, second + 4, labels).loss.tolist() == pytest.approx(
        loss(first, second, labels).loss.tolist(), abs=1e-5
    )


@pytest.mark.parametrize("loss", PAIRWISE)
def test_gradients(loss: partial[RewardLoss], monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences in double precision: the losses' own cast to float32 is lifted."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    first, second, labels = random_pairs()
    inputs = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, labels).mean(), inputs)


def test_gradients_of_the_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    rewards, scores, labels = random_pairs()
    scores = torch.where(labels.isnan(), labels, scores)
    assert torch.autograd.gradcheck(
        lambda r: regression(r, scores).mean(), rewards.requires_grad_()
    )


@pytest.mark.parametrize("loss", PAIRWISE)
def test_gradients_raise_the_better_video(loss: partial[RewardLoss]) -> None:
    first = torch.zeros(2, 1, requires_grad=True)
    loss(first, torch.zeros(2, 1), tensor([[1.0], [-1.0]])).mean().backward()
    assert first.grad is not None and first.grad[0] < 0 < first.grad[1]


@pytest.mark.parametrize("loss", [*PAIRWISE, regression])
def test_a_missing_label_neither_pulls_nor_dilutes(loss: partial[RewardLoss]) -> None:
    """One dimension valid of three counts as that dimension alone; a pair without labels counts
    for nothing, in the mean and in the gradient."""
    first, second, _ = random_pairs()
    labels = torch.full((6, 3), NONE, dtype=torch.float64)
    labels[:4, 1] = 1
    one = labels[:4, 1:2]
    pairwise = label_kind(loss) == "pairwise"

    def ask(rows: slice, dims: slice, labels: Tensor) -> RewardLoss:
        other = (second[rows, dims],) if pairwise else ()
        return loss(first[rows, dims], *other, labels)

    first.requires_grad_()
    whole = ask(slice(6), slice(3), labels)
    alone = ask(slice(4), slice(1, 2), one)
    assert whole.loss[:4].tolist() == pytest.approx(alone.loss.tolist())
    assert whole.valid.tolist() == [True] * 4 + [False] * 2
    assert whole.mean().item() == pytest.approx(alone.loss.mean().item())
    whole.mean().backward()
    assert first.grad is not None and first.grad.isfinite().all()
    assert first.grad[4:].eq(0).all() and first.grad[:, [0, 2]].eq(0).all()
    assert first.grad[:4, 1].ne(0).all()


def test_the_mean_of_the_valid_is_not_upstreams() -> None:
    """VideoAlign's divides by all entries of the batch: with one label in six, by six."""
    loss = tensor([[6.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    valid = tensor([[True, False, False], [False, False, False]])
    found = mean_over_valid(loss, valid)
    assert found.mean().item() == 6.0
    upstream = (loss * valid).mean()
    assert upstream.item() == 1.0


def test_no_label_at_all_is_a_loss_of_zero() -> None:
    rewards = torch.zeros(2, 3, requires_grad=True)
    loss = bradley_terry_ties(rewards, rewards * 1, torch.full((2, 3), NONE)).mean()
    loss.backward()
    assert loss.item() == 0 and rewards.grad is not None and rewards.grad.eq(0).all()


@pytest.mark.parametrize("loss", PAIRWISE)
def test_extremes_are_finite(loss: partial[RewardLoss]) -> None:
    first = tensor([[1e4], [-1e4], [1e4]], requires_grad=True)
    value = loss(first, -first.detach(), tensor([[1.0], [1.0], [0.0]])).mean()
    value.backward()
    assert value.isfinite() and first.grad is not None and first.grad.isfinite().all()


@pytest.mark.parametrize("loss", PAIRWISE)
def test_a_stray_axis_is_refused(loss: partial[RewardLoss]) -> None:
    with pytest.raises(ValueError, match="must all be"):
        loss(torch.zeros(2, 3, 1), torch.zeros(2, 3, 1), torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match="must all be"):
        loss(torch.zeros(2, 1), torch.zeros(2, 3), torch.zeros(2, 3))


def test_a_wrong_setting_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="ties=1: give a number above 1; without ties"):
        try_loss(partial(bradley_terry_ties, ties=1))
    with pytest.raises(InputError, match="first parameter is 'policy'"):
        label_kind(lambda policy, other: None)
    try_loss(regression)
