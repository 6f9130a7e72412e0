"""Loggers, callbacks and presets: what is chosen is built, told the settings, and stops the run."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from app.checks import check, check_critic
from app.entry import CONF, choices_of, refuse_misspelt, register_resolvers
from app.loggers import PACKAGES, loggers_of
from app.shortcuts import expanded
from callbacks.stopping import JudgeEarlyStopping, rounds_since_best
from ipo_lightning.errors import InputError
from ipo_lightning.shapes.annotators import PAIRS_FILE, annotate
from ipo_lightning.storage.layout import RunDir
from tests.conftest import ComposeTrain
from train import train, train_critic


def composed(config: str, *words: str) -> DictConfig:
    """The settings of ``python train.py WORDS...``, shortcuts and all."""
    register_resolvers()
    with_all = expanded(config, words)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, with_all)


def told(folder: Path) -> Any:
    """The settings that a logger of Lightning's keeps beside its figures."""
    return yaml.unsafe_load((folder / "hparams.yaml").read_text())


def columns(folder: Path) -> set[str]:
    """What a CSV logger was sent."""
    with open(folder / "metrics.csv", newline="") as file:
        return set(next(csv.reader(file)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*takes no videos")
def test_a_run_with_all_loggers_and_callbacks_stops_early_and_stays_stopped(
    small: ComposeTrain, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = small(
        "debugging=profile", "round=3", "logger=[tensorboard,csv]",
        "callbacks=[default,lr_monitor,device_stats,early_stopping]",
        "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_gain=9",
    )  # fmt: skip
    assert train(cfg)
    run = RunDir(Path(cfg.paths.outputs) / cfg.name)
    assert [line["round"] for line in run.lines()] == [0, 1]
    said = capsys.readouterr().out
    assert "early stopping: the held-out judge's score has not risen for 1 rounds" in said
    assert "the same command, without what stopped it, goes on" in said
    for folder in (run.path / "tensorboard", run.path / "csv" / "version_0"):
        assert told(folder)["data"]["optimizer_steps"] == cfg.data.optimizer_steps
        assert "hydra" not in told(folder)
    assert {"lr-AdamW", "round/eval_score", "train/loss"} <= columns(run.path / "csv/version_0")
    assert any("cpu_percent" in name for name in columns(run.path / "csv/version_0"))
    assert "run_training_batch" in (run.path / "fit-profile.txt").read_text()
    assert train(cfg)
    assert [line["round"] for line in run.lines()] == [0, 1]
    assert "the best is round 0" in capsys.readouterr().out


@pytest.mark.slow
def test_the_training_of_a_critic_tells_its_settings(tmp_path: Path) -> None:
    annotate(tmp_path / "labels", pairs=20, source="renderer", candidates=2)
    cfg = composed(
        "train_critic", f"data.path={tmp_path / 'labels' / PAIRS_FILE}", "logger=[tensorboard,csv]",
        f"paths.outputs={tmp_path}", "name=run", "network.steps=0", "network.clips=64",
        "network.width=8", "data.optimizer_steps=3", "data.batch_size=4", "stopping.epochs=1",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    )  # fmt: skip
    assert train_critic(cfg)
    for name in ("tensorboard", "csv/version_0"):
        assert told(tmp_path / "run" / name)["stopping"]["epochs"] == 1


def test_loggers_are_none_one_several_or_ones_own(compose_train: ComposeTrain) -> None:
    def kinds(*words: str) -> list[str]:
        return [type(one).__name__ for one in loggers_of(compose_train(*words))]

    assert kinds() == ["TensorBoardLogger"]
    assert kinds("logger=[tensorboard,csv]") == ["TensorBoardLogger", "CSVLogger"]
    assert kinds("logger=none") == kinds("logger=[]") == []
    own = compose_train("logger=none", "+logger._target_=lightning.pytorch.loggers.CSVLogger",
                        "+logger.save_dir=x")  # fmt: skip
    assert [type(one).__name__ for one in loggers_of(own)] == ["CSVLogger"]
    assert loggers_of(compose_train("logger.tensorboard=null")) == []
    with pytest.raises(InputError, match=r"logger=csv"):
        loggers_of(OmegaConf.create({"logger": "csv"}))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
@pytest.mark.parametrize("config", ["train", "train_critic"])
def test_a_logger_without_its_package_is_refused_at_once(
    name: str, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.loggers.find_spec", lambda package: None)
    words = ["data.path=."] if config == "train_critic" else []
    cfg = composed(config, f"logger=[csv,{name}]", *words)
    assert name in PACKAGES.values()
    with pytest.raises(InputError, match=rf"logger.{name}: the package {name} is not installed"):
        (check_critic if words else check)(cfg)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("logger=[csv,wandbb]", r"logger=wandbb: no such choice; did you mean 'wandb'\?"),
        ("callbacks=[default,early]", r"callbacks=early: no such choice.*\(there are default, dev"),
        ("~callbacks", "~callbacks: give one of default, device_stats"),
        ("hparams_search=optna", "did you mean 'optuna'"),
        ("hydra/sweeper=ax", "not installed .*pip install hydra-ax-sweeper"),
        ("hydra/launcher=submitit_slurm", "not installed .*pip install hydra-submitit-launcher"),
    ],
)
def test_a_choice_within_a_list_is_named_where_there_is_none(word: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        refuse_misspelt("train", [word])


def test_a_callback_alone_lacks_the_rounds() -> None:
    with pytest.raises(InputError, match=r"callbacks.iteration: .*choose default too"):
        check(composed("train", "callbacks=early_stopping"))


@pytest.mark.parametrize("name", ["lr_monitor", "device_stats"])
def test_a_callback_that_needs_a_logger_is_refused_without(name: str) -> None:
    with pytest.raises(InputError, match=rf"callbacks.{name}: \w+ needs a logger"):
        check(composed("train", "logger=none", f"callbacks=[default,{name}]"))


@pytest.mark.parametrize(
    ("scores", "gain", "found"),
    [
        ([0.5], 0.0, (0, 0)),
        ([0.5, 0.6, 0.6, 0.55], 0.0, (1, 2)),
        ([0.5, 0.6, 0.7], 0.15, (2, 0)),
        ([0.5, 0.6, 0.64], 0.15, (0, 2)),
        ([None, 0.1, None], 0.0, (1, 1)),
    ],
)
def test_rounds_since_the_judges_best(
    scores: Sequence[float | None], gain: float, found: tuple[int, int]
) -> None:
    assert rounds_since_best(scores, gain) == found
    lines = [{"round": i, "eval_score": score} for i, score in enumerate(scores)]
    stopped = JudgeEarlyStopping(patience=2, min_gain=gain).reason(lines)
    assert (stopped is not None) == (found[1] >= 2)


# -------------------------------------------------------------------- presets


def test_debug_is_a_flag_and_a_choice_of_presets() -> None:
    for name in choices_of("debugging"):
        assert expanded("train", [f"debug={name}", "seed=1"]) == [f"debugging={name}", "seed=1"]
        assert composed("train", f"debug={name}").debug is True
    assert expanded("train", ["debug=fast,overfit", "-m"]) == ["debugging=fast,overfit", "-m"]
    for value in ("true", "false"):
        assert composed("train", f"debug={value}").debug is (value == "true")
    with pytest.raises(InputError, match="debug=fast: presets are for task=policy"):
        expanded("train_critic", ["debug=fast"])


def test_loggers_may_be_left_out() -> None:
    assert expanded("train", ["~logger", "seed=1"]) == ["logger=none", "seed=1"]


def test_a_preset_comes_before_the_command_line() -> None:
    cfg = composed("train", "debug=overfit", "experiment=shapes_lora", "data.optimizer_steps=7")
    assert (cfg.data.optimizer_steps, cfg.rollout.prompts, cfg.rollout.n) == (7, 2, 4)
    assert cfg.backbone.lora.rank == 8


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["backbone.lora.rank=4"], {"rank": 4, "alpha": 4, "seed": 3}),
        (["backbone.lora.alpha=2"], {"rank": 8, "alpha": 2}),
        (["+backbone.lora.rank=4"], {"rank": 4, "alpha": 4}),
        (["backbone=wan_1_3b", "backbone.lora.rank=4"], {"rank": 4, "alpha": 4}),
        (["experiment=shapes_lora", "backbone.lora.rank=4"], {"rank": 4, "alpha": 8}),
        (["backbone.lora.rank=4", "backbone.lora.targets=[to_q]"], {"targets": ["to_q"]}),
    ],
    ids=" ".join,
)  # fmt: skip
def test_one_setting_makes_an_adapter(words: list[str], wanted: dict[str, Any]) -> None:
    cfg = composed("train", "seed=3", *words)
    lora = OmegaConf.to_container(cfg.backbone.lora, resolve=True)
    assert isinstance(lora, dict) and wanted.items() <= lora.items()
    assert lora["_target_"] == cfg.backbone._target_.rpartition(".")[0] + ".Lora"
    assert "-lora-" in cfg.name
    check(cfg)


def test_a_sweep_over_ranks() -> None:
    words = expanded("train", ["-m", "loss=dpo,kto", "backbone.lora.rank=4,8"])
    assert [one for one in words if "lora" in one][1] == "backbone.lora.rank=4,8"
    assert expanded("train", ["backbone.lora=null", "backbone.lora.rank=4"])[0] == (
        "backbone.lora=null"
    )


def test_the_search_tries_settings_that_exist_on_the_select_split() -> None:
    """Without Optuna: a sweeper that takes anything stands in its place."""
    store = ConfigStore.instance()
    if store.repo["hydra"]["sweeper"].get("optuna.yaml") is None:
        store.store(group="hydra/sweeper", name="optuna", node={"_target_": "x", "sampler": {}})
    register_resolvers()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", ["hparams_search=optuna"], return_hydra_config=True)
    finally:
        if store.repo["hydra"]["sweeper"]["optuna.yaml"].node.get("_target_") == "x":
            del store.repo["hydra"]["sweeper"]["optuna.yaml"]
    assert (cfg.evaluation.split, cfg.hydra.sweeper.direction) == ("select", "maximize")
    for key, value in cfg.hydra.sweeper.params.items():
        assert OmegaConf.select(cfg, key) is not None
        (found,) = OverridesParser.create().parse_overrides([f"{key}={value}"])
        assert found.is_sweep_override()
