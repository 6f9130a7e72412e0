"""The loop end to end on the shipped pipeline: crashes, resumption, growth, sharing, damage."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from app import assembly
from app.finished import finished_run
from ipo_lightning.critics.stage.answer_cache import AnswerCache
from ipo_lightning.errors import InputError
from ipo_lightning.module import PreferenceModule
from ipo_lightning.rounds import Checkpoints, RoundMaker
from ipo_lightning.rounds.closing import RecordStage
from ipo_lightning.rounds.labels import LabellingStage
from ipo_lightning.rounds.training import TrainingStage
from ipo_lightning.sampling import Sampler
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import Store, read_jsonl
from train import train

Compose = Callable[..., DictConfig]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the program catches it."""


def results(cfg: DictConfig) -> list[dict[str, Any]]:
    """rounds.jsonl but for its seconds, and the round's labels."""
    run = RunDir(Path(cfg.paths.outputs) / cfg.name)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in run.lines()]
    for line in lines[1:]:
        folder = run.round(line["round"])
        line["files"] = {
            file.name: file.read_text() for file in sorted(folder.path.glob("*.jsonl"))
        }
    return lines


def crash_at(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, call: int) -> None:
    """Let the ``call``-th call of a method be the last thing that a process does."""
    original, count = getattr(owner, name), iter(range(1, 10**6))

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(count) == call:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, dying)


@pytest.fixture(scope="module")
def kept() -> dict[str, list[dict[str, Any]]]:
    """Where `unbroken` keeps its results."""
    return {}


@pytest.fixture
def unbroken(small: Compose, kept: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The results of two rounds that nothing interrupts, computed once."""
    if "results" not in kept:
        cfg = small("round=2", outputs="unbroken")
        train(cfg)
        kept["results"] = results(cfg)
    return kept["results"]


CRASHES = {
    "early": [
        (Store, "put_record", 2),  # the base's evaluation, embeddings
        (Sampler, "_make", 4),  # the first rollout
        (TrainingStage, "run", 1),  # trained, not yet exported
        (PreferenceModule, "training_step", 3),  # in round 2
    ],
    "middle": [
        (Sampler, "_make", 2),  # the base's evaluation, videos
        (AnswerCache, "ask", 6),  # the first critique
        (RecordStage, "run", 1),  # of round 1: evaluated, not yet recorded
        (TrainingStage, "run", 1),  # of round 2: after the last update of all
    ],
    "late": [
        (LabellingStage, "run", 1),
        (PreferenceModule, "training_step", 4),  # between two checkpoints
        (RecordStage, "run", 2),  # of round 2
    ],
}
"""Where the processes of a run are lost, one after the other: calls count from its own start."""


@pytest.mark.slow
@pytest.mark.parametrize("crashes", CRASHES.values(), ids=CRASHES)
def test_a_crash_anywhere_changes_nothing(
    small: Compose, unbroken: list[dict[str, Any]], crashes: list[tuple[type, str, int]]
) -> None:
    for owner, method, call in crashes:
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, owner, method, call)
            with pytest.raises(Killed):
                train(small("round=2"))
    train(small("round=2"))
    assert results(small("round=2")) == unbroken


@pytest.mark.slow
def test_a_run_grows_by_a_round_as_if_it_had_been_asked_at_once(
    small: Compose, unbroken: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small("round=1"))
    first = results(small("round=1"))
    train(small("round=2"))
    grown = results(small("round=2"))
    assert [line["round"] for line in grown] == [0, 1, 2]
    assert grown[:2] == first
    assert grown == unbroken
    # and a finished run does nothing at all: its files answer, and its page is kept
    crash_at(monkeypatch, RoundMaker, "ensure_round", 1)
    cfg = small("round=2")
    page = Path(cfg.paths.outputs) / "run" / "report.html"
    train(cfg)
    before = page.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "assemble", None)
        assert train(cfg) == RunDir(page.parent).line(2)
    assert page.stat().st_mtime_ns == before
    for words in ("round=3", "logger=csv", "optim.warmup_steps=1", "push_to_hub=me/policy"):
        assert finished_run(small("round=2", words)) is None
    (page.parent / "round_1" / "pairs.jsonl").write_text("")
    assert finished_run(cfg) is None


@pytest.mark.slow
def test_what_a_round_leaves_on_disk(begun: Compose) -> None:
    cfg = begun("round=1")
    line = train(cfg)
    folder = Path(cfg.paths.outputs) / "run"
    assert {f.name for f in folder.iterdir()} >= {"config.yaml", "rounds.jsonl", "report.html"}
    one = folder / "round_1"
    assert {f.name for f in one.iterdir()} >= {
        "candidates.jsonl", "verdicts.jsonl", "pairs.jsonl", "evaluation.jsonl", "checkpoints",
        "policy",
    }  # fmt: skip
    assert (one / "policy" / "config.json").exists()
    assert len(read_jsonl(one / "candidates.jsonl")) == 9
    assert line is not None
    assert set(line) >= {
        "round", "score", "score_se", "eval_score", "eval_score_se", "win_rate", "win_rate_ci",
        "n_pairs", "seconds", "gauges", "train", "policy",
    }  # fmt: skip
    assert set(line["train"]) >= {"loss", "accuracy", "margin", "error_win_change"}
    assert set(line["seconds"]) == {
        "rollout", "critique", "labelling", "reference errors", "training", "evaluation",
    }  # fmt: skip
    assert not list(folder.rglob(".*.ckpt")), "a temporary checkpoint was left behind"


@pytest.mark.slow
def test_a_sweep_makes_equal_stages_once(small: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    train(small("round=1", "name=first", "until=critique"))
    written: list[str] = []
    original = Store.put_record

    def spy(self: Store, kind: str, key: str, value: Any) -> None:
        written.append(kind)
        original(self, kind, key, value)

    monkeypatch.setattr(Store, "put_record", spy)
    train(small("round=1", "name=second", "loss=kto", "until=labelling"))
    assert written == [], "the second run asked for videos or verdicts that the first had made"
    points = RunDir(Path(small().paths.outputs) / "second").round(1).points()
    assert {point.desirable for point in points} == {True, False}


@pytest.mark.slow
def test_until_stops_after_the_stage_and_the_run_goes_on_from_there(begun: Compose) -> None:
    cfg = begun("round=1", "until=rollout")
    run = RunDir(Path(cfg.paths.outputs) / "run")
    train(cfg)
    assert run.done(1, "pairwise") == {
        "rollout": True, "critique": False, "labelling": False, "training": False,
        "evaluation": False,
    }  # fmt: skip
    train(cfg)  # asked again, it has nothing to do
    assert not run.round(1).verdicts_file.exists()
    train(begun("round=1", "until=training"))
    assert run.done(1, "pairwise")["training"]
    assert run.line(1) is None
    train(begun("round=1"))
    assert run.line(1) is not None


@pytest.mark.slow
def test_a_damaged_video_is_named_and_made_anew(begun: Compose) -> None:
    cfg = begun("round=1", "until=rollout")
    train(cfg)
    run, store = RunDir(Path(cfg.paths.outputs) / "run"), Store(cfg.paths.store)
    candidate = run.round(1).candidates()[0]
    path = store.path("latents", candidate.latents, ".safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + b"\0\1\2\3")
    with pytest.warns(UserWarning, match=path.name):
        train(begun("round=1", "until=labelling"))
    assert path.read_bytes() == whole
    assert run.round(1).candidates()[0] == candidate


@pytest.mark.slow
def test_videos_lost_in_mid_round_are_made_by_the_policy_that_the_round_began_with(
    small: Compose, unbroken: list[dict[str, Any]]
) -> None:
    """The network then holds half-trained weights: sampling with those would be wrong."""
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, PreferenceModule, "training_step", 10)
        with pytest.raises(Killed):
            train(small("round=2"))
    cfg = small("round=2")
    run, store = RunDir(Path(cfg.paths.outputs) / "run"), Store(cfg.paths.store)
    assert Checkpoints(run).newest(up_to=2) == run.round(2).checkpoints / "update-000002.ckpt"
    store.path("videos", run.round(2).candidates()[0].video, ".mp4").unlink()
    train(cfg)
    assert results(cfg) == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [("loss=kto",), ("loss=identity",), ("loss=sft",),
                                       ("experiment=shapes_lora",),
                                       ("experiment=shapes_lora", "reference.of=base"),
                                       ("reference.of=base",),
                                       ("trainer.accumulate_grad_batches=2",)])  # fmt: skip
def test_every_choice_trains_and_starts_at_the_constant_of_its_loss(
    begun: Compose, overrides: tuple[str, ...]
) -> None:
    steps = ("data.optimizer_steps=2", "regularise.winners=0")
    line = train(begun("round=1", *steps, *overrides))
    assert line is not None
    base = RunDir(Path(begun().paths.outputs) / "run").line(0)
    assert base is not None
    assert line["policy"] != base["policy"]
    assert all(value is not None for value in line["train"].values())


@pytest.mark.slow
def test_a_round_without_a_label_says_what_to_do(begun: Compose) -> None:
    with pytest.raises(InputError, match=r"round 1: no label was kept.*margin"):
        train(begun("round=1", "labelling.pair_rule.margin=5"))


@pytest.mark.slow
def test_a_checkpoint_holds_plain_tensors_and_what_was_trained(begun: Compose) -> None:
    cfg = begun("round=1", "experiment=shapes_lora", "until=training")
    train(cfg)
    run = RunDir(Path(cfg.paths.outputs) / "run")
    checkpoint = Checkpoints(run).newest(up_to=1)
    assert checkpoint is not None
    content = torch.load(checkpoint, weights_only=True)
    names = [name for name in content["state_dict"] if not name.startswith("health.")]
    assert names
    assert all("lora_" in name for name in names)
    assert json.loads((run.round(1).policy_file).read_text())["round"] == 1
