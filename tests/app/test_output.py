"""``log=json``: JSON lines and nothing else on stdout, no bars, no part of what a run is."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hydra import compose, initialize_config_dir

from app.entry import CONF, settings
from app.output import Output
from callbacks.progress import StageLog
from ipo_lightning.errors import InputError
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.rounds import Round, RoundPolicies, RoundStage
from ipo_lightning.rounds.headings import heading, in_words, seconds_left
from ipo_lightning.storage.layout import RoundData, RunDir
from ipo_lightning.storage.store import write_jsonl
from sample import sample
from tests.conftest import ComposeTrain
from train import train

ORDER = ("rollout", "critique", "labelling", "reference errors", "training", "evaluation")


def told(capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], str]:
    """The lines of stdout, all of which are JSON, and what stderr has."""
    captured = capsys.readouterr()
    return [json.loads(line) for line in captured.out.splitlines()], captured.err


@pytest.mark.slow
def test_a_run_tells_its_stages_alarms_and_end(
    begun: ComposeTrain, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("log=json", "trainer.enable_progress_bar=true", "loss.beta=auto",
             "callbacks={progress: {_target_: callbacks.progress.RoundProgressBar}}",
             "guards.checks.labels.least=1000")  # fmt: skip
    cfg = begun("round=1", *words)
    line = train(cfg)
    assert line is not None
    lines, bars = told(capsys)
    assert bars == ""
    stages = [(one["round"], one["stage"]) for one in lines if one["event"] == "stage"]
    assert stages == [(0, "evaluation"), *((1, name) for name in ORDER)]
    assert line["seconds"].keys() == set(ORDER)
    units = {one["stage"]: one["units"] for one in lines if one["event"] == "stage"}
    assert units["rollout"] == units["critique"] == 9
    assert (units["labelling"], units["training"], units["reference errors"]) == (3, 6, 12)
    spent = {one["stage"]: one["seconds"] for one in lines if one.get("round") == 1 and
             one["event"] == "stage"}  # fmt: skip
    assert spent == pytest.approx(line["seconds"], abs=0.5)
    alarms = [one for one in lines if one["event"] == "guard"]
    assert [one["guard"] for one in alarms] == ["labels"] and alarms[0]["round"] == 1
    report, last = lines[-2:]
    assert report["event"] == "report" and report["gain"] == line["gain"]
    assert Path(report["file"]).is_file()
    assert last == {"event": "end", "run": f"{cfg.paths.outputs}/run", "round": 1, "stopped": None}

    train(begun("round=1", *words, "log=text"))  # finished: it is the same run
    assert "report: " in capsys.readouterr().out
    train(begun("round=1", *words))
    assert [one["event"] for one in told(capsys)[0]] == ["report", "end"]


@pytest.mark.slow
def test_a_plan_is_a_message(small: ComposeTrain, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(small("round=1", "dry_run=true", "log=json", "plan.tflops=1")) is None
    lines, _ = told(capsys)
    assert [one["event"] for one in lines] == ["message", "end"]
    assert "a round: 3 prompts x 3 candidates" in lines[0]["text"]


def test_videos_are_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ckpt=ipo_lightning/shapes/pipeline", 'prompt="a red ring"', "n=2", "steps=1",
             "trainer.accelerator=cpu", f"paths.outputs={tmp_path}", "log=json"]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        files = sample(compose("sample", words))
    lines, bars = told(capsys)
    assert [one["event"] for one in lines] == ["video", "video", "message", "end"]
    assert [one["file"] for one in lines[:2]] == list(map(str, files))
    assert bars == ""


def test_the_log_is_no_part_of_a_run(small: ComposeTrain) -> None:
    cfg = small("log=json")
    assert settings(cfg) == settings(small()) and "log" not in settings(cfg)


def test_other_logs_are_refused(small: ComposeTrain) -> None:
    with pytest.raises(InputError, match="log=xml: give text or json|log=xml"):
        train(small("log=xml"))


@pytest.fixture(autouse=True)
def as_text_again() -> Any:
    yield
    Output.as_json = False


# ---------------------------------------------------------------- stages


class Step(RoundStage):
    """A stage that may be done."""

    def __init__(self, name: str, done: bool = False) -> None:
        self.name, self.is_done = name, done

    def done(self, round: Round) -> bool:
        return self.is_done


def through(stages: list[RoundStage], folder: Path, rank: int = 0) -> list[tuple[str, Any]]:
    """What stages tell that a round goes through, as the round's maker does."""
    heard: list[tuple[str, Any]] = []
    log = StageLog(lambda event, **facts: heard.append((facts["stage"], facts["units"])))
    run = RunDir(folder)
    module = cast(PreferenceModule, SimpleNamespace(label_kind="pairwise"))
    runtime = Runtime(workers=Workers(rank, rank + 1))
    current = Round(1, run, module, RoundPolicies(run, module), runtime,
                    RoundData(1, (), {}), draws=40)  # fmt: skip
    for stage in log.told(stages):
        if not stage.done(current):
            stage.run(current)
        stage.load(current)
    return heard


@pytest.mark.parametrize("done", [(False, False), (True, False), (False, True)])
def test_stages_of_one_name_tell_once(done: tuple[bool, bool], tmp_path: Path) -> None:
    same: list[RoundStage] = [Step("reference errors", one) for one in done]
    stages = [Step("rollout"), Step(""), *same, Step("critique", done=True)]
    expected = [("rollout", None), ("reference errors", 40)]
    assert through(stages, tmp_path) == expected
    assert through(stages, tmp_path, rank=1) == []


def test_what_is_found_on_disk_tells_nothing(tmp_path: Path) -> None:
    assert through([Step("rollout", True), Step("reference errors", True)], tmp_path) == []


# ---------------------------------------------------------------- time left


SECONDS = {"rollout": 60.0, "training": 30.0, "evaluation": 10.0}
LINES = [{"round": 0, "seconds": {"evaluation": 10.0}}, {"round": 1, "seconds": SECONDS},
         {"round": 2, "seconds": {**SECONDS, "rollout": 80.0}}]  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "spent", "number", "last", "left"),
    [
        (LINES, {}, 3, 3, 110.0),
        (LINES, {"rollout": 65.0}, 3, 5, 40.0 + 2 * 110.0),
        (LINES[:2], {"rollout": 1.0, "training": 1.0}, 2, 2, 10.0),
        (LINES, {}, 2, 3, 200.0),  # made anew: what comes later says nothing
        (LINES[:1], {}, 1, 3, None),
        ([], {}, 0, 3, None),
        ([{"round": 1}], {}, 2, 3, 0.0),  # of an older version
    ],
)
def test_seconds_left(
    lines: list[dict[str, Any]],
    spent: dict[str, float],
    number: int,
    last: int,
    left: float | None,
) -> None:
    assert seconds_left(lines, spent, number, last) == left


def test_a_heading_says_what_is_left(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert heading(run, 1, None) == "round 1"
    assert heading(run, 1, 3) == "round 1 of 3"
    write_jsonl(run.rounds_file, LINES)
    assert heading(run, 3, 4) == "round 3 of 4, about 4 min left"
    assert [in_words(s) for s in (0.4, 59.4, 61, 5400)] == ["0 s", "59 s", "1 min", "1.5 h"]
