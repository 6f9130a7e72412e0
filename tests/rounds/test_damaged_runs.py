"""A run whose files were damaged or edited goes on as it would have, or says what to do."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from ipo_lightning.errors import InputError
from ipo_lightning.module import PreferenceModule
from ipo_lightning.rounds.checkpoints import fault_of
from ipo_lightning.storage.layout import RoundDir, RunDir
from ipo_lightning.storage.store import Store
from tests.conftest import SMALL
from tests.rounds.test_rounds import Killed, crash_at, results
from train import train

Compose = Callable[..., DictConfig]
SMALLER = (
    "rollout.prompts=2", "rollout.n=2", "rollout.steps=2", "data.optimizer_steps=2",
    "evaluation.prompts=2", "callbacks.iteration.checkpoint_every=1", "round=2",
)  # fmt: skip


@pytest.fixture
def smaller(compose_train: Compose) -> Compose:
    """``smaller(outputs, *overrides)``: a run of two rounds."""
    return lambda outputs, *more: compose_train(*SMALL, *SMALLER, *more, outputs=Path(outputs))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders by state, and what the unbroken run reached; filled by `made`."""
    return {"folder": tmp_path_factory.mktemp("runs")}


@pytest.fixture
def made(runs: dict[str, Any], smaller: Compose, tmp_path: Path) -> Callable[[str], DictConfig]:
    """A copy of a run that is finished, labelled in round 1, or killed in the midst of round 2."""

    def in_state(state: str) -> DictConfig:
        folder = runs["folder"] / state
        if not folder.exists():
            with pytest.MonkeyPatch.context() as patch:
                if state == "mid":
                    crash_at(patch, PreferenceModule, "training_step", 4)
                if state != "labelled":
                    finish(smaller(folder))
                else:
                    finish(smaller(folder, "round=1", "until=labelling"))
        if "results" not in runs and state == "finished":
            runs["results"] = results(smaller(folder))
        shutil.copytree(folder, tmp_path / "copy")
        return smaller(tmp_path / "copy")

    return in_state


def finish(cfg: DictConfig) -> None:
    """Train until the end, or the kill."""
    try:
        train(cfg)
    except Killed:
        return


@pytest.fixture
def wanted(runs: dict[str, Any], smaller: Compose) -> list[dict[str, Any]]:
    """What the unbroken run reached."""
    if "results" not in runs:
        train(smaller(runs["folder"] / "finished"))
        runs["results"] = results(smaller(runs["folder"] / "finished"))
    return list(runs["results"])


def flip(file: Path) -> None:
    """Turn a bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def swap(file: Path) -> None:
    """Give a file the place of the other round's."""
    other = file.parent.parent / f"round_{3 - int(file.parent.name[-1])}" / file.name
    content = file.read_bytes(), other.read_bytes()
    other.write_bytes(content[0])
    file.write_bytes(content[1])


MADE_ANEW = [
    ("finished", "round_1/candidates.jsonl", swap),
    ("finished", "round_2/policy/diffusion_pytorch_model.safetensors", flip),
    ("finished", "round_1/policy", shutil.rmtree),
    ("finished", "round_2/evaluation.jsonl", Path.unlink),
    ("finished", "rounds.jsonl", Path.unlink),
    ("finished", "round_2", shutil.rmtree),
    ("mid", "round_1/policy.json", flip),
    ("mid", "round_1/policy/diffusion_pytorch_model.safetensors", flip),
    ("mid", "round_2/pairs.jsonl", Path.unlink),
    ("mid", "round_2/labelling.json", flip),
    ("mid", "round_2/checkpoints/update-000001.ckpt", flip),
    ("mid", "round_0/evaluation.jsonl", lambda file: os.truncate(file, 40)),
    ("mid", "round_0", shutil.rmtree),
    ("mid", "round_1/training.json", flip),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(made anew|exported anew|damaged)")
@pytest.mark.parametrize(("state", "name", "damage"), MADE_ANEW)
def test_what_can_be_made_again_is(
    state: str,
    name: str,
    damage: Callable[[Path], object],
    made: Callable[[str], DictConfig],
    wanted: list[dict[str, Any]],
) -> None:
    cfg = made(state)
    run = RunDir(Path(cfg.paths.outputs) / "run")
    damage(run.path / name)
    train(cfg)
    assert results(cfg) == wanted
    assert [one.number for one in run.rounds() if one.faults()] == []
    for one in run.rounds():
        one.check_policy()


REFUSED = [
    ("finished", "round_1", shutil.rmtree, "put it back, or remove the folders of round 1"),
    ("finished", "round_1/pairs.jsonl", lambda file: os.truncate(file, 40), "line 1: not JSON"),
    ("finished", "round_1/hashes.json", swap, "it is of round"),
    ("mid", "round_2/pairs.jsonl", lambda file: file.write_text(""), "0 labels, but labelling"),
    ("mid", "round_2/verdicts.jsonl", swap, "is not this video"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(made anew|damaged)")
@pytest.mark.parametrize(("state", "name", "damage", "said"), REFUSED)
def test_what_cannot_is_refused_with_the_cure(
    state: str,
    name: str,
    damage: Callable[[Path], object],
    said: str,
    made: Callable[[str], DictConfig],
) -> None:
    cfg = made(state)
    damage(Path(cfg.paths.outputs) / "run" / name)
    with pytest.raises(InputError, match=said):
        train(cfg)


def heavier(one: RoundDir) -> None:
    """Edit a label by hand: the first pair counts twice as much."""
    one.pairs_file.write_text(one.pairs_file.read_text().replace('"weight":1.0', '"weight":2.0', 1))


@pytest.mark.slow
def test_labels_edited_by_hand_are_trained_with_and_said_so(
    made: Callable[[str], DictConfig], smaller: Compose, wanted: list[dict[str, Any]]
) -> None:
    cfg = made("labelled")
    run = RunDir(Path(cfg.paths.outputs) / "run")
    heavier(run.round(1))
    with pytest.warns(UserWarning, match=r"pairs.jsonl was edited by hand; it is used as it is"):
        train(smaller(cfg.paths.outputs, "round=1", "until=labelling"))
    assert run.round(1).fingerprint() is None, "it went on beyond the stage that was asked for"
    train(smaller(cfg.paths.outputs, "round=1"))
    assert results(cfg)[1]["policy"] != wanted[1]["policy"]
    assert run.round(1).faults() == []


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True])
def test_verdicts_edited_by_hand_are_labelled_again(
    own: bool, made: Callable[[str], DictConfig], smaller: Compose
) -> None:
    """But for labels that a person edited, too."""
    cfg = made("labelled")
    one = RunDir(Path(cfg.paths.outputs) / "run").round(1)
    before = [(pair.winner, pair.loser) for pair in one.pairs()]
    verdicts = [json.loads(line) for line in one.verdicts_file.read_text().splitlines()]
    lines = [json.dumps({**row, "score": -row["score"]}) + "\n" for row in verdicts]
    one.verdicts_file.write_text("".join(lines))
    if own:
        heavier(one)
    with pytest.warns(UserWarning) as told:
        train(smaller(cfg.paths.outputs, "round=1", "until=labelling"))
    assert any("verdicts.jsonl was edited by hand" in str(one.message) for one in told)
    assert any("made anew of these verdicts" in str(one.message) for one in told) is not own
    now = [(pair.winner, pair.loser) for pair in one.pairs()]
    assert now == (before if own else [(loser, winner) for winner, loser in before])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*edited by hand")
def test_labels_may_not_change_while_a_round_trains(made: Callable[[str], DictConfig]) -> None:
    cfg = made("mid")
    heavier(RunDir(Path(cfg.paths.outputs) / "run").round(2))
    with pytest.raises(InputError, match="round 2 was begun with other labels"):
        train(cfg)


def test_checkpoints_are_read_before_they_are_trusted(tmp_path: Path) -> None:
    file = tmp_path / "update-000002.ckpt"
    torch.save({"ipo_lightning": {"round": 2}, "state_dict": {"a": torch.ones(99)}}, file)
    whole = file.read_bytes()
    assert fault_of(file, 2) is None
    assert fault_of(file, 1) == "it is of round 2"
    for place in range(0, len(whole), 7):  # local headers, values, the directory, its end
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        try:
            if fault_of(file, 2) is None:
                read = torch.load(file, weights_only=True)
                assert torch.equal(read["state_dict"]["a"], torch.ones(99))
        except InputError as error:
            assert str(file) in str(error)
    file.write_bytes(whole[: len(whole) // 2])
    assert fault_of(file, 2)
    file.unlink()
    file.mkdir()
    assert fault_of(file, 2) == "a folder without .metadata"
    file.rmdir()
    file.symlink_to("nowhere")
    assert "a link to nowhere" in str(fault_of(file, 2))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is gone; it is made anew")
@pytest.mark.parametrize("kind", ["latents", "text", "videos"])
def test_a_file_that_proves_damaged_where_it_is_used_is_made_anew(
    made: Callable[[str], DictConfig], smaller: Compose, kind: str
) -> None:
    """Its size is right, so that the start does not see it; one command mends it all the same."""
    cfg = made("labelled")
    outputs, store = Path(cfg.paths.outputs), Store(cfg.paths.store)
    pair = RunDir(outputs / "run").round(1).pairs()[0]
    text = sorted((store.root / "text").rglob("*.safetensors"))[0]
    file = {"latents": store.path("latents", pair.winner_latents, ".safetensors"), "text": text,
            "videos": store.path("videos", pair.winner_video, ".mp4")}[kind]  # fmt: skip
    until = "training"
    if kind == "videos":  # which a critic is shown
        (outputs / "run/round_1/verdicts.jsonl").unlink()
        shutil.rmtree(store.root / "verdicts")
        until = "labelling"
    whole = file.read_bytes()
    flip(file)
    with pytest.warns(UserWarning, match=f"{file.name} is damaged"):
        train(smaller(outputs, "round=1", f"until={until}"))
    assert file.read_bytes() == whole
    assert RunDir(outputs / "run").round(1).pairs()[0] == pair
