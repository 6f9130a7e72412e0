"""Beta on its own: the same strength whatever units the errors come in."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ipo_lightning.draws.calibration import (
    Calibration,
    auto_beta,
    has_auto_beta,
    typical_gap,
    with_beta,
)
from ipo_lightning.errors import InputError
from ipo_lightning.losses import (
    PreferenceLoss,
    dpo_loss,
    dpop_loss,
    hinge_loss,
    identity_loss,
    kto_loss,
    linear_dpo_loss,
    mapo_loss,
    nft_loss,
    robust_dpo_loss,
    sft_loss,
    simpo_loss,
)
from tests.helpers.tiny import normal, scheduler


def test_the_typical_gap_of_pairs_by_hand() -> None:
    errors = torch.tensor([[1.0, 2.0], [5.0, 2.0], [4.0, 4.5], [9.0, 0.0], [3.0, 1.0]])
    assert typical_gap(errors, torch.zeros(5)) == 2.0  # of 1, 3, 0.5, 9, 2


def test_the_typical_gap_of_points_compares_neighbours_in_noise() -> None:
    """Errors rise with the noise; that is no difference between videos."""
    u = torch.tensor([0.9, 0.1, 0.5, 0.7])
    errors = torch.tensor([[9.0], [1.0], [2.0], [5.0]])  # in order of u: 1, 2, 5, 9
    assert typical_gap(errors, u) == 3.0


def test_beta_undoes_the_units_of_the_errors() -> None:
    errors, u = normal(0, 200, 2).square(), torch.rand(200)
    beta = auto_beta(errors, u, logit=7.0)
    assert auto_beta(errors / 50, u, logit=7.0) == pytest.approx(50 * beta, rel=1e-5)
    assert auto_beta(errors, u, logit=14.0) == pytest.approx(2 * beta)
    assert beta * typical_gap(errors, u) == pytest.approx(7.0)


def test_a_pair_with_the_typical_margin_has_the_stated_logit() -> None:
    errors = normal(1, 100, 2).square()
    gap = torch.tensor([typical_gap(errors, torch.rand(100))])
    loss = with_beta(partial(dpo_loss, beta="auto"), auto_beta(errors, torch.rand(100), 3.0))
    zero = torch.zeros(1)
    found = loss(zero, gap, zero, zero)
    assert torch.allclose(found.loss, torch.nn.functional.softplus(torch.tensor([-3.0])))


@pytest.mark.parametrize(
    "loss",
    [dpo_loss, robust_dpo_loss, identity_loss, hinge_loss, dpop_loss, linear_dpo_loss, simpo_loss,
     kto_loss, partial(kto_loss, utility="risk_seeking"), partial(kto_loss, baseline="mismatched")],
)  # fmt: skip
def test_losses_whose_beta_multiplies_errors_may_leave_it_open(loss: Any) -> None:
    assert has_auto_beta(partial(loss, beta="auto"))
    assert not has_auto_beta(partial(loss, beta=2.0))
    assert with_beta(partial(loss, beta="auto"), 5.0).keywords["beta"] == 5.0


@pytest.mark.parametrize("loss", [mapo_loss, nft_loss])
def test_a_beta_that_is_a_weight_may_not(loss: Callable[..., PreferenceLoss]) -> None:
    with pytest.raises(InputError, match=f"beta of {loss.__name__} multiplies no error"):
        has_auto_beta(partial(loss, beta="auto"))


def test_a_loss_without_beta_wants_none() -> None:
    assert not has_auto_beta(sft_loss)


def test_errors_that_do_not_differ_tell_nothing() -> None:
    with pytest.raises(InputError, match="do not differ"):
        auto_beta(torch.ones(5, 2), torch.rand(5), 7.0)
    with pytest.raises(InputError, match="at 1 draws"):
        auto_beta(torch.tensor([[1.0, 2.0]]), torch.rand(1), 7.0)


@pytest.mark.parametrize("wrong", [{"logit": 0.0}, {"draws": 1}, {"batch_size": 0}])
def test_impossible_calibrations_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        Calibration(**wrong)


# -------------------------------------------------------------------- docs/beta.md

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "beta.md").read_text()


def row(name: str) -> list[float]:
    """The numbers of a row of the page's table of models."""
    found = re.search(rf"^\| {name}[^|]*\|(.*)\|$", PAGE, re.MULTILINE)
    assert found is not None, name
    return [float(cell) for cell in found[1].split("|")]


def test_the_pages_factors_are_means_over_the_schedules() -> None:
    alphas = [scheduler("ddim", shift).alphas_cumprod.double() for shift in (3.0, 1.0)]
    u = (torch.arange(100_000).double() + 0.5) / 100_000
    sigmas = [shift * u / (1 + (shift - 1) * u) for shift in (3.0, 5.0)]
    epsilon = [a.mean() for a in alphas] + [(1 - s).square().mean() for s in sigmas]
    clean = [(1 - a).mean() for a in alphas] + [s.square().mean() for s in sigmas]
    assert row("epsilon error: factor") == pytest.approx([float(x) for x in epsilon], abs=5e-4)
    assert row("x0 error: factor") == pytest.approx([float(x) for x in clean], abs=5e-4)


def test_the_pages_sizes_are_those_of_the_latents() -> None:
    sizes = [(49, 480, 720), (49, 480, 720), (81, 480, 832), (81, 720, 1280)]
    latents = [16 * ((f - 1) // 4 + 1) * (h // 8) * (w // 8) for f, h, w in sizes]
    assert row("elements of a video.s latents") == latents
