"""Every shipped choice is planned."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import train
from app.entry import CONF
from tests.conftest import ComposeTrain
from tests.helpers.choices import CHOICES, PACKAGES, beside


def planned() -> Iterator[Any]:
    """The choices but experiments of real models and their backbones, which test_experiments.py
    plans for their cards.

    A plan takes a second, one of a large network several.
    """
    files = (path.read_text() for path in CONF.glob("experiment/ipo_*.yaml"))
    theirs = {f"backbone={name}" for text in files
              for name in re.findall(r"override /backbone: (\w+)", text)}  # fmt: skip
    for choice in CHOICES:
        group = choice.partition("=")[0]
        if not choice.startswith("experiment=ipo_") and choice not in theirs:
            long = group not in ("reference", "rollout")
            yield pytest.param(choice, marks=[pytest.mark.slow] if long else [])


@pytest.mark.slow
@pytest.mark.parametrize("choice", list(planned()))
def test_every_choice_is_planned(
    choice: str,
    compose_train: ComposeTrain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The parts of the run are instantiated, and the plan printed."""
    if choice in PACKAGES:
        pytest.importorskip(PACKAGES[choice])
    cfg = compose_train(*beside(choice, tmp_path))
    cfg.dry_run, cfg.round, cfg.plan.tflops = True, 1, 1.0
    assert train.train(cfg) is None
    assert "round  rollout" in capsys.readouterr().out
    assert not Path(cfg.paths.outputs, cfg.name).exists()
