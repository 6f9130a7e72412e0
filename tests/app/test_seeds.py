"""``seeds=1,2,3``: a run for each seed, names, table, intervals; and what searches raise."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import train
from app.entry import refuse_misspelt
from app.seeds import SeedRun, told, with_seeds
from callbacks.stopping import JudgeEarlyStopping
from ipo_lightning.errors import InputError
from tests.conftest import SMALL, ComposeTrain
from tests.helpers.commands import command


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["seeds=1,2,3"], ["-m", "seed=1,2,3"]),
        (["loss=kto", "seeds=1, 2"], ["-m", "loss=kto", "seed=1,2"]),
        (["-m", "loss=dpo,kto", "seeds=-1,2"], ["-m", "loss=dpo,kto", "seed=-1,2"]),
        (["seeds=1,2", "name=mine"], ["-m", "name=mine-s${seed}", "seed=1,2"]),
        (["seeds=1,2", "name='my, run'"], ["-m", "name='my, run-s${seed}'", "seed=1,2"]),
        (["-m", "seeds=1,2", "name=a,b"], ["-m", "name=a-s${seed},b-s${seed}", "seed=1,2"]),
        (["loss=kto"], ["loss=kto"]),
    ],
)
def test_seeds_are_a_sweep_over_the_seed(words: list[str], found: list[str]) -> None:
    assert with_seeds("train", words) == found
    refuse_misspelt("train", found)


@pytest.mark.parametrize(
    ("config", "words", "said"),
    [
        ("train", ["seeds=1"], "seeds=1: give two different whole numbers or more"),
        ("train", ["seeds="], "give two different whole numbers"),
        ("train", ["seeds=1,x"], "seeds=1,x: give two"),
        ("train", ["seeds=1,01"], "give two different"),
        ("train", ["seeds=1,2", "seed=3"], "seeds=1,2 and seed=3: give one of them"),
        ("train", ["seeds=1,2", "hparams_search=optuna"], "a search would choose among the seeds"),
        ("train_critic", ["seeds=1,2"], "seeds are for task=policy"),
    ],
)
def test_wrong_seeds_are_refused(config: str, words: list[str], said: str) -> None:
    with pytest.raises(InputError) as refused:
        with_seeds(config, words)
    assert said in str(refused.value)


def run(name: str, seed: int, settings: str, gain: Any, rate: float | None = 0.6) -> SeedRun:
    line = {"round": 2, "gain": gain, "win_rate": rate, "win_rate_ci": [0.5, 0.7]}
    if not isinstance(gain, dict):
        line["gain_ci"] = [0.0, 1.0]
    return SeedRun(Path(name), seed, settings, line)


def test_the_interval_is_between_seeds_by_hand(tmp_path: Path) -> None:
    """Student's with two degrees of freedom: 4.303 times the error of the mean of 1, 2 and 3."""
    mine = tmp_path / "a"
    runs = [
        run(f"{mine}1", 1, "loss=dpo round=2", {"mean": 1.0, "low": 0.0, "high": 2.0}),
        run(f"{mine}4", 1, "loss=kto round=2", None, None),
        run(f"{mine}2", 2, "loss=dpo round=2", 2.0),
        run(f"{mine}3", 3, "loss=dpo round=2", 3.0, 0.9),
    ]
    text = told(runs, "python train.py seeds=1,2,3 round=2")
    (file,) = tmp_path.glob("seeds-*.json")
    assert text.endswith(f"seeds: {file}") and "mean of 3" in text and "round=2" not in text
    found = json.loads(file.read_text())
    dpo, kto = found["groups"]
    half = 4.302653 / math.sqrt(3)
    assert dpo["settings"] == "loss=dpo" and dpo["seeds"] == [1, 2, 3]
    assert dpo["gain"] == pytest.approx({"mean": 2.0, "low": 2 - half, "high": 2 + half}, abs=1e-5)
    assert dpo["win_rate"]["mean"] == pytest.approx(0.7) and dpo["win_rate"]["high"] == 1
    assert kto["gain"] == {"mean": None, "low": None, "high": None}
    assert found["runs"][0]["gain"] == {"mean": 1.0, "low": 0.0, "high": 2.0}
    assert found["runs"][1]["gain"] == {"mean": 2.0, "low": 0.0, "high": 1.0}
    assert told([], "") == ""


@pytest.mark.slow
def test_seeds_are_trained_in_one_command(tmp_path: Path) -> None:
    words = [word for word in SMALL if not word.startswith("name=")]
    done = command("train.py", *words, "seeds=1,2", "round=1", "rollout.prompts=2",
                   f"paths.outputs={tmp_path}", "name=tiny")  # fmt: skip
    assert done.returncode == 0 and "mean of 2" in done.stdout
    found = json.loads(Path(done.stdout.rstrip().rpartition("\nseeds: ")[2]).read_text())
    assert [one["name"] for one in found["runs"]] == ["tiny-s1", "tiny-s2"]
    assert found["groups"][0]["seeds"] == [1, 2]
    assert {path.name for path in tmp_path.iterdir()} > {"tiny-s1", "tiny-s2", "store"}


# -------------------------------------------------------------------- searches, early stopping


def test_choices_are_made_by_the_select_split() -> None:
    cfg = OmegaConf.create()
    line = {"round": 1, "eval_score": 0.9, "choice": {"eval_score": 0.1}}
    assert train.objective(cfg, line) == 0.1 and train.objective(cfg, None) is None
    assert train.objective(cfg, {"eval_score": 0.9, "choice": None}) == 0.9
    rising = [{"round": k, "eval_score": float(k)} for k in range(3)]
    falling = [one | {"choice": {"eval_score": -one["eval_score"]}} for one in rising]
    stopping = JudgeEarlyStopping(patience=2)
    assert stopping.reason(rising) is None
    assert "the best is round 0" in str(stopping.reason(falling))
    assert stopping.reason([*rising[:1], *falling[1:]]) is None  # not of one split


def test_a_search_on_the_reported_split_is_refused(
    compose_train: ComposeTrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "searches", lambda: True)
    with pytest.raises(InputError, match="evaluation.split=final: a search chooses by"):
        train.refuse(compose_train("evaluation.split=final", "evaluation.choice_n=0"))
    train.refuse(compose_train("evaluation.split=select", "evaluation.choice_n=0"))
    train.refuse(compose_train("evaluation.split=final"))
    monkeypatch.setattr(train, "searches", lambda: False)
    train.refuse(compose_train("evaluation.split=final", "evaluation.choice_n=0"))
