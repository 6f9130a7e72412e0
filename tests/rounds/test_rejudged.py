"""Another judge evaluates a run that is trained: nothing else is made again."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from ipo_lightning.errors import InputError
from ipo_lightning.storage.layout import RunDir, forget_evaluation
from tests.conftest import ComposeTrain
from train import train

OTHER = "eval_critic=gauges"


def run_of(cfg: DictConfig) -> RunDir:
    return RunDir(Path(cfg.paths.outputs) / cfg.name)


def lines(cfg: DictConfig) -> list[dict[str, Any]]:
    """Without what every evaluation takes anew."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in run_of(cfg).lines()]


def weights(cfg: DictConfig) -> dict[str, int]:
    """Files that a training writes, and when they were written."""
    files = [*run_of(cfg).path.glob("round_*/policy/*.safetensors"),
             *run_of(cfg).path.glob("round_*/pairs.jsonl")]  # fmt: skip
    return {str(file): file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
def test_another_judge_evaluates_all_rounds_again(begun: ComposeTrain) -> None:
    first = begun("round=1")
    train(first)
    of_first, trained = lines(first), weights(first)
    other = begun("round=1", OTHER)
    with pytest.warns(UserWarning, match="eval_critic has changed: all rounds .* by GaugeCritic"):
        train(other)
    again = lines(other)
    assert weights(other) == trained
    assert [one["policy"] for one in again] == [one["policy"] for one in of_first]
    assert [one["score"] for one in again] == [one["score"] for one in of_first]
    assert all(one["eval_score"] != old["eval_score"]
               for one, old in zip(again, of_first, strict=True))  # fmt: skip
    page = (run_of(first).path / "report.html").read_text()
    assert "The run was judged by ShapesJudge before" in page
    best = json.loads(run_of(first).best_file.read_bytes())["round"]
    assert best in (0, 1)
    train(other)  # it is finished
    with pytest.warns(UserWarning, match="by ShapesJudge; what GaugeCritic said"):
        train(first)
    assert lines(first) == of_first and weights(first) == trained
    assert [one["judge"] for one in run_of(first).earlier_judges()] == [
        "ShapesJudge", "GaugeCritic"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_kill_in_the_midst_is_gone_on_with(begun: ComposeTrain) -> None:
    """By either judge; and further rounds are judged by the new one."""
    first = begun("round=1")
    train(first)
    of_first = lines(first)
    forget_evaluation(run_of(first).round(0))
    train(first)
    assert lines(first) == of_first
    run = run_of(first)
    run.forget_evaluations("ShapesJudge")  # killed before the settings were written
    train(begun("round=2", OTHER))
    (earlier,) = run.earlier_judges()
    assert [one["round"] for one in earlier["lines"]] == [0, 1]
    assert [one["round"] for one in lines(first)] == [0, 1, 2]


@pytest.mark.slow
def test_the_judge_is_known_where_config_yaml_is_gone(begun: ComposeTrain) -> None:
    first = begun("round=1")
    train(first)
    run_of(first).config_file.unlink()
    with (
        pytest.warns(UserWarning, match="evaluated again by GaugeCritic"),
        pytest.warns(UserWarning, match=r"config\.yaml is gone"),
    ):
        train(begun("round=1", OTHER))
    assert [one["round"] for one in lines(first)] == [0, 1]


def test_other_settings_are_refused_with_another_judge(begun: ComposeTrain) -> None:
    train(begun("round=1", "until=rollout"))
    with pytest.raises(InputError, match=r"other settings .*loss"):
        train(begun("round=1", OTHER, "loss=kto", "until=rollout"))
