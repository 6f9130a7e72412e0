"""Guards in a run: what they find is written down, they end the run, and the run may go on."""

from pathlib import Path

import pytest

from app.ending import STOPPED, ended
from ipo_lightning.storage.layout import RunDir
from tests.conftest import ComposeTrain
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

    train(begun("round=2", *ALARM))
    assert "stopped by guards after round 1" in capsys.readouterr().out
    assert not run.round(2).path.exists()
    with pytest.raises(SystemExit) as left, ended([]):
        pass
    assert left.value.code == 3 and STOPPED.pop()

    line = train(begun("round=2", "guards=watch"))
    assert line is not None and line["round"] == 2 and not STOPPED
