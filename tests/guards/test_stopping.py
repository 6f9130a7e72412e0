"""Guards in a run: what they find is written down, they end the run, and the run may go on."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.ending import STOPPED, ended
from ipo_lightning.guards import best_of
from ipo_lightning.storage.layout import RunDir, start_of
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
    (found,) = line["guards"]
    assert (found["guard"], found["action"]) == ("labels", "stop")
    assert found["reason"] == line["checks"]["labels"] and "drift" in line["checks"]
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


ROLLBACK = ("guards=rollback", "guards.checks.labels.least=1000", "evaluation.split=final",
            "evaluation.choice_n=1", "evaluation.n=2", "data.max_passes=4")  # fmt: skip


@pytest.mark.slow
def test_a_rollback_goes_on_from_the_best_round_whenever_it_is_stopped(
    begun: ComposeTrain, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every round has an alarm; the base's or round 1's policy makes the next one's videos."""
    whole = begun("round=3", *ROLLBACK)
    last = train(whole)
    run = RunDir(Path(whole.paths.outputs, "run"))
    lines = run.lines()
    assert last == lines[3] and STOPPED.pop().startswith("alarms in round 3")
    for number, scale in ((2, 0.5), (3, 0.25)):
        best = best_of(lines[:number])
        assert start_of(run.round(number)) == {"round": best["round"], "lr_scale": scale}
        assert lines[number]["start"] == start_of(run.round(number))
    assert "start" not in lines[1] and not run.round(1).start_file.exists()
    assert json.loads(run.best_file.read_bytes()) == best_of(lines)
    assert f"round 3 started from round {best['round']}" in capsys.readouterr().out
    labels = lines[1]["n_pairs"]
    steps = -(-4 * labels // 2)
    assert (run.round(1).checkpoints / f"update-{min(6, steps):06d}.ckpt").exists()
    assert {line["choice"]["videos"] for line in lines} == {2}
    named = [{name for name in line["gauges"] if "diversity" in name} for line in lines]
    assert named == [{"diversity", "diversity_latents", "diversity_real"}, *[named[1]] * 3]
    assert named[1] == named[0] - {"diversity_real"}

    def brought_to(*words: str) -> list[dict[str, Any]]:
        """In another folder: the same rounds, in several commands."""
        train(begun(*words, outputs="pieces"))
        STOPPED.clear()
        return RunDir(run.path.parents[1] / "pieces" / "run").lines()

    assert len(brought_to("round=1", *ROLLBACK)) == 2
    brought_to("round=2", "until=rollout", *ROLLBACK)
    brought_to("round=2", *ROLLBACK, "guards=watch")  # the round is begun: its start stays
    pieces = brought_to("round=3", *ROLLBACK, "guards=watch")
    assert [one["policy"] for one in pieces[:3]] == [one["policy"] for one in lines[:3]]
    assert "start" not in pieces[3] and pieces[3]["policy"] != lines[3]["policy"]
