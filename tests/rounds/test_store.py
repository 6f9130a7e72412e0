"""Garbage of a store: what no run refers to is listed, and deleted when told, and nothing else."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from app.assembly import assemble
from ipo_lightning.parallel.run_lock import held
from ipo_lightning.rounds.rollout import RolloutStage
from ipo_lightning.rounds.store import main
from ipo_lightning.sampling import Sampler
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import Store
from tests.conftest import SMALL, ComposeTrain
from train import train

WORDS = ("rollout.n=2", "round=1", "until=rollout")
Made = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("garbage")


@pytest.fixture
def two(made_once: Path, compose_train: ComposeTrain, tmp_path: Path) -> dict[str, DictConfig]:
    """Two runs, ``a`` and ``b``, whose rollouts differ, with one store; all of it is old."""

    def composed(outputs: Path) -> dict[str, DictConfig]:
        return {
            name: compose_train(*SMALL, *WORDS, f"seed={seed}", f"name={name}", outputs=outputs)
            for name, seed in (("a", 1), ("b", 2))
        }

    if not (made_once / "a").exists():
        for cfg in composed(made_once).values():
            train(cfg)
    copied = tmp_path / "copy"
    os.system(f"cp -r {made_once} {copied}")
    age(copied, days=9)
    return composed(copied)


def age(folder: Path, days: float) -> None:
    """Let all files be so old."""
    then = time.time() - 86400 * days
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (then, then))


def place(cfg: DictConfig) -> Path:
    return Path(f"{cfg.paths.outputs}/{cfg.name}")


def collected(cfgs: dict[str, DictConfig], runs: str, *options: str) -> int:
    store = next(iter(cfgs.values())).paths.store
    return main([str(store), *(str(place(cfgs[name])) for name in runs), *options])


def missing(cfg: DictConfig) -> int:
    """Prompts of the run's first round and evaluation that would be made again."""
    parts = assemble(cfg)
    stage = next(one for one in parts.iteration.stages if isinstance(one, RolloutStage))
    base, evaluation = parts.policy.identity, parts.evaluation
    lost = stage.sampler.missing(base, stage.plan.of_round(1), "32-true")
    lost += evaluation.sampler.independent().missing(base, evaluation.units, "32-true")
    lost_texts = [one for one in stage.plan.of_round(1)
                  if stage.sampler._find_text(one.prompt) is None]  # fmt: skip
    return len(lost) + len(lost_texts)


def held_files(cfg: DictConfig) -> set[Path]:
    return {path for path in Path(cfg.paths.store).rglob("*") if path.is_file()}


def finish(cfgs: dict[str, DictConfig]) -> None:
    """Let the runs be in the midst of no round: the first one's line is there."""
    for cfg in cfgs.values():
        run = RunDir(place(cfg))
        run.append({"round": 1, "policy": "0" * 64})
    age(Path(next(iter(cfgs.values())).paths.outputs), days=9)


@pytest.mark.slow
def test_what_one_run_needs_stays_and_what_only_another_needs_goes(
    two: dict[str, DictConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = held_files(two["a"])
    assert collected(two, "a", "--only-these") == 0
    assert held_files(two["a"]) == before, "listed, not deleted"
    finish(two)
    assert collected(two, "a", "--delete", "--only-these") == 0
    assert re.search(r"deleted: \d\d+ files", capsys.readouterr().out)
    assert missing(two["a"]) == 0
    assert missing(two["b"]) > 0
    place(two["a"]).joinpath("round_1", "candidates.jsonl").unlink()
    monkeypatch.setattr(Sampler, "_make", None)  # nothing is made again
    with pytest.warns(UserWarning, match="is gone"):
        train(two["a"])


@pytest.mark.slow
def test_with_all_runs_given_nothing_goes(two: dict[str, DictConfig]) -> None:
    finish(two)
    before = held_files(two["a"])
    assert collected(two, "ab", "--delete") == 0
    assert held_files(two["a"]) == before


@pytest.mark.slow
def test_what_a_run_in_the_midst_of_a_round_may_use_stays(two: dict[str, DictConfig]) -> None:
    before = held_files(two["a"])
    newer = time.time() - 86400 * 5
    for path in Path(two["a"].paths.store).rglob("*.*"):
        os.utime(path, (newer, newer))  # made since round 0 was finished
    assert collected(two, "a", "--delete", "--only-these") == 0
    assert held_files(two["a"]) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["young", "in use", "not given", "damaged", "no run", "no store"])
def test_what_may_be_needed_is_not_deleted(
    two: dict[str, DictConfig], kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(two)
    before, store, run = held_files(two["a"]), Path(two["a"].paths.store), place(two["a"])
    words = [str(store), str(run), "--delete"]
    if kind == "young":
        age(store, days=1)
        assert main([*words, "--only-these"]) == 0
    elif kind == "in use":
        with held(run):
            assert main([*words, "--only-these"]) == 2
        assert "in use" in capsys.readouterr().err
    elif kind == "not given":
        assert main(words) == 2
        assert str(place(two["b"])) in capsys.readouterr().err
    elif kind == "damaged":
        (run / "round_1" / "candidates.jsonl").write_text('{"latents": \n')
        assert main([*words, "--only-these"]) == 2
        assert "candidates.jsonl is damaged" in capsys.readouterr().err
    else:
        wrong: Any = {"no run": [words[0], str(store)], "no store": [str(store / "x"), words[1]]}
        assert main([*wrong[kind], "--delete", "--only-these"]) == 2
    assert held_files(two["a"]) == before


@pytest.mark.slow
def test_leftovers_blobs_without_records_and_records_without_blobs_go(
    two: dict[str, DictConfig],
) -> None:
    finish(two)
    root = Path(two["a"].paths.store)
    store, before = Store(root), held_files(two["a"])
    blob = store.path("videos", store.put_blob("videos", b"alone", ".mp4"), ".mp4")
    store.put_record("rollouts", "ab" * 32, [{"latents": "cd" * 32, "video": "ef" * 32}])
    leftover = blob.with_name(f".{blob.name}.{'0' * 32}")
    leftover.write_bytes(b"half")
    old = time.time() - 86400 * 9
    for path in held_files(two["a"]) - before:
        os.utime(path, (old, old))
    assert collected(two, "ab", "--delete") == 0
    assert held_files(two["a"]) == before


def test_a_record_in_use_is_marked_once_an_hour(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_record("rollouts", "ab" * 32, [])
    file, now = store.path("rollouts", "ab" * 32, ".json"), time.time()
    for ago, marked in ((600, False), (7200, True)):
        os.utime(file, (now - ago, now - ago))
        store.mark_used("rollouts", "ab" * 32)
        assert (file.stat().st_mtime > now - 60) == marked
    store.mark_used("rollouts", "cd" * 32)  # which is not there
