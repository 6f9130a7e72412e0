"""Whole runs: precomputed reference errors against an online reference; sharing, resuming."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app import assembly, claiming, process
from ipo_lightning.module import PreferenceModule
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import Store, read_jsonl
from tests.rounds.test_rounds import Compose, Killed, crash_at, results
from train import fit, train


class Watch(L.Callback):
    """The figures of every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        found = trainer.callback_metrics
        self.seen.append((found["train/loss"].item(), found["train/margin"].item()))


def watched(cfg: DictConfig) -> tuple[list[tuple[float, float]], dict[str, torch.Tensor]]:
    """A run's steps and its last policy."""
    process.settle(cfg)
    parts, watch = assembly.assemble(cfg), Watch()
    trainer = assembly.build_trainer(cfg, parts.iteration)
    trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    claiming.claim(parts.run, cfg)
    fit(parts, cfg, trainer)
    return watch.seen, {name: w.clone() for name, w in parts.module.trained().items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("loss=dpo",),
        ("loss=kto",),
        ("loss=dpop", "regularise.safeguard=0.5"),
        ("loss=kto", "loss.baseline=classes"),
        ("loss=dpo", "trainer.precision=bf16-mixed"),
        ("experiment=shapes_lora",),
    ],
    ids=" ".join,
)
def test_errors_in_advance_train_as_a_live_reference_step_by_step(
    begun: Compose, settings: tuple[str, ...]
) -> None:
    """Over two rounds, the second against a policy that has been trained."""
    common = ("round=2", "until=training", "data.optimizer_steps=4", "evaluation.prompts=1",
              *settings)  # fmt: skip
    live, policy = watched(begun(*common, "reference=frozen", outputs="live"))
    known, other = watched(begun(*common, "reference=cached", outputs="known"))
    assert len(live) == 8
    mixed = "trainer.precision=bf16-mixed" in settings
    for step, (one, two) in enumerate(zip(live, known, strict=True)):
        tolerance = 3e-2 if mixed else 2e-3
        assert two == pytest.approx(one, rel=tolerance, abs=1e-3 if mixed else 1e-5), step
    if not mixed:
        assert all(torch.allclose(w, other[name], atol=2e-5) for name, w in policy.items())


@pytest.mark.slow
def test_a_sweep_over_losses_and_rates_computes_the_reference_once(
    begun: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(begun("round=1", "name=first", "until=training"))
    written: list[str] = []
    original = Store.put_record

    def spy(self: Store, kind: str, key: str, value: Any) -> None:
        written.append(kind)
        original(self, kind, key, value)

    monkeypatch.setattr(Store, "put_record", spy)
    for name, change in enumerate(("loss=hinge", "loss.beta=7", "optim.optimizer.lr=1e-5")):
        train(begun("round=1", f"name=run{name}", "until=training", change))
    assert written == []
    train(begun("round=1", "name=longer", "until=training", "data.optimizer_steps=8"))
    assert set(written) == {"reference"}


ENDS = {
    "reference=ema": (1, 4),
    "loss.beta=auto": (1, 4),
    "regularise.real=5": (1, 4),
    "step=two_pass": (1, 4),
    "loss=nft": (2, 9),
}
"""Of how many rounds a run is, and in which of its steps it is stopped."""


@pytest.mark.slow
@pytest.mark.parametrize(("override", "when"), ENDS.items())
def test_a_round_that_is_stopped_goes_on_as_if_it_had_not(
    begun: Compose, override: str, when: tuple[int, int]
) -> None:
    last, call = when
    settings = (f"round={last}", "data.real.n=6", "evaluation.prompts=1", override)
    train(begun(*settings, outputs="whole"))
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, PreferenceModule, "training_step", call)
        with pytest.raises(Killed):
            train(begun(*settings))
    train(begun(*settings))
    assert results(begun(*settings)) == results(begun(*settings, outputs="whole"))


@pytest.mark.slow
def test_beta_of_its_own_is_written_down(begun: Compose) -> None:
    line = train(begun("round=2", "loss.beta=auto", "calibration.logit=3", "logger=tensorboard"))
    run = RunDir(Path(begun().paths.outputs) / "run")
    betas = [json.loads((run.round(n).path / "beta.json").read_text())["beta"] for n in (1, 2)]
    assert line is not None and line["train"]["beta"] == pytest.approx(betas[1])
    assert betas[0] != betas[1] and min(betas) > 0
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("round/beta")] == pytest.approx(betas)
    other = train(begun("round=1", "loss.beta=auto", "calibration.logit=6", "name=twice"))
    assert other is not None and other["train"]["beta"] == pytest.approx(2 * betas[0])


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["simpo", "mapo", "sft", "rwr"])
def test_a_loss_without_reference_runs_without_one(begun: Compose, loss: str) -> None:
    line = train(begun("round=1", f"loss={loss}", "reference=none"))
    assert line is not None and "margin" not in line["train"]
    assert line["train"]["error_win"] > 0
    assert "reference errors" not in line["seconds"]


@pytest.mark.slow
def test_health_is_kept_with_each_round(begun: Compose) -> None:
    line = train(begun("round=1", "regularise.real=1", "data.real.n=4"))
    assert line is not None
    health = line["train"]
    assert {"error_win", "error_lose", "error_win_change", "error_lose_change", "error_real",
            "drift", "saturated", "gradient_norm", "accuracy", "margin"} <= set(health)  # fmt: skip
    wins, losses = health["error_win_change"], health["error_lose_change"]
    assert health["drift"] == pytest.approx((wins + losses) / 2, abs=1e-6)
    assert health["margin"] == pytest.approx(losses - wins, abs=1e-6)
    real = json.loads((RunDir(Path(begun().paths.outputs) / "run").path / "real.json").read_text())
    assert real == {"kept": 4, "dropped": {}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labelling", "file"),
    [("graded", "points"), ("margin_weighted", "pairs"), ("rarity_weighted", "pairs")],
)
def test_labels_carry_their_grades(begun: Compose, labelling: str, file: str) -> None:
    loss = ("loss=rwr", "loss.graded=true") if file == "points" else ()
    train(begun("round=1", "until=training", f"labelling={labelling}", *loss))
    folder = RunDir(Path(begun().paths.outputs) / "run").round(1).path
    rows = read_jsonl(folder / f"{file}.jsonl")
    if file == "points":
        assert len(rows) == 9 and len({row["reward"] for row in rows}) > 2
    else:
        assert len({row["weight"] for row in rows}) > 1
