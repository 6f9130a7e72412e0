"""Every shipped choice composes, and asks its targets for nothing that they do not take."""

import inspect
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

import train
from conf import assembly
from conf.entry import CONF, register_resolvers, settings_but_batches
from tests import tiny_wan
from tests.conftest import ComposeTrain

CHOICES = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))
FILES = sorted(CONF.rglob("*.yaml"))
BESIDE = {"reference=adapter": ["experiment=shapes_lora"], "reference=none": ["loss=simpo"]}
"""What a choice cannot do without."""
COMPLETED = ("callbacks.iteration", "trainer")
"""Nodes whose targets get the rest of their arguments in conf/assembly.py."""


def beside(choice: str, tmp_path: Path) -> list[str]:
    """The overrides that make a choice a whole run."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a video of {number} apples\n" for number in range(200)))
    files = {"data=file": [f"data.prompts.path={prompts}", "evaluation.real_clips=null"]}
    if choice == "experiment=shapes_wan":  # its folder is made, not shipped
        return [choice, f"backbone.path={tiny_wan.save_pipeline(tmp_path / 'wan')}"]
    if choice.startswith("experiment=ipo_"):
        critics = ["critic=shapes", "eval_critic=shapes_judge"]
        return [choice, *critics, f"data.prompts.path={prompts}"]
    return [choice, *(BESIDE | files).get(choice, [])]


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


# Those of real models are planned in test_experiments.py, for their cards.
@pytest.mark.parametrize("choice", [c for c in CHOICES if not c.startswith("experiment=ipo_")])
def test_every_choice_is_planned(
    choice: str,
    compose_train: ComposeTrain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The parts of the run are instantiated, and the plan printed."""
    cfg = compose_train(*beside(choice, tmp_path), "dry_run=true", "round=1")
    itself = choice == "eval_critic=shapes"
    with pytest.warns(UserWarning, match="held-out judge") if itself else nullcontext():
        assert train.train(cfg) is None
    assert "round  rollout" in capsys.readouterr().out
    assert not Path(cfg.paths.outputs, cfg.name).exists()


@pytest.mark.parametrize("choice", [c for c in CHOICES if re.match("trainer|callbacks|logger", c)])
def test_every_trainer_is_built(choice: str, compose_train: ComposeTrain) -> None:
    cfg = compose_train(choice, "trainer.accelerator=cpu", "trainer.devices=1")
    assert assembly.build_trainer(cfg, L.Callback()).max_epochs == cfg.round


@pytest.mark.parametrize(("program", "needed"), [("sample", "ckpt"), ("audit", "pairs")])
def test_the_other_programs_compose(program: str, needed: str) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(program, [f"{needed}=somewhere", "critic=shapes"])
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
