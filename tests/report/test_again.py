"""The report made again: by ``report_only=true``, by the callback, with what was asked."""

from pathlib import Path

import pytest
from lightning import Trainer
from omegaconf import OmegaConf

from app.reporting import settings_of_run, write_down
from callbacks.report import ReportWriter
from ipo_lightning.errors import InputError
from ipo_lightning.report import write_report
from ipo_lightning.report.run import read_asked
from ipo_lightning.rounds import RoundListener
from ipo_lightning.storage.layout import RunDir
from tests.conftest import ComposeTrain
from tests.report.runs import write_run
from train import train


@pytest.mark.slow
def test_report_only_makes_the_report_of_a_run_and_nothing_else(
    compose_train: ComposeTrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, rounds=1)
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    assert train(compose_train("name=squares", "report_only=true")) is None
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert {one.name for one in run.iterdir()} == {*before, "report.html", "report", "round_0",
                                                   "round_1"}  # fmt: skip
    assert all((run / name).read_bytes() == content for name, content in before.items())
    assert (run / "report" / "rounds.svg").exists()
    with pytest.raises(InputError, match="no run folder"):
        train(compose_train("name=nowhere", "report_only=true"))


def test_what_differs_from_the_defaults_is_told(
    compose_train: ComposeTrain, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    assert settings_of_run(run) is None
    words = ("loss=identity", "loss.beta=7", "seed=3", "rollout.prompts=5", "guards=off", "round=2")
    OmegaConf.save(compose_train(*words), run.config_file, resolve=True)
    write_down(run, "python train.py a")
    write_down(run, "python train.py b")
    write_down(run, "python train.py a")
    write_down(run, None)
    asked = read_asked(run.path)
    assert asked.commands == ("python train.py b", "python train.py a")
    assert asked.settings is not None
    told = {key: (default, here) for key, default, here in asked.settings}
    assert told.pop("guards.action", None) in (None, ("watch", "off"))
    told = {key: values for key, values in told.items() if not key.startswith("guards")}
    assert told == {
        "seed": ("0", "3"),
        "round": ("3", "2"),
        "rollout.prompts": ("null", "5"),
        "loss": ("dpo_loss", "identity_loss"),
        "loss.beta": ("1000.0", "7"),
    }
    OmegaConf.save(compose_train(), run.config_file, resolve=True)
    assert settings_of_run(run) == []


def test_a_page_after_each_round_and_none_that_ends_the_run(tmp_path: Path) -> None:
    run, writer = write_run(tmp_path, rounds=1), ReportWriter(plots=False)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert isinstance(writer, RoundListener)
    writer.on_round_end(trainer, 1, run / "round_1")
    assert (run / "report.html").exists() and not list(run.glob("report/*.png"))
    (run / "rounds.jsonl").write_text('{"rou')
    with pytest.warns(UserWarning, match=r"no report after round 1: .*rounds\.jsonl is damaged"):
        writer.on_round_end(trainer, 1, run / "round_1")


def test_a_page_is_made_again_when_what_it_shows_has_changed(tmp_path: Path) -> None:
    run = write_run(tmp_path, rounds=1)
    page, rounds = write_report(run), run / "rounds.jsonl"
    whole, lines = page.read_bytes(), rounds.read_text()

    def made_again() -> bool:
        before = page.stat().st_ino
        write_report(run)
        return page.stat().st_ino != before

    assert not made_again()
    rounds.write_text("".join(lines.splitlines(keepends=True)[:1]))
    assert made_again()
    rounds.write_text(lines)
    assert made_again()
    assert page.read_bytes() == whole
    for damaged in (page, run / "report" / "report.md"):
        damaged.write_bytes(b"")
        assert made_again()
    next((run.parent / "store" / "videos").rglob("*.mp4")).unlink()
    assert made_again()
