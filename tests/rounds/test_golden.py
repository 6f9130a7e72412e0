"""The numbers of a training stay what they were: the losses of a small round, step by step."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from ipo_lightning.module import PreferenceModule
from train import train

Compose = Callable[..., DictConfig]

GOLDEN = Path(__file__).with_name("golden_losses.json")
"""Losses by `loss=`. Where a change is meant to alter them, write them anew and say why in the
commit:  ``GOLDEN=write python -m pytest tests/rounds/test_golden.py``"""


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What each training step returns from now on, exactly: a float holds any float32."""
    seen: list[float] = []
    step = PreferenceModule.training_step

    def recording(self: PreferenceModule, *args: Any) -> Any:
        loss = step(self, *args)
        seen.append(loss.item())
        return loss

    monkeypatch.setattr(PreferenceModule, "training_step", recording)
    yield seen


def run(small: Compose, loss: str, outputs: str) -> None:
    """Videos, verdicts, labels, reference errors and six updates, all made anew."""
    train(small(f"loss={loss}", "round=1", "until=training", outputs=outputs))


@pytest.fixture(scope="module")
def made() -> dict[str, list[float]]:
    """The losses of the first runs, by the name of the loss."""
    return {}


@pytest.fixture
def first(
    small: Compose, losses: list[float], made: dict[str, list[float]]
) -> Callable[[str], list[float]]:
    """The losses of a run that is made once."""

    def of(loss: str) -> list[float]:
        if loss not in made:
            run(small, loss, "outputs")
            made[loss] = losses.copy()
        return made[loss]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_losses_are_the_golden_ones(first: Callable[[str], list[float]], loss: str) -> None:
    """Other processors round otherwise, hence the tolerance."""
    losses = first(loss)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(golden | {loss: losses}, indent=1) + "\n")
        pytest.skip("golden losses are written anew")
    assert losses == pytest.approx(golden[loss], rel=1e-4)


@pytest.mark.slow
def test_a_run_made_again_has_the_same_bits(
    small: Compose, losses: list[float], first: Callable[[str], list[float]]
) -> None:
    before = first("dpo")
    losses.clear()
    run(small, "dpo", "elsewhere")
    assert losses == before
    assert len(before) == 6
