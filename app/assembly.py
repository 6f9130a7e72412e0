"""From a composed configuration to the objects that run it."""

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from transformers.utils.logging import disable_progress_bar

from app.entry import build, differences, one_line, settings, settings_but_batches
from app.keys import make
from app.renamed import saved_settings
from ipo_lightning.critics.stage.comparing import Couples
from ipo_lightning.critics.stage.critique import Critique, critique_of
from ipo_lightning.errors import InputError, readable
from ipo_lightning.evaluation import Evaluation
from ipo_lightning.exchange.source import LabelSource
from ipo_lightning.labelling import Labelling
from ipo_lightning.module import PreferenceModule
from ipo_lightning.policy import Policy, Sampling
from ipo_lightning.rounds import CheckpointsOnCpu, RolloutPlan, RoundStage, round_stages
from ipo_lightning.rounds.datamodule import PreferenceDataModule
from ipo_lightning.rounds.iteration import IterationCallback
from ipo_lightning.sampling import Sampler
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import Store, write_atomically

Prompts = Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of, before the trainer."""

    run: RunDir
    policy: Policy
    module: PreferenceModule
    datamodule: PreferenceDataModule
    rollout: RolloutPlan
    critique: Critique
    imported: LabelSource | None
    evaluation: Evaluation
    iteration: IterationCallback


def settle(cfg: DictConfig) -> None:
    """Set this process up: threads, and silence where the run speaks for itself."""
    if cfg.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(cfg.threads)  # for the ranks that Lightning starts
        torch.set_num_threads(cfg.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # else it tells of each request
    disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*")  # diffusers, of hub ids


def claim(run: RunDir, cfg: DictConfig) -> None:
    """Write config.yaml, or refuse a folder that holds a run of other settings."""
    if run.config_file.exists():
        old = saved_settings(run.config_file, "restore it, or give another name=NAME")
        new, new_but_batches = settings(cfg), settings_but_batches(cfg)
        with readable(run.config_file):
            changed = list(differences(settings(old), new))
            if changed and not list(differences(settings_but_batches(old), new_but_batches)):
                changed = []  # another number of devices, and batches to match
        if changed:
            raise InputError(
                f"{run.path} holds a run of other settings ({'; '.join(changed[:3])}"
                f"{'; ...' if len(changed) > 3 else ''}); give another name=NAME"
            )
    if os.environ.get("LOCAL_RANK", "0") == "0":
        resolved = OmegaConf.to_yaml(_without_hydra(cfg), resolve=True)
        try:
            write_atomically(run.config_file, resolved.encode())
        except OSError as error:
            raise InputError(f"paths.outputs={cfg.paths.outputs}: {error}") from error


def assemble(cfg: DictConfig) -> Parts:
    """Instantiate the parts of a run; nothing heavy is loaded yet."""
    run, store = RunDir(f"{cfg.paths.outputs}/{cfg.name}"), Store(cfg.paths.store)
    policy: Policy = build(cfg.backbone, "backbone")
    module = make_module(cfg, policy)
    prompts: Prompts = build(cfg.data.prompts, "data.prompts")
    rollout = make(RolloutPlan, cfg, prompts("train"))
    sampler = make(Sampler, cfg, policy, store, make_sampling(cfg))
    labelling: Labelling = build(cfg.labelling, "labelling")
    critique = _critique(cfg, labelling, store)
    evaluation = _evaluation(cfg, prompts, sampler, critique)
    imported = _imported(cfg, prompts)
    stages = round_stages(
        sampler,
        evaluation,
        rollout=rollout,
        critique=critique,
        labelling=labelling,
        imported=imported,
        real=build(cfg.data.real, "data.real") if cfg.regularise.real else None,
        calibration=build(cfg.calibration, "calibration"),
    )
    iteration = _iteration(cfg, run, stages)
    datamodule = make(PreferenceDataModule, cfg, store)
    return Parts(
        run, policy, module, datamodule, rollout, critique, imported, evaluation, iteration
    )


def _critique(cfg: DictConfig, labelling: Labelling, store: Store) -> Critique:
    """Asks the critic what the labelling wants to know."""
    couples = Couples(labelling.schedule, labelling.both_orders, labelling.filters.refuse)
    return critique_of(build(cfg.critic, "critic"), store, couples)


def _iteration(cfg: DictConfig, run: RunDir, stages: Sequence[RoundStage]) -> IterationCallback:
    """The callback that takes the trainer through the stages."""
    # The kernels of attention and what is compiled hold for a whole process: threads cannot share.
    alone = cfg.backbone.get("attention") or cfg.backbone.get("compile")
    callback: IterationCallback = build(
        cfg.callbacks.iteration,
        "callbacks.iteration",
        run=run,
        stages=stages,
        until=None if cfg.until == "evaluation" else cfg.until,
        **({"parallel_prompts": 1} if alone else {}),
    )
    return callback


def _imported(cfg: DictConfig, prompts: Prompts) -> LabelSource | None:
    """Labels from elsewhere, but for the prompts that are evaluated on."""
    if cfg.data.get("imported") is None:
        return None
    held_out = {prompt for split in ("select", "final") for prompt in prompts(split)}
    source: LabelSource = build(cfg.data.imported, "data.imported", held_out=held_out)
    return source


def make_module(cfg: DictConfig, policy: Policy) -> PreferenceModule:
    """The training module over a policy; no network yet."""
    return make(
        PreferenceModule,
        cfg,
        policy,
        build(cfg.loss, "loss"),
        build(cfg.reference, "reference"),
        optimizer_of(cfg),
        two_pass=cfg.step == "two_pass",
    )


def optimizer_of(cfg: DictConfig) -> Any:
    """What makes the optimizer, tried on a parameter: it would refuse settings in the training.

    Raises:
        InputError: it refuses them.
    """
    make_optimizer = build(cfg.optim.optimizer, "optim.optimizer")
    try:
        make_optimizer([torch.nn.Parameter(torch.zeros(2, 2))])
    except (TypeError, ValueError) as error:
        raise InputError(f"optim.optimizer: {one_line(error)}") from error
    return make_optimizer


def _evaluation(
    cfg: DictConfig, prompts: Prompts, sampler: Sampler, critique: Critique
) -> Evaluation:
    return make(
        Evaluation,
        cfg,
        prompts(cfg.evaluation.split)[: cfg.evaluation.prompts],
        sampler=sampler,
        critic=critique,
        eval_critic=critique_of(
            build(cfg.eval_critic, "eval_critic"), sampler.store, held_out=True
        ),
        gauges=build(cfg.evaluation.gauges, "evaluation.gauges"),
        real_clips=build(cfg.evaluation.real_clips, "evaluation.real_clips"),
    )


def build_trainer(cfg: DictConfig, iteration: IterationCallback) -> L.Trainer:
    """Lightning's trainer: an epoch a round, loaders made anew for each."""
    return make_trainer(
        cfg,
        max_epochs=cfg.round,
        callbacks=[*_listeners(cfg), iteration],  # a bar closes before the next stage opens its own
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False,  # the iteration callback does it, by round
    )


def _listeners(cfg: DictConfig) -> list[L.Callback]:
    """The other callbacks; without a progress bar's where there shall be none."""
    found = [
        build(node, f"callbacks.{name}")
        for name, node in cfg.callbacks.items()
        if name != "iteration" and node is not None
    ]
    shown = cfg.trainer.get("enable_progress_bar", True)
    return [one for one in found if shown or not isinstance(one, ProgressBar)]


def loggers_of(cfg: DictConfig) -> list[Logger]:
    """The logger, and one for each part within it: of a mapping, all its members."""
    node = cfg.get("logger")
    if node is None:
        return []
    own: Any = OmegaConf.to_container(node, resolve=True)
    named = [name for name, one in own.items() if isinstance(one, dict) and "_target_" in one]
    parts = {name: own.pop(name) for name in named}
    loggers = [build(own, "logger")] if "_target_" in own else []
    return loggers + [build(one, f"logger.{name}") for name, one in parts.items()]


def make_trainer(cfg: DictConfig, **settings: Any) -> L.Trainer:
    """Lightning's trainer on the devices of ``cfg``, told ``settings`` besides."""
    try:
        trainer: L.Trainer = build(
            OmegaConf.merge(cfg.trainer, {"accelerator": accelerator_of(cfg)}),
            "trainer",
            logger=loggers_of(cfg) or False,
            plugins=[CheckpointsOnCpu()],
            use_distributed_sampler=False,
            enable_model_summary=False,
            **settings,
        )
    except InputError:
        raise
    except Exception as error:  # Lightning's own, of many kinds
        asked = ", ".join(f"{key}={cfg.trainer[key]}" for key in ("accelerator", "devices"))
        raise InputError(f"trainer ({asked}): {one_line(error)}") from error
    return trainer


def device_of(cfg: DictConfig) -> torch.device:
    """Where a single process computes."""
    return torch.device("cpu" if accelerator_of(cfg) == "cpu" else "cuda")


def accelerator_of(cfg: DictConfig) -> str:
    """What ``auto`` stands for: CUDA or the CPU; Apple's GPUs lack the float64 we count with."""
    if cfg.trainer.accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(cfg.trainer.accelerator)


def make_sampling(cfg: DictConfig) -> Sampling:
    """How candidates are drawn."""
    return make(
        Sampling,
        cfg,
        negative_prompt=cfg.rollout.negative_prompt or "",
        cache=build(cfg.rollout.cache, "rollout.cache"),
    )


def _without_hydra(cfg: DictConfig) -> DictConfig:
    plain: Mapping[Any, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return OmegaConf.create({key: value for key, value in plain.items() if key != "hydra"})
