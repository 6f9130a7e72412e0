"""What a run is made of beside its settings: its files, its code, and where the clone lies."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.fabric.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig

from app import assembly, checkpoint_settings, claiming, critic_assembly, entry, identity
from app.entry import CONF, REPO, settings
from app.free_text import as_typed
from app.sample_settings import backbone_of
from ipo_lightning.errors import InputError
from ipo_lightning.hub.checkpoints import Checkpoint
from ipo_lightning.parallel.run_lock import held
from ipo_lightning.storage.foreign_yaml import read_settings
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.video import Clip, write_video
from tests.conftest import ComposeTrain
from train import train, train_critic

ODD = 'a clone\'s \u00fc, "b" 100%, $HOME ${seed}'


def claim(cfg: DictConfig, goes_on: bool = True) -> RunDir:
    """Take a run's folder as train.py does, for no time."""
    if cfg.task == "critic":
        critic = critic_assembly.assemble(cfg)
        with claiming.claimed(cfg, critic.run, lambda: critic.identity(cfg), goes_on=goes_on):
            return critic.run
    return claim_parts(assembly.assemble(cfg), cfg, goes_on)


def claim_parts(parts: assembly.Parts, cfg: DictConfig, goes_on: bool = True) -> RunDir:
    made_of = partial(parts.identity, cfg, goes_on=goes_on)
    with claiming.claimed(cfg, parts.run, made_of, goes_on=goes_on):
        return parts.run


# ---------------------------------------------------------------- files


def video(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    frames = torch.full((3, 16, 16, 3), level, dtype=torch.uint8)
    write_video(path, Clip(frames, 8.0), lossless=True)
    return path


class Inputs(NamedTuple):
    """A run on files of one's own."""

    words: tuple[str, ...]
    changed: Path
    """A file that the run reads, which is not the same afterwards; or is not there before."""


def prompts(folder: Path) -> Inputs:
    file = folder / "prompts.txt"
    file.write_text("".join(f"prompt {number}\n" for number in range(99)))
    return Inputs(("data=file", f"data.prompts.path={file}", "data.prompts.select=0.2"), file)


def real(folder: Path, changed: str) -> Inputs:
    for name in ("a", "b"):
        video(folder / f"clips/{name}.mp4").with_suffix(".txt").write_text(name)
    node = f"data.real={{_target_: data.real.RealVideos, path: {folder}/clips}}"
    return Inputs((*prompts(folder).words, "regularise.real=1", node), folder / "clips" / changed)


def listed(folder: Path, changed: str) -> Inputs:
    video(folder / "a.mp4")
    (folder / "list.csv").write_text("video,caption\na.mp4,a\n")
    node = f"data.real={{_target_: data.real.RealVideos, path: {folder}/list.csv}}"
    return Inputs((*prompts(folder).words, "regularise.real=1", node), folder / changed)


def table(folder: Path) -> Path:
    rows = [
        {"prompt": f"prompt {number}", "path_A": "a.mp4", "path_B": "later.mp4", "Overall": "A"}
        for number in range(60)
    ]
    (folder / "set").mkdir(exist_ok=True)
    file = folder / "set/metadata.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    video(folder / "set/a.mp4")
    return file


def imported(folder: Path, changed: str) -> Inputs:
    words = ("data=imported", f"data.imported.path={table(folder).parent}")
    return Inputs(words, folder / "set" / changed)


def critics(folder: Path, changed: str) -> Inputs:
    video(table(folder).with_name("later.mp4"))
    words = ("task=critic", f"data.path={folder}/set/metadata.jsonl", "network.dims=[Overall]")
    return Inputs(words, folder / "set" / changed)


def template(folder: Path) -> Inputs:
    file = folder / "template"
    file.write_text("Which is {quoted}?")
    words = (
        "critic=ipo_form",
        "critic.vlm.model=owner/name",
        f"critic.prompt_template.prompt_text={file}",
    )
    return Inputs(words, file)


def backbone(folder: Path) -> Inputs:
    copy = folder / "pipeline"
    shutil.copytree(REPO / "ipo_lightning/shapes/pipeline", copy)
    return Inputs((f"backbone.path={copy}",), copy / "vae/config.json")


CASES: dict[str, Callable[[Path], Inputs]] = {
    "prompts": prompts,
    "a real clip": lambda folder: real(folder, "a.mp4"),
    "a caption": lambda folder: real(folder, "b.txt"),
    "one more real clip": lambda folder: real(folder, "new.mp4"),
    "a list of real clips": lambda folder: listed(folder, "list.csv"),
    "a real clip of a list": lambda folder: listed(folder, "a.mp4"),
    "imported labels": lambda folder: imported(folder, "metadata.jsonl"),
    "an imported video": lambda folder: imported(folder, "a.mp4"),
    "an imported video that was missing": lambda folder: imported(folder, "later.mp4"),
    "a critic's labels": lambda folder: critics(folder, "metadata.jsonl"),
    "a critic's video": lambda folder: critics(folder, "a.mp4"),
    "a prompt template": template,
    "the base model": backbone,
}


@pytest.fixture
def composed(compose_train: ComposeTrain, tmp_path: Path) -> Callable[..., DictConfig]:
    """The settings of ``python train.py OVERRIDES...``, of a critic too."""

    def make(*words: str) -> DictConfig:
        if "task=critic" not in words:
            return compose_train("name=run", "trainer.accelerator=cpu", *words)
        with initialize_config_dir(str(CONF), version_base="1.3"):
            words = (*words, f"paths.outputs={tmp_path}", "network.steps=0")
            return compose("train_critic", ["name=run", "network.clips=64", *words])

    return make


def change(file: Path) -> None:
    """Another content, which its readers take."""
    if file.suffix == ".mp4":
        if not file.exists():
            file.with_suffix(".txt").write_text("new")
        video(file, level=200)
    else:
        file.write_bytes(file.read_bytes().rstrip() + b" \n")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_whose_files_have_changed_is_refused(
    case: str, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    inputs = CASES[case](tmp_path)
    cfg = composed(*inputs.words)
    record = claim(cfg).path / "identity.json"
    before = record.read_bytes()
    old = inputs.changed.read_bytes() if inputs.changed.exists() else None
    change(inputs.changed)
    with pytest.raises(InputError, match="begun with other contents of") as refused:
        claim(cfg)
    named = inputs.changed if case != "the base model" else inputs.changed.parent.parent
    assert str(named) in str(refused.value) and "name=NAME" in str(refused.value)
    assert record.read_bytes() == before
    if old is not None:
        inputs.changed.write_bytes(old)
        claim(cfg)
        assert record.read_bytes() == before


def test_prompts_of_any_source_are_part_of_the_run(compose_train: ComposeTrain) -> None:
    cfg = compose_train("name=run")
    claim(cfg)
    parts = assembly.assemble(cfg)
    parts.evaluation.prompts.reverse()
    with pytest.raises(InputError, match="other contents of held-out prompts"):
        claim_parts(parts, cfg)


def test_a_critics_files_may_be_missing_where_it_is_not_asked(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    """Rollouts are made on one machine, and asked about on another one."""
    inputs = template(tmp_path)
    words, elsewhere = composed(*inputs.words), tmp_path / "elsewhere"
    run, made = RunDir(tmp_path / "run"), identity.identity_of(words, [], {})
    inputs.changed.rename(elsewhere)
    identity.write_identity(run, None, identity.identity_of(words, [], {}))
    old = identity.read_identity(run)
    assert old is not None and str(inputs.changed) not in old["files"]
    identity.refuse_other_inputs(run, old, made)
    identity.write_identity(run, old, made)
    old = identity.read_identity(run)
    assert old is not None and old["files"][str(inputs.changed)]


def test_answers_of_people_are_no_input(compose_train: ComposeTrain, tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers/anna.jsonl").write_text("{}")
    cfg = compose_train("critic=human", "labelling=people", "rollout.n=2")
    assert identity.files_of(cfg) == []


# ---------------------------------------------------------------- versions


@pytest.fixture
def run(compose_train: ComposeTrain) -> RunDir:
    return claim(compose_train("name=run"))


def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "code_hash", lambda: "other")


def other_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = identity.version
    monkeypatch.setattr(identity, "version", lambda n: "0.1" if n == "diffusers" else real(n))


@pytest.mark.parametrize(
    ("change", "named"), [(other_code, "code: .* -> other"), (other_library, "diffusers: .* -> 0")]
)
def test_another_version_is_refused_until_it_is_accepted(
    change: Callable[[pytest.MonkeyPatch], None],
    named: str,
    run: RunDir,
    compose_train: ComposeTrain,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change(monkeypatch)
    with pytest.raises(InputError, match=f"another version .*{named}.*accept_version=true"):
        claim(compose_train("name=run"))
    claim(compose_train("name=run"), goes_on=False)  # what is finished is only shown
    claim(compose_train("name=run", "accept_version=true"))
    claim(compose_train("name=run"))
    assert len(json.loads((run.path / "identity.json").read_text())["versions"]) == 2


def test_ones_own_loss_is_part_of_the_version(
    compose_train: ComposeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from ipo_lightning.losses import dpo_loss as my_loss\n"
    file = tmp_path / "mine_of_this_test.py"
    file.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = compose_train("name=run", "loss._target_=mine_of_this_test.my_loss")
    claim(cfg)
    file.write_text(source + "# another one\n")
    with pytest.raises(InputError, match="another version .mine_of_this_test: "):
        claim(cfg)


def test_a_run_of_before_goes_on_with_a_warning(run: RunDir, compose_train: ComposeTrain) -> None:
    (run.path / "identity.json").unlink()
    with pytest.warns(UserWarning, match="has no identity.json.*unchecked"):
        claim(compose_train("name=run"))
    claim(compose_train("name=run"))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": {}, "read": {}, "lists": {}, "versions": []}', "\xff"]
)
def test_a_damaged_record_is_refused_with_its_cure(
    text: str, run: RunDir, compose_train: ComposeTrain
) -> None:
    (run.path / "identity.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"identity.json is damaged: delete it to go on"):
        claim(compose_train("name=run"))


# ---------------------------------------------------------------- where the clone lies


@pytest.fixture(params=[ODD, "\u017c\u00f3\u0142\u0107/\\n", "plain"])
def moved(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A clone at another place."""
    place = tmp_path / request.param
    shutil.copytree(REPO / "ipo_lightning/shapes/pipeline", place / "ipo_lightning/shapes/pipeline")
    with monkeypatch.context() as patch:
        patch.setattr(entry, "REPO", place)
        yield place


def test_a_run_is_the_same_wherever_the_clone_lies(
    compose_train: ComposeTrain, tmp_path: Path, moved: Path
) -> None:
    there = compose_train("name=run")
    assert str(moved) in there.backbone.path
    named, found = entry.run_name(_root_=there), settings(there)
    lists = assembly.assemble(there).identity(there, goes_on=True).lists
    run = RunDir(tmp_path / "run")
    claiming.claim(run, there)
    assert str(moved) not in run.config_file.read_text()
    with pytest.MonkeyPatch.context() as back:
        back.setattr(entry, "REPO", REPO)
        here = compose_train("name=run")
        assert (named, found) == (entry.run_name(_root_=here), settings(here))
        assert lists == assembly.assemble(here).identity(here, goes_on=True).lists
        assert "ipo_lightning/shapes/pipeline" in lists
        claiming.claim(run, here)


@pytest.mark.slow
def test_a_clone_at_an_odd_place_names_its_runs_alike(
    compose_train: ComposeTrain, tmp_path: Path
) -> None:
    clone = tmp_path / ODD
    clone.mkdir()
    for name in ("app", "callbacks", "conf", "data", "ipo_lightning", "train.py"):
        copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy
        copy(REPO / name, clone / name)
    words = ["train.py", "--cfg", "job", "--resolve", "--package", "name"]
    environment = {**os.environ, "PYTHONPATH": str(clone)}  # before this clone, which is installed
    there = subprocess.run(
        [sys.executable, *words], cwd=clone, env=environment, capture_output=True, text=True
    )
    assert there.stdout.strip() == compose_train().name, there.stderr


def test_a_runs_paths_in_the_clone_are_found_from_anywhere(
    compose_train: ComposeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = Checkpoint("lightning", str(tmp_path))
    for path, found in (("docs/images", REPO / "docs/images"), ("owner/name", "owner/name")):
        node = backbone_of(compose_train(), checkpoint, {"backbone": {"path": path}})
        assert node["path"] == str(found)


# ---------------------------------------------------------------- settings


def test_settings_are_known_where_config_yaml_is_gone(
    run: RunDir, compose_train: ComposeTrain
) -> None:
    (run.path / "round_0").mkdir()
    text = run.config_file.read_text()
    run.config_file.unlink()
    with pytest.raises(InputError, match="a run of other settings .seed: 0 -> 1"):
        claim(compose_train("name=run", "seed=1"))
    with pytest.warns(UserWarning, match="config.yaml is gone; it is made anew"):
        claim(compose_train("name=run"))
    assert run.config_file.read_text() == text
    run.config_file.unlink()
    (run.path / identity.IDENTITY).unlink()
    with pytest.raises(InputError, match="has results, but no config.yaml"):
        claim(compose_train("name=run"))


def test_how_gradients_are_clipped_is_a_setting(run: RunDir, compose_train: ComposeTrain) -> None:
    with pytest.raises(InputError, match="clip_algorithm: None -> value"):
        claim(compose_train("name=run", "+trainer.gradient_clip_algorithm=value"))


@pytest.mark.parametrize("text", ["${oc.env:KEY}", "cost ${seed}", "\\${seed}", "$${oc.env:KEY}"])
def test_typed_references_are_written_down_as_text(
    text: str, compose_train: ComposeTrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "secret")
    words = as_typed("train", [f"rollout.negative_prompt={text}", f"backbone.revision={text}"])
    run = claim(compose_train(*words, "name=run"))
    saved = read_settings(run.config_file, "")
    assert (saved["rollout"]["negative_prompt"], saved["backbone"]["revision"]) == (text, text)
    claim(compose_train(*words, "name=run"))


def test_checkpoints_of_other_settings_are_refused(compose_train: ComposeTrain) -> None:
    def loaded(made: str, *now: str) -> None:
        kept = checkpoint_settings.SettingsInCheckpoints(identity.settings_of(compose_train(made)))
        own = checkpoint_settings.SettingsInCheckpoints(identity.settings_of(compose_train(*now)))
        state = {"callbacks": {own.state_key: kept.state_dict()}}
        own.on_load_checkpoint(L.Trainer(logger=False), L.LightningModule(), state)

    loaded("data.batch_size=4", "data.batch_size=2", "trainer.devices=2")
    with pytest.raises(InputError, match=r"other settings \(optim.optimizer.lr.*remove it"):
        loaded("optim.optimizer.lr=0.01")


def test_no_checkpoint_of_a_slurm_job_is_taken(
    compose_train: ComposeTrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SLURMEnvironment, "detect", lambda: True)
    cfg = compose_train("name=run", "logger=none", "trainer.accelerator=cpu")
    parts = assembly.assemble(cfg)
    parts.run.path.mkdir()
    (parts.run.path / "hpc_ckpt_1.ckpt").touch()
    trainer = assembly.build_trainer(cfg, parts.iteration)
    assert trainer._checkpoint_connector._hpc_resume_path is None


# ---------------------------------------------------------------- one process


@pytest.mark.parametrize("task", ["policy", "critic"])
def test_a_run_in_use_is_refused(
    task: str, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    words = () if task == "policy" else critics(tmp_path, "a.mp4").words
    work: Callable[[DictConfig], object] = train if task == "policy" else train_critic
    with (
        held(tmp_path / "run"),
        pytest.raises(InputError, match=r"run is in use by process \d+ on host"),
    ):
        work(composed(*words, "logger=none"))
    assert not (tmp_path / "run/config.yaml").exists()


def test_other_ranks_take_no_lock(
    compose_train: ComposeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cfg = RunDir(tmp_path / "run"), compose_train("name=run")
    claiming.claim(run, cfg)
    for name in claiming.RANKS:
        with monkeypatch.context() as patch, held(run.path):
            patch.setenv(name, "1")
            with claiming.claimed(cfg, run, identity.Identity, goes_on=True):
                assert not (run.path / "identity.json").exists()
    with pytest.raises(InputError, match="seed: 0 -> 1"):
        claiming.claim(run, compose_train("name=run", "seed=1"))
