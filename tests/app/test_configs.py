"""Every shipped choice composes, and asks its targets for nothing that they do not take."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from app import assembly
from app.checks import check
from app.entry import CONF, choices_of, refuse_misspelt, settings_but_batches
from data.critic_datamodule import CriticDataModule
from ipo_lightning.errors import InputError
from ipo_lightning.rounds import IterationCallback
from ipo_lightning.rounds.training import TrainingStage
from ipo_lightning.storage.layout import RunDir
from tests.conftest import ComposeTrain, composed
from tests.helpers.choices import CHOICES, EVERY, OF_CRITICS, PACKAGES, beside

FILES = sorted(CONF.rglob("*.yaml"))
COMPLETED = ("callbacks.iteration", "trainer")
"""Nodes whose targets get the rest of their arguments in app/assembly.py."""


def targets(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that names a target, with its place."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield place, node
        for key, value in node.items():
            yield from targets(value, f"{place}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from targets(value, f"{place}.{index}")


def check_target(place: str, node: dict[str, Any]) -> None:
    """The target exists, takes the node's keys, and lacks none that only the node can give."""
    try:
        signature = inspect.signature(get_object(node["_target_"]))
    except ValueError:  # a class in C, such as datetime.timedelta
        return
    settings = {key: value for key, value in node.items() if not key.startswith("_")}
    if node.get("_partial_") or place in COMPLETED:
        signature.bind_partial(**settings)
    else:
        signature.bind(**settings)


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_its_targets_take_its_keys(
    choice: str, compose_train: ComposeTrain, tmp_path: Path
) -> None:
    cfg = OmegaConf.to_container(compose_train(*beside(choice, tmp_path)), resolve=True)
    found = list(targets(cfg))
    assert {"backbone", "loss", "reference", "critic", "eval_critic"} <= {
        place for place, _ in found
    }
    for place, node in found:
        try:
            check_target(place, node)
        except TypeError as error:
            pytest.fail(f"{choice}: {place}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice", [c for c in CHOICES if re.match("trainer|callbacks|logger|debugging", c)]
)
def test_every_trainer_is_built(choice: str, compose_train: ComposeTrain) -> None:
    if choice in PACKAGES:
        pytest.importorskip(PACKAGES[choice])
    cfg = compose_train(choice, "trainer.accelerator=cpu", "trainer.devices=1")
    callback = IterationCallback(RunDir("nowhere"), [TrainingStage()])
    assert assembly.build_trainer(cfg, callback).max_epochs == cfg.round


@pytest.mark.slow
@pytest.mark.parametrize("name", choices_of("critic"))
def test_every_critic_is_a_choice_of_the_held_out_judge(
    name: str, compose_train: ComposeTrain, tmp_path: Path
) -> None:
    """With the same settings, and no file of its own in conf/eval_critic."""
    words = beside(f"critic={name}", tmp_path)
    critic = OmegaConf.to_container(compose_train(*words).critic, resolve=True)
    judge = compose_train(*(f"eval_{word}" for word in words)).eval_critic
    assert OmegaConf.to_container(judge, resolve=True) == critic
    assert [path.name for path in CONF.glob("eval_critic/*")] == ["shapes_judge.yaml"]


def test_judges_of_ones_own(compose_train: ComposeTrain, tmp_path: Path) -> None:
    """A folder of ``hydra.searchpath`` adds choices, and experiments may choose them."""
    files = {
        "eval_critic/mine.yaml": "defaults: [/critic@_here_: shapes_pairwise]\nsharpness: 5.0\n",
        "eval_critic/clip.yaml": "_target_: mypackage.Clip\n",
        "experiment/own.yaml": "# @package _global_\ndefaults: [override /eval_critic: compared]\n",
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    own = f"hydra.searchpath=[file://{tmp_path}]"
    mine = compose_train(own, "eval_critic=mine").eval_critic
    assert (mine.sharpness, mine._target_) == (5.0, "ipo_lightning.shapes.biased.ShapesPairs")
    cfg = compose_train(own, "experiment=own", "critic@eval_critic.critic=shapes")
    assert cfg.eval_critic.critic._target_.endswith("ShapesCritic")
    with pytest.raises(InputError, match="did you mean 'mine'"):
        refuse_misspelt("train", [own, "eval_critic=mime"])
    with pytest.raises(InputError, match="eval_critic/clip.yaml: a choice of this name is shipped"):
        refuse_misspelt("train", [own, "eval_critic=clip"])


def test_sweeps_over_judges_are_checked() -> None:
    refuse_misspelt("train", ["eval_critic=shapes_judge,clip,hpsv3", "-m"])
    with pytest.raises(InputError, match="eval_critic=hpsv4: no such choice; did you mean 'hpsv3'"):
        refuse_misspelt("train", ["eval_critic=shapes_judge,hpsv4", "-m"])


ASKING_VLMS = sorted(
    path.stem for path in CONF.glob("critic/*.yaml") if "- vlm:" in path.read_text()
)
"""Critics made of a chat model and a form."""
VLMS = sorted(path.stem for path in CONF.glob("critic/vlm/*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("vlm", VLMS)
@pytest.mark.parametrize("name", ASKING_VLMS)
def test_every_form_goes_with_every_chat(name: str, vlm: str, compose_train: ComposeTrain) -> None:
    """As the critic and as the held-out judge, of which each has a chat of its own."""
    words = [f"critic={name}", f"critic/vlm={vlm}", "critic.vlm.model=me/mine"]
    critic = OmegaConf.to_container(compose_train(*words).critic, resolve=True)
    for place, node in targets(critic, "critic"):
        check_target(place, node)
    words = [word.replace("critic", "eval_critic", 1) for word in words]
    words[1] = f"critic/vlm@eval_critic.vlm={vlm}"
    cfg = compose_train(*words)
    assert OmegaConf.to_container(cfg.eval_critic, resolve=True) == critic
    assert "vlm" not in cfg.critic


def test_a_judge_of_another_model_is_of_another_make(compose_train: ComposeTrain) -> None:
    words = ["critic=vlm_pointwise", "eval_critic=vlm_pointwise", "eval_critic.vlm.model=me/mine"]
    check(compose_train(*words))
    with pytest.raises(InputError, match="eval_critic is the twin of critic"):
        check(compose_train(*words[:2], "eval_critic.vlm.seed=1"))


@pytest.mark.parametrize("choice", ["seed=1", *(c for c in EVERY if c.startswith(OF_CRITICS))])
def test_the_training_of_a_critic_composes(choice: str) -> None:
    """With each network and loss; what assembly passes in is left to it."""
    cfg = composed("train_critic", choice, "data.path=pairs.jsonl")
    assert OmegaConf.missing_keys(cfg) == set()
    found = dict(targets(OmegaConf.to_container(cfg, resolve=True)))
    assert {"network", "reward_loss", "data", "optim.optimizer", "trainer"} <= found.keys()
    for place, node in found.items():
        if place != "data":
            check_target(place, node)
    data = {key: value for key, value in found["data"].items() if key != "_target_"}
    inspect.signature(CriticDataModule).bind([], None, "pairwise", **data, seed=0)
    assert cfg.name.startswith("critic-")


def test_the_cache_of_encoders_is_no_part_of_a_critics_name() -> None:
    names = {
        composed("train_critic", "data.path=x", word).name
        for word in ("network.cache=null", "paths.outputs=elsewhere", "network.width=9")
    }
    assert len(names) == 2


@pytest.mark.parametrize(("program", "needed"), [("sample", "ckpt"), ("audit", "pairs")])
def test_the_other_programs_compose(program: str, needed: str) -> None:
    cfg = composed(program, f"{needed}=somewhere", "critic=shapes")
    assert OmegaConf.missing_keys(cfg) == set()
    for place, node in targets(OmegaConf.to_container(cfg, resolve=True)):
        check_target(place, node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_says_what_it_is(path: Path) -> None:
    assert re.search(r"# (?!@package)", path.read_text()), "say in a comment what it chooses"


def test_an_experiment_is_a_difference(compose_train: ComposeTrain) -> None:
    """An experiment has the last word but one: the command line comes after it."""
    cfg = compose_train("experiment=shapes_lora", "backbone.lora.rank=2")
    assert cfg.backbone.lora.rank == 2
    assert cfg.optim.optimizer.lr > compose_train().optim.optimizer.lr
    assert compose_train().backbone.lora is None


def test_a_loss_may_choose_its_labels_and_reference(compose_train: ComposeTrain) -> None:
    """And the command line may choose others."""
    cfg = compose_train("loss=nft")
    assert cfg.reference._target_.endswith("FrozenReference") and cfg.labelling.middle == "keep"
    lora = compose_train("loss=nft", "experiment=shapes_lora", "reference=adapter")
    assert lora.reference._target_.endswith("AdapterReference") and lora.labelling.middle == "keep"
    assert compose_train("loss=dpo").labelling.middle == "drop"


@pytest.mark.slow
def test_names_of_runs_are_made_of_their_settings(compose_train: ComposeTrain) -> None:
    """Equal results share a name; what does not change them does not change it."""
    name = compose_train().name
    assert name.startswith("shapes-dpo-s0-")
    for same in ("round=1", "until=rollout", "dry_run=true", "logger=none", "trainer=cpu",
                 "plan.memory_gib=80"):  # fmt: skip
        assert compose_train(same).name == name, same
    others = {"seed=1", "loss=kto", "loss.beta=7", "rollout.n=3", "trainer.precision=bf16-mixed",
              "data.batch_size=4", "experiment=shapes_lora", "threads=2"}  # fmt: skip
    assert len({name, *(compose_train(other).name for other in others)}) == len(others) + 1


def test_batches_may_change_with_the_devices(compose_train: ComposeTrain) -> None:
    """As long as an update takes as many labels; how many devices there are must be said."""

    def taken(*words: str) -> object:
        return settings_but_batches(compose_train("name=x", *words))

    two = taken("trainer=ddp", "trainer.devices=2", "data.batch_size=8")
    assert two == taken("data.batch_size=16")
    assert two == taken("data.batch_size=4", "trainer.accumulate_grad_batches=4")
    assert two != taken("data.batch_size=8")
    assert two != taken("trainer=ddp", "data.batch_size=8")  # devices=auto
