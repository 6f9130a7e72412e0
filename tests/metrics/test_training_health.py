"""The health of a round: means by hand, missing values, and a round that was killed and resumed."""

import math

import pytest
import torch
from torch import Tensor

from ipo_lightning.metrics.training_health import TrainingHealth

NAN = math.nan


def updated(health: TrainingHealth, *batches: dict[str, Tensor]) -> TrainingHealth:
    """The metric after batches."""
    for batch in batches:
        health.update(**batch)
    return health


def batch(size: int, seed: int) -> dict[str, Tensor]:
    """Random values of a training step."""
    generator = torch.Generator().manual_seed(seed)
    names = ("loss", "margin", "error_win_change", "error_lose_change")
    return {name: torch.randn(size, generator=generator) for name in names}


def test_health_by_hand() -> None:
    health = updated(
        TrainingHealth(),
        {"loss": torch.tensor([1.0, 2.0]), "margin": torch.tensor([0.0, 2.0])},
        {"loss": torch.tensor([6.0]), "margin": torch.tensor([-1.0])},
    )
    # A batch of two weighs twice a batch of one; the margin of zero is half a hit.
    assert health.compute() == pytest.approx({"loss": 3.0, "margin": 1 / 3, "accuracy": 0.5})


def test_a_missing_value_counts_for_nobody() -> None:
    health = TrainingHealth()
    health.update(error_win=torch.tensor([1.0, NAN, 4.0]), margin=torch.tensor([NAN, NAN, NAN]))
    assert health.compute() == {"error_win": 2.5}


def test_quarters_of_the_timesteps_by_hand() -> None:
    health = TrainingHealth()
    health.update(
        margin=torch.tensor([1.0, 3.0, -2.0, 0.0]),
        drift=torch.tensor([1.0, 1.0, 1.0, 1.0]),
        u=torch.tensor([0.0, 0.2499, 0.25, 0.9999]),
    )
    found = health.compute()
    assert {k: v for k, v in found.items() if k.startswith("margin")} == {
        "margin": 0.5, "margin_q1": 2.0, "margin_q2": -2.0, "margin_q4": 0.0,
    }  # fmt: skip
    assert found["accuracy_q1"] == 1.0 and found["accuracy_q4"] == 0.5
    assert found["drift"] == 1.0 and "drift_q1" not in found


def test_empty_health_has_no_values() -> None:
    health = TrainingHealth()
    assert health.compute() == {}
    health.update(loss=torch.ones(0))
    assert health.compute() == {}


def test_health_refuses_strangers_and_stray_axes() -> None:
    with pytest.raises(ValueError, match="unknown values"):
        TrainingHealth().update(lost=torch.ones(2))
    with pytest.raises(ValueError, match=r"\(N,\)"):
        TrainingHealth().update(loss=torch.ones(2, 2))


def test_a_resumed_round_reports_what_an_unbroken_one_does() -> None:
    batches = [batch(3, seed) for seed in range(6)]
    unbroken = updated(TrainingHealth(), *batches).compute()
    killed = updated(TrainingHealth(), *batches[:4])
    resumed, other = TrainingHealth(), TrainingHealth()
    resumed.resume(killed.state(), leads=True)
    assert updated(resumed, *batches[4:]).compute() == unbroken
    other.resume(killed.state(), leads=False)  # another rank: the counts are of all together
    assert other.compute() == {}


def test_a_state_replaces_a_result_computed_before() -> None:
    one, other = updated(TrainingHealth(), batch(4, 0)), updated(TrainingHealth(), batch(4, 1))
    assert one.compute() != other.compute()
    one.resume(other.state(), leads=True)
    assert one.compute() == other.compute()


def test_health_is_no_weight_of_its_module_and_stays_float64() -> None:
    module = torch.nn.Module()
    module.health = updated(TrainingHealth(), batch(4, 0))
    before = module.health.compute()
    module.half()
    assert module.state_dict() == {}
    assert {v.dtype for v in module.health.state().values()} == {torch.float64}
    assert updated(module.health, {}).compute() == before


def test_reset_starts_a_new_round() -> None:
    health = updated(TrainingHealth(), batch(4, 0))
    health.reset()
    assert health.compute() == {}


def test_many_small_values_are_summed_exactly_enough() -> None:
    health = TrainingHealth()
    health.update(loss=torch.tensor([1e8]))
    for _ in range(100):
        health.update(loss=torch.tensor([1.0]))
    assert health.compute()["loss"] == pytest.approx((1e8 + 100) / 101, rel=1e-12)
