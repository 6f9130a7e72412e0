"""The preference losses: known constants, hand arithmetic, parity, gradients, extremes."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.losses import (
    PreferenceLoss,
    baseline_kind,
    beyond_errors,
    dpo_loss,
    dpop_loss,
    extra_inputs,
    hinge_loss,
    identity_loss,
    kto_baseline,
    kto_loss,
    label_kind,
    linear_dpo_loss,
    mapo_loss,
    nft_loss,
    reference_free,
    robust_dpo_loss,
    rwr_loss,
    safeguard_scale,
    saturation,
    scale_gradient,
    sft_loss,
    simpo_loss,
    try_loss,
)

Loss = Callable[..., PreferenceLoss]

PAIRWISE: dict[str, Loss] = {
    "dpo": partial(dpo_loss, beta=3.0),
    "cdpo": partial(dpo_loss, beta=3.0, label_smoothing=0.1),
    "identity": partial(identity_loss, beta=3.0),
    "sft": sft_loss,
    "robust": partial(robust_dpo_loss, beta=3.0, flip_rate=0.2),
    "hinge": partial(hinge_loss, beta=3.0),
    "dpop": partial(dpop_loss, beta=3.0, winner_penalty=2.0),
    "linear": partial(linear_dpo_loss, beta=3.0, floor=0.1),
    "simpo": partial(simpo_loss, beta=3.0, gamma=0.7),
    "mapo": partial(mapo_loss, beta=0.3, snr=0.5, scale=20.0),
}
UTILITIES = "sigmoid", "loss_averse", "risk_seeking"
POINTWISE: dict[str, Loss] = {
    **{utility: partial(kto_loss, beta=3.0, utility=utility) for utility in UTILITIES},
    "classes": partial(kto_loss, beta=3.0, baseline="classes"),
    "mismatched": partial(kto_loss, beta=3.0, baseline="mismatched"),
    "rwr": rwr_loss,
    "rwr graded": partial(rwr_loss, graded=True),
    "nft": partial(nft_loss, beta=0.7),
}
REFERENCE_FREE = {"simpo", "mapo", "sft", "rwr", "rwr graded"}
pairwise = pytest.mark.parametrize("name", PAIRWISE)
pointwise = pytest.mark.parametrize("name", POINTWISE)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def scalar(name: str, pw: float, pl: float, rw: float, rl: float) -> float:
    """The losses once more, for one pair, in plain numbers."""
    gained = (rw - pw) - (rl - pl)
    return {
        "dpo": -log_sigmoid(3 * gained),
        "cdpo": -0.9 * log_sigmoid(3 * gained) - 0.1 * log_sigmoid(-3 * gained),
        "identity": (3 * gained - 0.5) ** 2,
        "sft": pw,
        "robust": (-0.8 * log_sigmoid(3 * gained) + 0.2 * log_sigmoid(-3 * gained)) / 0.6,
        "hinge": max(0.0, 1 - 3 * gained),
        "dpop": -log_sigmoid(3 * (gained - 2 * max(0.0, pw - rw))),
        "linear": -min(max(0.5 - 0.6 * gained, 0.1), 0.9) * 3 * gained,
        "simpo": -log_sigmoid(3 * (pl - pw) - 0.7),
        "mapo": pw - 0.3 * log_sigmoid(20 * (falling(0.5 * pw) - falling(0.5 * pl))),
    }[name]


def falling(x: float) -> float:
    return x / (math.exp(x) - 1)


def scalar_disutility(utility: str, reward: float, desirable: bool) -> float:
    """1 - U for one video, from beta times its reward, as the authors write it."""
    label = 1 if desirable else -1
    return (
        1
        - {
            "sigmoid": sigmoid(label * reward),
            "loss_averse": log_sigmoid(label * reward),
            "risk_seeking": -log_sigmoid(-label * reward),
        }[utility]
    )


def scalar_kto(
    policy: list[float], ref: list[float], good: list[bool], beta: float, up: float, down: float
) -> list[float]:
    """KTO once more, one video after the other."""
    rewards = [r - p for p, r in zip(policy, ref, strict=True)]
    baseline = max(0.0, sum(rewards) / len(rewards))
    losses = []
    for reward, desirable in zip(rewards, good, strict=True):
        gain = reward - baseline if desirable else baseline - reward
        losses.append((up if desirable else down) * (1 - sigmoid(beta * gain)))
    return losses


def given(loss: Loss, count: int = 7, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Something for each extra input of a pointwise loss."""
    drift, reward, _, _ = errors(99, count, dtype)
    values = {"baseline": torch.tensor(0.05, dtype=dtype), "drift": drift, "reward": reward}
    return {name: values[name] for name in extra_inputs(loss)}


def errors(seed: int = 0, count: int = 7, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Four columns of positive errors."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, generator=generator, dtype=dtype) for _ in range(4)]


# -------------------------------------------------------------------- pairwise losses


@pytest.mark.parametrize(
    ("name", "constant"),
    [
        ("dpo", math.log(2)),
        ("cdpo", math.log(2)),
        ("identity", 0.25),
        ("robust", math.log(2)),
        ("hinge", 1.0),
        ("dpop", math.log(2)),
        ("linear", 0.0),
    ],
)
def test_a_policy_that_is_the_reference_costs_a_constant(name: str, constant: float) -> None:
    win, lose, _, _ = errors()
    result = PAIRWISE[name](win, lose, win, lose)
    assert torch.allclose(result.loss, torch.full_like(win, constant), atol=1e-15, rtol=0)
    assert not result.margin.any()


def test_sft_costs_the_winners_own_error() -> None:
    win, lose, ref_win, ref_lose = errors()
    assert torch.equal(sft_loss(win, lose, ref_win, ref_lose).loss, win)


@pytest.mark.parametrize(
    ("name", "constant"),
    [("simpo", math.log(1 + math.exp(0.7))), ("mapo", 0.25 + 0.3 * math.log(2))],
)
def test_without_a_reference_equal_errors_cost_a_constant(name: str, constant: float) -> None:
    equal = torch.full((2,), 0.25, dtype=torch.float64)
    assert PAIRWISE[name](equal, equal, *errors(count=2)[:2]).loss.tolist() == pytest.approx(
        [constant] * 2, rel=1e-14
    )


@pytest.mark.parametrize("name", ["simpo", "mapo", "sft"])
def test_without_a_reference_it_enters_the_margin_alone(name: str) -> None:
    win, lose, ref_win, ref_lose = errors(16)
    here, elsewhere = (PAIRWISE[name](win, lose, ref_win, r) for r in (ref_lose, ref_lose + 1))
    assert torch.equal(here.loss, elsewhere.loss)
    assert torch.allclose(here.margin - elsewhere.margin, torch.ones_like(win))


def test_values_by_hand() -> None:
    # Winner 0.5 -> 0.4, loser 0.6 -> 0.7: margin 0.1 + 0.1 = 0.2.
    columns = [torch.tensor([x], dtype=torch.float64) for x in (0.4, 0.7, 0.5, 0.6)]
    dpo = dpo_loss(*columns, beta=10.0)
    assert dpo.margin.item() == pytest.approx(0.2)
    assert dpo.loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert identity_loss(*columns, beta=10.0).loss.item() == pytest.approx((2 - 0.5) ** 2)
    smoothed = dpo_loss(*columns, beta=10.0, label_smoothing=0.25).loss.item()
    by_hand = 0.75 * math.log(1 + math.exp(-2)) + 0.25 * math.log(1 + math.exp(2))
    assert smoothed == pytest.approx(by_hand)
    # beta * margin = 2 again.
    robust = robust_dpo_loss(*columns, beta=10.0, flip_rate=0.25).loss.item()
    by_hand = (0.75 * math.log(1 + math.exp(-2)) - 0.25 * math.log(1 + math.exp(2))) / 0.5
    assert robust == pytest.approx(by_hand)
    assert robust < 0
    assert hinge_loss(*columns, beta=4.0).loss.item() == pytest.approx(0.2)
    assert hinge_loss(*columns, beta=10.0).loss.item() == 0
    dpop = dpop_loss(*columns, beta=10.0).loss.item()
    assert dpop == pytest.approx(dpo.loss.item())  # the winner's error fell
    linear = linear_dpo_loss(*columns, beta=10.0)  # 0.5 - 0.2 * 2 = 0.1
    assert linear.loss.item() == pytest.approx(-0.1 * 2)
    simpo = simpo_loss(*columns, beta=10.0, gamma=1.0).loss.item()
    assert simpo == pytest.approx(math.log(1 + math.exp(-2)))  # 10 * (0.7 - 0.4) - 1 = 2
    # 0.2 / (e^0.2 - 1) = 0.903331, 0.35 / (e^0.35 - 1) = 0.835184: gap 0.068147
    mapo = mapo_loss(*columns, beta=0.1, snr=0.5, scale=100.0).loss.item()
    assert mapo == pytest.approx(0.4 + 0.1 * math.log(1 + math.exp(-6.8147)), rel=1e-5)


def test_dpop_counts_a_spoilt_winner_against_the_pair() -> None:
    # Winner 0.5 -> 0.6, loser 0.5 -> 0.8: margin 0.2, minus 3 times 0.1.
    columns = [torch.tensor([x], dtype=torch.float64) for x in (0.6, 0.8, 0.5, 0.5)]
    result = dpop_loss(*columns, beta=10.0, winner_penalty=3.0)
    assert result.loss.item() == pytest.approx(math.log(1 + math.exp(1.0)))
    assert result.margin.item() == pytest.approx(0.2)


def test_robust_dpo_is_dpo_on_average_over_flipped_labels() -> None:
    win, lose, ref_win, ref_lose = errors(17)
    robust = partial(robust_dpo_loss, beta=3.0, flip_rate=0.2)
    kept, flipped = robust(win, lose, ref_win, ref_lose), robust(lose, win, ref_lose, ref_win)
    true = dpo_loss(win, lose, ref_win, ref_lose, beta=3.0).loss
    assert torch.allclose(0.8 * kept.loss + 0.2 * flipped.loss, true)


@pytest.mark.parametrize(
    ("loss", "plain"),
    [
        (partial(robust_dpo_loss, beta=3.0, flip_rate=0.0), "dpo"),
        (partial(dpop_loss, beta=3.0, winner_penalty=0.0), "dpo"),
    ],
)
def test_at_zero_it_is_the_plain_loss(loss: Loss, plain: str) -> None:
    columns = errors(18)
    assert torch.allclose(loss(*columns).loss, PAIRWISE[plain](*columns).loss, rtol=1e-14)


@pytest.mark.parametrize(
    ("policy_win", "coefficient"), [(1.0, 0.5), (0.9, 0.44), (0.1, 0.1), (1.9, 0.9)]
)
def test_linear_dpo_weighs_a_pair_by_a_clipped_line(policy_win: float, coefficient: float) -> None:
    one = torch.ones(1, dtype=torch.float64)
    win = torch.full_like(one, policy_win).requires_grad_()
    lose = one.clone().requires_grad_()
    PAIRWISE["linear"](win, lose, one, one).loss.sum().backward()  # 0.5 - 0.6 * (1 - win)
    assert win.grad.item() == pytest.approx(3 * coefficient)
    assert lose.grad.item() == pytest.approx(-3 * coefficient)


@pytest.mark.parametrize("error", [0.0, 1e-6, 0.0099999, 0.0100001, 1.0, 1e4])
def test_mapo_is_smooth_from_no_error_to_large_ones(error: float) -> None:
    win = torch.tensor([error], dtype=torch.float64, requires_grad=True)
    lose = torch.tensor([0.7], dtype=torch.float64)
    loss = mapo_loss(win, lose, lose, lose, beta=1.0, snr=1.0, scale=1.0).loss
    (grad,) = torch.autograd.grad(loss.sum(), win)
    f, slope = (1.0, -0.5) if error == 0 else (0.0, 0.0)
    if 0 < error < 100:
        f = error / math.expm1(error)
        slope = (1 - f * math.exp(error)) / math.expm1(error)
    gap = f - 0.7 / math.expm1(0.7)
    assert loss.item() == pytest.approx(error - log_sigmoid(gap), rel=1e-12)
    assert grad.item() == pytest.approx(1 - sigmoid(-gap) * slope, rel=1e-7)


@pairwise
def test_parity_with_scalar_arithmetic(name: str) -> None:
    columns = errors(1)
    wanted = [scalar(name, *row) for row in zip(*(c.tolist() for c in columns), strict=True)]
    assert PAIRWISE[name](*columns).loss.tolist() == pytest.approx(wanted, rel=1e-12)


@pairwise
def test_swapping_a_pair_flips_the_margin(name: str) -> None:
    win, lose, ref_win, ref_lose = errors(2)
    margin = PAIRWISE[name](win, lose, ref_win, ref_lose).margin
    assert torch.equal(PAIRWISE[name](lose, win, ref_lose, ref_win).margin, -margin)
    assert margin.any()


def test_dpo_of_both_directions_adds_to_the_known_identity() -> None:
    # -logsigmoid(x) + logsigmoid(-x) = -x
    win, lose, ref_win, ref_lose = errors(3)
    there = dpo_loss(win, lose, ref_win, ref_lose, beta=3.0)
    back = dpo_loss(lose, win, ref_lose, ref_win, beta=3.0)
    assert torch.allclose(there.loss - back.loss, -3 * there.margin)


@pytest.mark.parametrize(
    "name", ["dpo", "cdpo", "identity", "robust", "hinge", "dpop", "linear", "simpo"]
)
def test_a_step_lowers_the_winners_error_and_raises_the_losers(name: str) -> None:
    win, lose, _, _ = errors(4)
    win.requires_grad_()
    lose.requires_grad_()
    PAIRWISE[name](win, lose, win.detach(), lose.detach()).loss.sum().backward()
    assert (win.grad > 0).all()  # descent lowers the error
    assert (lose.grad < 0).all()
    assert torch.allclose(win.grad, -lose.grad)


def test_dpop_pulls_harder_at_a_spoilt_winner_alone() -> None:
    win, lose, _, _ = errors(4)
    ref_win, ref_lose = win - 0.1, lose - 0.1
    win.requires_grad_()
    lose.requires_grad_()
    PAIRWISE["dpop"](win, lose, ref_win, ref_lose).loss.sum().backward()
    assert torch.allclose(win.grad, -3 * lose.grad)  # 1 + winner_penalty
    assert (lose.grad < 0).all()


def test_mapo_lowers_the_winners_error_further_than_it_raises_the_losers() -> None:
    win, lose, _, _ = errors(4)
    win.requires_grad_()
    lose.requires_grad_()
    PAIRWISE["mapo"](win, lose, win.detach(), lose.detach()).loss.sum().backward()
    assert (win.grad > 1).all()  # its own error's gradient is 1
    assert (lose.grad < 0).all()


def test_a_hinge_stops_pulling_at_its_margin() -> None:
    one = torch.ones(1, dtype=torch.float64)
    for fall, gradient in ((0.3, 3.0), (0.4, 0.0)):  # 1 / beta is 0.333
        win = (one - fall).requires_grad_()
        (grad,) = torch.autograd.grad(PAIRWISE["hinge"](win, one, one, one).loss.sum(), win)
        assert grad.item() == gradient


def test_sft_leaves_the_loser_alone() -> None:
    win, lose, ref_win, ref_lose = (c.requires_grad_() for c in errors(5))
    grads = torch.autograd.grad(
        sft_loss(win, lose, ref_win, ref_lose).loss.sum(), [win, lose], allow_unused=True
    )
    assert (grads[0] == 1).all()
    assert grads[1] is None


def test_identity_stops_pulling_at_its_margin() -> None:
    win = torch.tensor([1 - 1 / 6], dtype=torch.float64, requires_grad=True)  # margin 1 / (2 beta)
    one = torch.ones(1, dtype=torch.float64)
    result = identity_loss(win, one, one, one, beta=3.0)
    (grad,) = torch.autograd.grad(result.loss.sum(), win)
    assert abs(grad.item()) < 1e-12


@pairwise
def test_gradcheck(name: str) -> None:
    win, lose, ref_win, ref_lose = errors(6, count=3)
    if name == "linear":  # its coefficient is detached: constant where it is clipped
        lose = lose + 3 * torch.tensor([1, -1, 1])
    columns = [c.requires_grad_() for c in (win, lose, ref_win, ref_lose)]
    assert torch.autograd.gradcheck(lambda *c: PAIRWISE[name](*c).loss, columns)


@pairwise
def test_the_margin_is_detached(name: str) -> None:
    columns = [c.requires_grad_() for c in errors(7)]
    assert not PAIRWISE[name](*columns).margin.requires_grad


@pairwise
def test_a_stray_axis_is_refused(name: str) -> None:
    stray = torch.rand(2, 64)
    with pytest.raises(ValueError, match=r"must all be \(B,\).*\(2, 64\)"):
        PAIRWISE[name](*[stray] * 4)


@pairwise
@pytest.mark.parametrize("place", range(4))
def test_one_odd_shape_among_four_is_refused(name: str, place: int) -> None:
    columns = errors(8, count=2)
    columns[place] = columns[place][:, None]
    with pytest.raises(ValueError, match="must all be"):
        PAIRWISE[name](*columns)


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize(
    "loss",
    [
        partial(dpo_loss, beta=5000.0),
        partial(dpo_loss, beta=5000.0, label_smoothing=0.3),
        partial(identity_loss, beta=5000.0),
        sft_loss,
        partial(robust_dpo_loss, beta=5000.0, flip_rate=0.3),
        partial(hinge_loss, beta=5000.0),
        partial(dpop_loss, beta=5000.0),
        partial(linear_dpo_loss, beta=5000.0),
        partial(simpo_loss, beta=5000.0),
        mapo_loss,
    ],
)
def test_large_errors_stay_finite(loss: Loss, side: float) -> None:
    win = torch.tensor([1e6, 1e-30], requires_grad=True)
    lose = torch.tensor([1e6, 1e-30], requires_grad=True)
    away = side * torch.tensor([9e5, 1e6])
    result = loss(win, lose, win.detach() + away, lose.detach() - away)
    result.loss.sum().backward()
    assert result.loss.isfinite().all() and result.margin.isfinite().all()
    assert win.grad.isfinite().all()
    assert lose.grad is None or lose.grad.isfinite().all()


def test_a_smoothed_loss_has_its_minimum_where_it_should() -> None:
    # d/dx of cDPO is zero where sigmoid(beta * margin) = 1 - label_smoothing.
    target = math.log(0.9 / 0.1) / 3.0
    win = torch.tensor([1 - target], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    (grad,) = torch.autograd.grad(PAIRWISE["cdpo"](win, one, one, one).loss.sum(), win)
    assert abs(grad.item()) < 1e-12


# -------------------------------------------------------------------- KTO


def kto(*args: Tensor, **settings: Any) -> PreferenceLoss:
    return kto_loss(*args, **{"beta": 3.0, **settings})


def some_labels(count: int = 7) -> Tensor:
    return torch.arange(count) % 3 != 0


def test_kto_of_the_reference_itself_costs_half_the_weight() -> None:
    policy, _, _, _ = errors()
    labels = some_labels()
    assert torch.equal(kto(policy, policy, labels).loss, torch.full_like(policy, 0.5))
    weighted = kto(policy, policy, labels, desirable_weight=1.5, undesirable_weight=0.4).loss
    assert torch.allclose(weighted, torch.where(labels, 0.75, 0.2).double())


def test_kto_by_hand() -> None:
    # Rewards 0.3 and 0.1, baseline 0.2: gains 0.1 (desirable) and 0.1 (undesirable).
    policy, ref = torch.tensor([0.2, 0.4]).double(), torch.tensor([0.5, 0.5]).double()
    result = kto(policy, ref, torch.tensor([True, False]), beta=10.0)
    assert result.loss.tolist() == pytest.approx([1 - sigmoid(1.0)] * 2)
    assert result.margin.tolist() == pytest.approx([0.3, -0.1])


@pytest.mark.parametrize("shift", [0.5, -2.0], ids=["baseline above zero", "baseline clamped"])
def test_kto_parity_with_scalar_arithmetic(shift: float) -> None:
    policy, ref, _, _ = errors(9)
    ref = ref + shift
    labels = some_labels()
    got = kto(policy, ref, labels, desirable_weight=1.25, undesirable_weight=0.75).loss
    wanted = scalar_kto(policy.tolist(), ref.tolist(), labels.tolist(), 3.0, 1.25, 0.75)
    assert got.tolist() == pytest.approx(wanted, rel=1e-12)


def test_kto_gradient_signs() -> None:
    policy, _, _, _ = errors(10)
    labels = some_labels()
    policy.requires_grad_()
    kto(policy, policy.detach(), labels).loss.sum().backward()
    assert (policy.grad[labels] > 0).all()
    assert (policy.grad[~labels] < 0).all()


def test_kto_flipping_a_label_flips_the_margin() -> None:
    policy, ref, _, _ = errors(11)
    labels = some_labels()
    assert torch.equal(kto(policy, ref, ~labels).margin, -kto(policy, ref, labels).margin)


def test_kto_gradcheck_at_a_given_baseline() -> None:
    policy, ref, _, _ = errors(12, count=4)
    baseline = torch.tensor(0.05, dtype=torch.float64)
    labels = some_labels(4)
    assert torch.autograd.gradcheck(
        lambda p, r: kto(p, r, labels, baseline=baseline).loss,
        [policy.requires_grad_(), ref.requires_grad_()],
    )


def test_kto_the_baseline_has_no_gradient() -> None:
    policy, ref, _, _ = errors(13)
    ref = ref + 1  # a positive baseline
    labels = some_labels()
    policy.requires_grad_()
    assert not kto_baseline(ref - policy).requires_grad
    given = kto_baseline(ref - policy).detach()
    (own,) = torch.autograd.grad(kto(policy, ref, labels).loss.sum(), policy)
    (fixed,) = torch.autograd.grad(kto(policy, ref, labels, baseline=given).loss.sum(), policy)
    assert torch.equal(own, fixed)


def test_kto_the_baseline_is_the_mean_over_ranks_clamped_at_zero() -> None:
    assert kto_baseline(torch.tensor([0.1, 0.5])).item() == pytest.approx(0.3)  # two ranks' means
    assert kto_baseline(torch.tensor([-0.4, 0.1])).item() == 0.0
    policy, ref, _, _ = errors(14)
    labels = some_labels()
    low = kto(policy, ref, labels, baseline=torch.tensor(0.0, dtype=torch.float64)).loss
    high = kto(policy, ref, labels, baseline=torch.tensor(0.5, dtype=torch.float64)).loss
    assert (high[labels] > low[labels]).all()  # more is asked of a desirable video
    assert (high[~labels] < low[~labels]).all()


def test_kto_baselines_by_hand() -> None:
    reward = torch.tensor([0.1, 0.3, -0.2, -0.6, 0.8], dtype=torch.float64)
    labels = torch.tensor([True, True, False, False, True])
    assert kto_baseline(reward, labels).item() == pytest.approx(0.08)
    # (0.1 + 0.3 + 0.8) / 3 = 0.4 and (-0.2 - 0.6) / 2 = -0.4: their mean is 0.
    assert kto_baseline(reward, labels, "classes").item() == pytest.approx(0.0, abs=1e-15)
    lower = kto_baseline(reward - 1, labels, "classes").item()
    assert lower == pytest.approx(-1.0)  # midway between the classes, not clamped
    assert kto_baseline(reward, kind="mismatched").item() == pytest.approx(0.08)
    assert kto_baseline(reward - 1, kind="mismatched").item() == 0.0  # a divergence is not negative


def test_kto_a_class_without_a_video_counts_as_the_reference() -> None:
    reward = torch.tensor([0.2, 0.4])
    for label, wanted in ((True, 0.15), (False, 0.15)):
        labels = torch.tensor([label, label])
        assert kto_baseline(reward, labels, "classes").item() == pytest.approx(wanted)


def test_kto_the_baseline_of_classes_does_not_depend_on_their_sizes() -> None:
    reward, labels = torch.tensor([0.5, -0.1]), torch.tensor([True, False])
    more = torch.tensor([0, 0, 0, 1])
    wanted = kto_baseline(reward, labels, "classes")
    assert torch.allclose(kto_baseline(reward[more], labels[more], "classes"), wanted)
    assert torch.allclose(kto_baseline(reward, ~labels, "classes"), wanted)  # nor on which is which


def test_kto_takes_its_baseline_by_name_or_as_a_number() -> None:
    policy, ref, _, _ = errors(24)
    labels = some_labels()
    for kind in ("mean", "classes"):
        scalar = kto_baseline(ref - policy, labels, kind)
        assert torch.equal(
            kto(policy, ref, labels, baseline=kind).loss,
            kto(policy, ref, labels, baseline=scalar).loss,
        )
    rewards = [r - p for p, r in zip(policy.tolist(), ref.tolist(), strict=True)]
    good = [x for x, yes in zip(rewards, labels.tolist(), strict=True) if yes]
    bad = [x for x, yes in zip(rewards, labels.tolist(), strict=True) if not yes]
    middle = (sum(good) / len(good) + sum(bad) / len(bad)) / 2
    wanted = [
        sigmoid(-3 * (x - middle if yes else middle - x))
        for x, yes in zip(rewards, labels.tolist(), strict=True)
    ]
    got = kto(policy, ref, labels, baseline="classes").loss.tolist()
    assert got == pytest.approx(wanted, rel=1e-12)


def test_kto_baselines_are_refused_where_they_cannot_be() -> None:
    policy, ref, _, _ = errors(25)
    with pytest.raises(InputError, match="baseline=mismatched: the caller must compute"):
        kto(policy, ref, some_labels(), baseline="mismatched")
    with pytest.raises(InputError, match="baseline=median: choose one of mean, classes"):
        kto(policy, ref, some_labels(), baseline="median")
    with pytest.raises(ValueError, match="which videos are desirable"):
        kto_baseline(policy, kind="classes")
    with pytest.raises(InputError, match="baseline=none"):
        kto_baseline(policy, kind="none")


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_kto_large_errors_stay_finite(side: float) -> None:
    policy = torch.tensor([1e6, 2e6, 1e-30], requires_grad=True)
    ref = policy.detach() + side * torch.tensor([9e5, -9e5, 1e6])
    result = kto(policy, ref, torch.tensor([True, False, True]), beta=5000.0)
    result.loss.sum().backward()
    assert result.loss.isfinite().all() and policy.grad.isfinite().all()


def test_kto_keeps_small_losses_exact() -> None:
    # 1 - sigmoid(x) rounds to 0 in float32 from x = 17 on; sigmoid(-x) does not.
    policy, ref = torch.zeros(1), torch.full((1,), 20.0)
    loss = kto(policy, ref, torch.tensor([True]), beta=1.0, baseline=torch.tensor(0.0)).loss
    assert loss.item() == pytest.approx(sigmoid(-20.0), rel=1e-5)


def test_kto_refuses_wrong_shapes_and_labels() -> None:
    policy, ref, _, _ = errors(15, count=2)
    with pytest.raises(ValueError, match="must all be"):
        kto(torch.rand(2, 64), torch.rand(2, 64), torch.ones(2, 64, dtype=torch.bool))
    with pytest.raises(ValueError, match="desirable must be bool"):
        kto(policy, ref, torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="desirable must be bool"):
        kto(policy, ref, torch.tensor([[True], [False]]))


# -------------------------------------------------------------------- KTO's utilities


@pytest.mark.parametrize(
    ("utility", "desirable", "undesirable"),
    [
        ("sigmoid", 0.5, 0.5),
        ("loss_averse", 1 + math.log(2), 1 + math.log(2)),
        ("risk_seeking", 1 - math.log(2), 1 - math.log(2)),
    ],
)
def test_a_utility_of_the_reference_itself_costs_a_constant(
    utility: str, desirable: float, undesirable: float
) -> None:
    policy, _, _, _ = errors()
    labels = some_labels()
    wanted = torch.where(labels, desirable, undesirable).double()
    assert torch.allclose(kto(policy, policy, labels, utility=utility).loss, wanted, atol=1e-7)


def test_the_sigmoid_utility_is_the_default() -> None:
    policy, ref, _, _ = errors(19)
    labels = some_labels()
    chosen = kto(policy, ref, labels, utility="sigmoid").loss
    assert torch.equal(chosen, kto(policy, ref, labels).loss)


@pytest.mark.parametrize("utility", UTILITIES)
def test_utilities_have_parity_with_scalar_arithmetic(utility: str) -> None:
    policy, ref, _, _ = errors(20)
    labels = some_labels()
    baseline = torch.tensor(0.05, dtype=torch.float64)
    settings = {"utility": utility, "baseline": baseline, "undesirable_weight": 0.75}
    result = kto(policy, ref, labels, **settings)
    wanted = [
        (1 if good else 0.75) * scalar_disutility(utility, 3 * (r - p - 0.05), good)
        for p, r, good in zip(policy.tolist(), ref.tolist(), labels.tolist(), strict=True)
    ]
    assert result.loss.tolist() == pytest.approx(wanted, rel=1e-12)
    flipped = kto(policy, ref, ~labels, **settings)
    assert torch.equal(flipped.margin, -result.margin)


@pytest.mark.parametrize("utility", UTILITIES)
def test_utilities_gradient(utility: str) -> None:
    policy, ref, _, _ = errors(21, count=4)
    labels = some_labels(4)
    baseline = torch.tensor(0.05, dtype=torch.float64)

    def loss(policy: Tensor, ref: Tensor) -> Tensor:
        return kto(policy, ref, labels, utility=utility, baseline=baseline).loss

    policy.requires_grad_()
    (grad,) = torch.autograd.grad(loss(policy, ref).sum(), policy)
    assert (grad[labels] > 0).all()
    assert (grad[~labels] < 0).all()
    assert torch.autograd.gradcheck(loss, [policy, ref.requires_grad_()])


@pytest.mark.parametrize("side", [1.0, -1.0])
@pytest.mark.parametrize("utility", UTILITIES)
def test_utilities_of_large_errors_stay_finite(utility: str, side: float) -> None:
    policy = torch.tensor([1e6, 2e6, 1e-30], requires_grad=True)
    ref = policy.detach() + side * torch.tensor([9e5, -9e5, 1e6])
    labels = torch.tensor([True, False, True])
    result = kto(policy, ref, labels, beta=5000.0, utility=utility)
    result.loss.sum().backward()
    assert result.loss.isfinite().all() and policy.grad.isfinite().all()


# -------------------------------------------------------------------- reward-weighted regression


def test_rwr_costs_the_rewarded_error() -> None:
    policy, ref, _, _ = errors(22)
    labels = some_labels()
    result = rwr_loss(policy, ref, labels, desirable_reward=0.8, undesirable_reward=0.1)
    wanted = [
        (0.8 if g else 0.1) * p for p, g in zip(policy.tolist(), labels.tolist(), strict=True)
    ]
    assert result.loss.tolist() == pytest.approx(wanted, rel=1e-7)
    assert torch.equal(
        result.loss,
        rwr_loss(policy, ref + 1, labels, desirable_reward=0.8, undesirable_reward=0.1).loss,
    )
    assert torch.equal(rwr_loss(policy, ref, ~labels).margin, -result.margin)
    assert torch.equal(result.margin, kto(policy, ref, labels).margin)
    by_hand = rwr_loss(
        torch.tensor([0.4, 0.4]), torch.tensor([0.5, 0.5]), torch.tensor([True, False])
    )
    assert by_hand.loss.tolist() == pytest.approx([0.36, 0.02])
    assert by_hand.margin.tolist() == pytest.approx([0.1, -0.1])


def test_rwr_gradient() -> None:
    policy, ref, _, _ = errors(23, count=4)
    labels = some_labels(4)
    policy.requires_grad_()
    (grad,) = torch.autograd.grad(rwr_loss(policy, ref, labels).loss.sum(), policy)
    assert torch.allclose(grad, torch.where(labels, 0.9, 0.05).double())  # nothing is pushed away
    assert torch.autograd.gradcheck(lambda p: rwr_loss(p, ref, labels).loss, [policy])
    large = rwr_loss(torch.tensor([1e30, 1e-30]), torch.zeros(2), torch.tensor([True, False]))
    assert large.loss.isfinite().all() and large.margin.isfinite().all()


def test_rwr_refuses_wrong_shapes_and_labels() -> None:
    stray = torch.rand(2, 64)
    with pytest.raises(ValueError, match="must all be"):
        rwr_loss(stray, stray, stray > 0)
    with pytest.raises(ValueError, match="desirable must be bool"):
        rwr_loss(stray[:, 0], stray[:, 0], torch.tensor([1, 0]))


def test_rwr_weighs_by_graded_rewards() -> None:
    policy, ref, reward, _ = errors(26)
    labels = some_labels()
    result = rwr_loss(policy, ref, labels, graded=True, reward=reward)
    wanted = [r * p for r, p in zip(reward.tolist(), policy.tolist(), strict=True)]
    assert result.loss.tolist() == pytest.approx(wanted, rel=1e-15)
    assert torch.equal(result.margin, rwr_loss(policy, ref, labels).margin)
    by_label = rwr_loss(policy, ref, labels, reward=reward)  # not graded: it does not matter
    assert torch.equal(by_label.loss, rwr_loss(policy, ref, labels).loss)
    with pytest.raises(ValueError, match="graded=true needs the rewards"):
        rwr_loss(policy, ref, labels, graded=True)


# -------------------------------------------------------------------- DiffusionNFT


def nft(*args: Tensor, **settings: Any) -> PreferenceLoss:
    return nft_loss(*args, **{"beta": 0.7, **settings})


def predictions(seed: int, count: int = 5) -> list[Tensor]:
    """The policy's, the reference's and the target, float64, (B, 2, 3, 4)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


def mean_square(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).mean(1)


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_nft_is_the_loss_of_two_mixed_predictions(beta: float) -> None:
    """The tensor form of the paper, with its gradient on the policy's prediction."""
    policy, old, target = predictions(0)
    policy.requires_grad_()
    reward = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    toward = (1 - beta) * old + beta * policy
    away = (1 + beta) * old - beta * policy
    wanted = reward * mean_square(toward - target) + (1 - reward) * mean_square(away - target)
    got = nft_loss(
        mean_square(policy - target),
        mean_square(old - target),
        some_labels(5),
        drift=mean_square(policy - old),
        reward=reward,
        beta=beta,
    ).loss
    assert torch.allclose(got, wanted, rtol=1e-12)
    (gradient,) = torch.autograd.grad(got.sum(), policy, retain_graph=True)
    (by_tensors,) = torch.autograd.grad(wanted.sum(), policy)
    assert torch.allclose(gradient, by_tensors, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("beta", "reward"), [(1.0, 1.0), (2.0, 0.75), (0.5, 0.1)])
def test_nft_draws_a_video_its_rewards_share_of_the_way(beta: float, reward: float) -> None:
    _, old, target = predictions(1)
    best = old + (2 * reward - 1) / beta * (target - old)
    policy = best.clone().requires_grad_()
    loss = nft_loss(
        mean_square(policy - target),
        mean_square(old - target),
        some_labels(5),
        drift=mean_square(policy - old),
        reward=torch.full((5,), reward, dtype=torch.float64),
        beta=beta,
    ).loss
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert gradient.abs().max() < 1e-14


def test_nft_by_hand() -> None:
    # reward 0.8: s = 0.6. 0.5 + 2 * 0.6 * (0.4 - 0.5) + 2 * (2 - 0.6) * 0.01
    columns = [torch.tensor([x], dtype=torch.float64) for x in (0.4, 0.5, 0.01, 0.8)]
    policy, ref, drift, reward = columns
    settings = {"drift": drift, "reward": reward, "beta": 2.0}
    result = nft(policy, ref, torch.tensor([True]), **settings)
    assert result.loss.item() == pytest.approx(0.5 - 0.12 + 0.028)
    assert result.margin.item() == pytest.approx(0.1)
    assert nft(policy, ref, torch.tensor([False]), **settings).margin.item() == pytest.approx(-0.1)


def test_nft_parity_with_scalar_arithmetic() -> None:
    policy, ref, drift, reward = errors(27)
    got = nft(policy, ref, some_labels(), drift=drift, reward=reward).loss.tolist()
    wanted = [
        r * (0.3 * o + 0.7 * p - 0.7 * 0.3 * d) + (1 - r) * (1.7 * o - 0.7 * p + 0.7 * 1.7 * d)
        for p, o, d, r in zip(*(c.tolist() for c in (policy, ref, drift, reward)), strict=True)
    ]
    assert got == pytest.approx(wanted, rel=1e-12)


def test_nft_of_the_reference_itself_costs_its_error() -> None:
    policy, _, _, reward = errors(28)
    result = nft(policy, policy, some_labels(), drift=torch.zeros_like(policy), reward=reward)
    assert torch.equal(result.loss, policy)
    assert not result.margin.any()


def test_nft_gradient_signs() -> None:
    policy, _, _, _ = errors(29)
    reward = torch.tensor([0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0], dtype=torch.float64)
    policy.requires_grad_()
    zero = torch.zeros_like(policy)
    loss = nft(policy, policy.detach(), some_labels(), drift=zero, reward=reward).loss
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert torch.allclose(gradient, 0.7 * (2 * reward - 1))


# -------------------------------------------------------------------- all pointwise losses


@pointwise
def test_pointwise_gradcheck(name: str) -> None:
    policy, ref, _, _ = errors(30, count=4)
    loss, labels = POINTWISE[name], some_labels(4)
    extra = given(loss, 4)
    drift = extra.pop("drift", torch.zeros(4, dtype=torch.float64))
    ref = ref.requires_grad_(name not in REFERENCE_FREE)

    def value(policy: Tensor, ref: Tensor, drift: Tensor) -> Tensor:
        more = {"drift": drift} if "drift" in extra_inputs(loss) else {}
        return loss(policy, ref, labels, **extra, **more).loss

    drift.requires_grad_("drift" in extra_inputs(loss))
    assert torch.autograd.gradcheck(value, [policy.requires_grad_(), ref, drift])


@pointwise
def test_flipping_a_label_flips_the_margin_without_gradient(name: str) -> None:
    policy, ref, _, _ = (c.requires_grad_() for c in errors(31))
    loss, labels = POINTWISE[name], some_labels()
    margin = loss(policy, ref, labels, **given(loss)).margin
    assert not margin.requires_grad
    assert torch.equal(loss(policy, ref, ~labels, **given(loss)).margin, -margin)


@pointwise
def test_pointwise_losses_refuse_a_stray_axis(name: str) -> None:
    stray = torch.rand(2, 64)
    loss = POINTWISE[name]
    with pytest.raises(ValueError, match="must all be"):
        loss(stray, stray, stray > 0, **given(loss))
    for odd in extra_inputs(loss) - {"baseline"}:
        with pytest.raises(ValueError, match="must all be"):
            extra = {**given(loss, 2, torch.float32), odd: stray}
            loss(stray[:, 0], stray[:, 0], stray[:, 0] > 0, **extra)


@pointwise
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_pointwise_losses_of_large_errors_stay_finite(name: str, side: float) -> None:
    policy = torch.tensor([1e6, 2e6, 1e-30], requires_grad=True)
    ref = policy.detach() + side * torch.tensor([9e5, -9e5, 1e6])
    loss = POINTWISE[name]
    settings = {"beta": 5000.0} if "beta" in getattr(loss, "keywords", {}) else {}
    extra = given(loss, 3, torch.float32)
    result = loss(policy, ref, torch.tensor([True, False, True]), **extra, **settings)
    result.loss.sum().backward()
    assert result.loss.isfinite().all() and result.margin.isfinite().all()
    assert policy.grad.isfinite().all()


# -------------------------------------------------------------------- without a reference


@pytest.mark.parametrize("name", [*PAIRWISE, *POINTWISE])
def test_a_loss_without_a_reference_is_told_by_trying(name: str) -> None:
    assert reference_free({**PAIRWISE, **POINTWISE}[name]) == (name in REFERENCE_FREE)


@pytest.mark.parametrize("name", sorted(REFERENCE_FREE))
def test_without_a_reference_loss_and_gradient_are_finite(name: str) -> None:
    columns = [c.requires_grad_() for c in errors(32)]
    nowhere = torch.full_like(columns[0], math.nan)
    if name in PAIRWISE:
        result = PAIRWISE[name](*columns[:2], nowhere, nowhere)
        known = PAIRWISE[name](*columns)
    else:
        loss = POINTWISE[name]
        result, known = (
            loss(columns[0], ref, some_labels(), **given(loss)) for ref in (nowhere, columns[2])
        )
    assert result.margin.isnan().all()
    assert torch.equal(result.loss, known.loss)
    gradient, wanted = (torch.autograd.grad(r.loss.sum(), columns[0])[0] for r in (result, known))
    assert gradient.isfinite().all()
    assert torch.equal(gradient, wanted)


# -------------------------------------------------------------------- the safeguard


def residuals(*rows: tuple[list[float], list[float]]) -> tuple[Tensor, Tensor]:
    """Residuals of winners and losers, (B, 2)."""
    win, lose = zip(*rows, strict=True)
    return torch.tensor(win), torch.tensor(lose)


def test_the_safeguard_by_hand() -> None:
    win, lose = residuals(
        ([1.0, 0.0], [4.0, 3.0]),  # 1 / 4
        ([1.0, 2.0], [1.0, 0.0]),  # 5 / 1: no more than all
        ([1.0, 0.0], [-4.0, 3.0]),  # opposed: raising the loser's error lowers the winner's
        ([1.0, 0.0], [0.0, 3.0]),  # indifferent
    )
    assert safeguard_scale(win, lose, mu=0.0).tolist() == pytest.approx([0.25, 1, 1, 1])
    assert safeguard_scale(win, lose, mu=0.9).tolist() == pytest.approx([0.025, 0.5, 1, 1])


def test_the_safeguard_leaves_the_winner_its_share_of_the_step() -> None:
    """-g_w + scale g_l along g_w is at most -mu |g_w|^2: a larger mu is the safer."""
    win, lose, _ = (part.float() for part in predictions(2, count=64))
    lose = lose + 0.5 * win
    last = torch.ones(64)
    for mu in (0.0, 0.5, 0.9, 0.99):
        scale = safeguard_scale(win, lose, mu=mu)
        along = (win * (scale.view(-1, 1, 1, 1) * lose - win)).flatten(1).sum(1)
        assert (along <= -mu * win.square().flatten(1).sum(1) + 1e-4).all()
        assert (scale <= last).all() and (scale < last).any() and (scale >= 0).all()
        last = scale


@pytest.mark.parametrize("zero", ["win", "lose", "both"])
def test_the_safeguard_of_nothing_is_finite(zero: str) -> None:
    win, lose = torch.ones(2, 3), torch.ones(2, 3)
    win, lose = win * (zero == "lose"), lose * (zero == "win")
    assert safeguard_scale(win, lose, mu=0.5).tolist() == [1.0, 1.0]


def test_the_safeguard_of_a_pair_is_its_own_and_float32() -> None:
    win, lose, _ = predictions(3)
    together = safeguard_scale(win.bfloat16(), lose.bfloat16(), mu=0.3)
    assert together.dtype == torch.float32
    alone = [
        safeguard_scale(w[None].bfloat16(), r[None].bfloat16(), mu=0.3)
        for w, r in zip(win, lose, strict=True)
    ]
    assert torch.allclose(torch.cat(alone), together)
    assert not safeguard_scale(win.requires_grad_(), lose, mu=0.3).requires_grad


def test_a_common_weight_does_not_change_the_safeguard() -> None:
    win, lose, _ = predictions(4)
    scale = safeguard_scale(win, lose, mu=0.5)
    assert torch.allclose(safeguard_scale(3 * win, 3 * lose, mu=0.5), scale)


@pytest.mark.parametrize("mu", [-0.1, 1.0, math.nan])
def test_the_safeguard_refuses_other_shares(mu: float) -> None:
    with pytest.raises(InputError, match=r"mu=.*at least 0 and below 1"):
        safeguard_scale(torch.ones(1, 2), torch.ones(1, 2), mu=mu)
    with pytest.raises(ValueError, match="differ"):
        safeguard_scale(torch.ones(1, 2), torch.ones(2, 2), mu=0.5)


def test_a_scaled_gradient_leaves_the_value() -> None:
    error = errors(33)[0].requires_grad_()
    scale = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    held = scale_gradient(error, scale)
    assert torch.equal(held, error)
    (gradient,) = torch.autograd.grad(held.square().sum(), error)
    assert torch.allclose(gradient, scale * 2 * error)
    with pytest.raises(ValueError, match="must all be"):
        scale_gradient(error, scale[:, None])


@pairwise
def test_a_safeguarded_loss_pulls_as_hard_at_the_winner(name: str) -> None:
    win, lose, ref_win, ref_lose = errors(34)
    win.requires_grad_()
    lose.requires_grad_()
    half = torch.full_like(win, 0.5)
    plain, held = (
        torch.autograd.grad(
            PAIRWISE[name](win, one, ref_win, ref_lose).loss.sum(),
            [win, lose],
            allow_unused=True,
            materialize_grads=True,
        )
        for one in (lose, scale_gradient(lose, half))
    )
    assert torch.equal(held[0], plain[0])
    assert torch.allclose(held[1], plain[1] / 2)


# -------------------------------------------------------------------- saturation


def at_margins(*margins: float) -> list[Tensor]:
    """Pairs of these margins, half won by the winner's error and half by the loser's."""
    half = torch.tensor(margins, dtype=torch.float64) / 2
    one = torch.ones_like(half)
    return [one - half, one + half, one, one]


@pytest.mark.parametrize(
    ("name", "saturated", "not_yet"),
    [
        ("dpo", math.log(19) / 3 + 1e-6, math.log(19) / 3 - 1e-6),  # sigmoid(-3 m) = 0.05
        ("identity", (0.5 + 0.049) / 3, (0.5 - 0.051) / 3),
        ("hinge", 0.34, 0.33),
    ],
)
def test_a_pair_saturates_at_a_tenth_of_its_first_pull(
    name: str, saturated: float, not_yet: float
) -> None:
    got = saturation(PAIRWISE[name], *at_margins(saturated, not_yet, 0.0, -5.0))
    assert got.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert got.dtype == torch.float32


@pairwise
def test_no_pair_is_saturated_at_the_start(name: str) -> None:
    win, lose, _, _ = errors(35)
    assert not saturation(PAIRWISE[name], win, lose, win, lose).any()


@pointwise
def test_no_point_is_saturated_at_the_start(name: str) -> None:
    policy, _, _, _ = errors(36)
    assert not saturation(POINTWISE[name], policy, policy, some_labels(), **zeroed(name)).any()


def zeroed(name: str) -> dict[str, Tensor]:
    """What a pointwise loss extra_inputs, where the policy is the reference."""
    extra = given(POINTWISE[name])
    return {key: one if key == "reward" else 0 * one for key, one in extra.items()}


def test_a_point_saturates_on_either_side() -> None:
    # The slope of sigmoid(-x) is 1/4 at 0, and 0.025 at |x| = 3.637.
    ref = torch.full((4,), 10.0, dtype=torch.float64)
    policy = ref - torch.tensor([3.7, 3.5, -3.7, -3.5], dtype=torch.float64)
    labels = torch.tensor([True, False, True, False])
    loss = partial(kto_loss, beta=1.0)
    zero = torch.zeros((), dtype=torch.float64)
    assert saturation(loss, policy, ref, labels, baseline=zero).tolist() == [1, 0, 1, 0]
    shifted = saturation(loss, policy, ref, labels, baseline=zero + 0.3)
    assert shifted.tolist() == [0, 0, 1, 1]


def test_saturation_touches_no_graph() -> None:
    policy, ref, drift, reward = (c.requires_grad_() for c in errors(37))
    doubled = 2 * drift
    loss = POINTWISE["nft"]
    with torch.no_grad():  # as some loops run
        got = saturation(loss, policy, ref, some_labels(), drift=doubled, reward=reward)
    assert not got.requires_grad
    assert all(column.grad is None for column in (policy, ref, drift, reward))
    doubled.sum().backward()  # its graph is still whole
    assert not sum(saturation(sft_loss, *errors(38)))  # a constant pull


@pytest.mark.parametrize("name", ["dpo", "sft"])
def test_saturation_is_unknown_without_a_reference(name: str) -> None:
    win, lose, ref_win, ref_lose = errors(39)
    ref_lose[2] = math.nan
    got = saturation(PAIRWISE[name], win, lose, ref_win, ref_lose)
    assert got.isnan().tolist() == [place == 2 for place in range(7)]


# -------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (partial(dpo_loss, beta=0.0), "beta=0.0"),
        (partial(dpo_loss, beta=math.nan), "beta=nan"),
        (partial(dpo_loss, beta=1.0, label_smoothing=0.5), "label_smoothing=0.5"),
        (partial(dpo_loss, beta=1.0, label_smoothing=-0.1), "label_smoothing=-0.1"),
        (partial(identity_loss, beta=-1.0), "beta=-1.0"),
        (partial(kto_loss, beta=0), "beta=0"),
        (partial(kto_loss, beta=1.0, desirable_weight=-1), "desirable_weight=-1"),
        (partial(kto_loss, beta=1.0, undesirable_weight=-1), "undesirable_weight=-1"),
        (partial(kto_loss, beta=1.0, utility="happy"), "utility=happy: choose one of sigmoid"),
        (partial(kto_loss, beta=1.0, baseline="median"), "baseline=median: choose one of mean"),
        (partial(kto_loss, beta=1.0, baseline=0.1), "baseline=0.1"),
        (partial(nft_loss, beta=0.0), "beta=0.0"),
        (partial(nft_loss, beta=math.nan), "beta=nan"),
        (partial(rwr_loss, graded=True, undesirable_reward=-1.0), "undesirable_reward=-1.0"),
        (partial(robust_dpo_loss, beta=0.0), "beta=0.0"),
        (partial(robust_dpo_loss, beta=1.0, flip_rate=0.5), "flip_rate=0.5"),
        (partial(robust_dpo_loss, beta=1.0, flip_rate=-0.1), "flip_rate=-0.1"),
        (partial(hinge_loss, beta=-1.0), "beta=-1.0"),
        (partial(dpop_loss, beta=0.0), "beta=0.0"),
        (partial(dpop_loss, beta=1.0, winner_penalty=-1.0), "winner_penalty=-1.0"),
        (partial(linear_dpo_loss, beta=0.0), "beta=0.0"),
        (partial(linear_dpo_loss, beta=1.0, floor=0.5), "floor=0.5"),
        (partial(simpo_loss, beta=math.nan), "beta=nan"),
        (partial(simpo_loss, beta=1.0, gamma=-0.5), "gamma=-0.5"),
        (partial(mapo_loss, beta=0.0), "beta=0.0"),
        (partial(mapo_loss, snr=0.0), "snr=0.0"),
        (partial(mapo_loss, scale=-1.0), "scale=-1.0"),
        (partial(rwr_loss, desirable_reward=-1.0), "desirable_reward=-1.0"),
        (partial(rwr_loss, undesirable_reward=math.nan), "undesirable_reward=nan"),
        (partial(dpo_loss), "beta"),  # left out
        (partial(dpo_loss, beta="large"), "beta=large: give a number, above 0"),
        (partial(dpo_loss, beta=1.0, temperature=2.0), "temperature"),
    ],
)
def test_try_loss_refuses_wrong_settings(loss: Loss, named: str) -> None:
    with pytest.raises(InputError, match=named):
        try_loss(loss)


def test_try_loss_refuses_what_is_not_one_value_a_pair() -> None:
    def reduced(policy_win: Tensor, policy_lose: Tensor, ref_win: Tensor, ref_lose: Tensor) -> Any:
        one = dpo_loss(policy_win, policy_lose, ref_win, ref_lose, beta=1.0)
        return PreferenceLoss(one.loss.mean(), one.margin)

    def bare(policy_win: Tensor, policy_lose: Tensor, ref_win: Tensor, ref_lose: Tensor) -> Any:
        return policy_win - ref_win

    with pytest.raises(InputError, match="must all be"):
        try_loss(reduced)
    with pytest.raises(InputError, match="loss"):
        try_loss(bare)


def test_every_loss_of_ours_passes_the_trial() -> None:
    for loss in (*PAIRWISE.values(), *POINTWISE.values()):
        try_loss(loss)


def test_a_loss_says_by_its_parameters_what_it_judges() -> None:
    def mine(policy: Tensor, ref: Tensor, desirable: Tensor) -> PreferenceLoss:
        return PreferenceLoss(policy, ref)

    assert {label_kind(loss) for loss in PAIRWISE.values()} == {"pairwise"}
    assert {label_kind(loss) for loss in (*POINTWISE.values(), mine)} == {"pointwise"}


def test_a_loss_says_by_its_parameters_what_it_wants() -> None:
    def mine(
        policy: Tensor, ref: Tensor, desirable: Tensor, baseline: Tensor | None = None
    ) -> PreferenceLoss:
        return PreferenceLoss(policy - ref, ref)

    kto = partial(kto_loss, beta=1.0)
    assert extra_inputs(kto) == extra_inputs(mine) == {"baseline"}
    assert (
        extra_inputs(partial(kto, baseline=torch.tensor(0.1)))
        == extra_inputs(rwr_loss)
        == frozenset()
    )
    assert extra_inputs(partial(rwr_loss, graded=True)) == {"reward"}
    assert (
        extra_inputs(nft_loss) == extra_inputs(partial(nft_loss, beta=2.0)) == {"drift", "reward"}
    )
    assert {extra_inputs(loss) for loss in PAIRWISE.values()} == {frozenset()}

    assert baseline_kind(kto) == baseline_kind(mine) == "mean"
    assert baseline_kind(partial(kto, baseline="classes")) == "classes"
    assert baseline_kind(partial(kto, baseline=torch.tensor(0.1))) is None
    assert baseline_kind(rwr_loss) is None


def test_a_loss_says_why_errors_of_the_reference_do_not_suffice() -> None:
    told = {name: beyond_errors(loss) for name, loss in {**PAIRWISE, **POINTWISE}.items()}
    told_of_nft = "nft_loss compares predictions (drift)"
    assert told.pop("nft") == told_of_nft
    wanted = "kto_loss with baseline=mismatched asks the reference about other prompts"
    assert told.pop("mismatched") == wanted
    assert set(told.values()) == {None}

    class Deferred(partial[PreferenceLoss]):
        """As Hydra's own partials: functools does not flatten what is made of it."""

    nested = partial(Deferred(nft_loss, beta=1.0), beta=2.0)
    assert beyond_errors(nft_loss) == beyond_errors(nested) == told_of_nft


@pytest.mark.parametrize("odd", [lambda win, lose: win, torch.add])
def test_other_signatures_are_refused(odd: Loss) -> None:
    with pytest.raises(InputError, match="loss"):
        label_kind(odd)


REPO = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("path", sorted(REPO.glob("conf/loss/*.yaml")), ids=lambda path: path.stem)
def test_the_page_of_losses_has_each_with_its_shipped_beta(path: Path) -> None:
    row = re.search(
        rf"^\| `{path.stem}` \|.*$", (REPO / "docs/losses.md").read_text(), re.MULTILINE
    )
    assert row, f"docs/losses.md: add a row for {path.stem}"
    beta = OmegaConf.load(path).get("beta")
    assert beta is None or re.search(rf"\| beta {beta:g}\b", row[0]), f"beta is {beta:g}: {row[0]}"
