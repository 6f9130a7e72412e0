"""Guards in a run: what they find is written down, they end the run, and the run may go on."""

from pathlib import Path

import pytest

from app.ending import STOPPED
from ipo_lightning.storage.layout import RunDir
from tests.conftest import SMALL, ComposeTrain
from tests.helpers.commands import command
from train import train

ALARM = ("guards=stop", "guards.checks.labels.least=1000")


@pytest.mark.slow
def test_a_run_that_guards_end_says_so_stays_ended_and_goes_on_when_told(
    begun: ComposeTrain, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = begun("round=2", *ALARM)
    line = train(cfg)
    assert line is not None and line["round"] == 1
    found = {one["guard"]: one for one in line["guards"]}
    assert (
        found["labels"]["alarm"] and not found["diversity"]["alarm"]
        if "diversity" in found
        else True
    )
    told = "guards, round 1: labels: the round was trained on"
    assert told in capsys.readouterr().out
    run = RunDir(Path(cfg.paths.outputs, "run"))
    assert "the round was trained on" in (run.path / "report.html").read_text()
    assert STOPPED.pop().startswith("stopped by guards after round 1: labels:")

    words = [*SMALL, f"paths.outputs={cfg.paths.outputs}", "round=2", *ALARM]
    again = command("train.py", *words)
    assert again.returncode == 3 and "stopped by guards after round 1" in again.stdout, again
    assert not run.round(2).path.exists()

    line = train(begun("round=2", "guards=watch"))
    assert line is not None and line["round"] == 2 and not STOPPED
