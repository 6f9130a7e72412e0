"""What the rounds take from a Lightning trainer, and what they tell it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

from ipo_lightning.errors import InputError
from ipo_lightning.guards import alarms
from ipo_lightning.parallel.computing import Engine
from ipo_lightning.parallel.context import ContextGroup
from ipo_lightning.parallel.dealing import shared_counter
from ipo_lightning.parallel.runtime import Runtime, arithmetic
from ipo_lightning.parallel.strategies import group_of
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.layout import RunDir


@runtime_checkable
class RoundListener(Protocol):
    """A callback that wants to know of finished rounds."""

    def on_round_end(self, trainer: L.Trainer, round_number: int, round_dir: Path) -> None:
        """Called on the leading rank once the round's line is written."""
        ...


ALTERING = {
    "GradientAccumulationScheduler": "trainer.accumulate_grad_batches is what an update takes",
    "StochasticWeightAveraging": "optim.ema averages the weights",
    "WeightAveraging": "optim.ema averages the weights",
    "LearningRateFinder": "optim.optimizer.lr is the learning rate",
    "BatchSizeFinder": "data.batch_size is the batch size, and dry_run=true says what fits",
    "BaseFinetuning": "backbone.lora says what is trained",
    "ModelPruning": "a policy is trained with all its weights",
}
"""Lightning's callbacks that change what a round comes to -> what there is in their place."""


def check_trainer(trainer: L.Trainer, run: RunDir | None = None) -> None:
    """Refuse a trainer under which a round would not be what its settings say.

    Args:
        run: whose checkpoint the trainer may go on from.

    Raises:
        InputError: names the trainer's argument and what to give instead.
    """
    every = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    if every != 1 and trainer.max_epochs != 1:
        raise InputError(
            "the trainer would train every round on the first one's labels: give "
            "Trainer(reload_dataloaders_every_n_epochs=1)"
        )
    check_whole_epochs(trainer, "a round has data.optimizer_steps optimizer steps")
    _check_callbacks(trainer)
    start = trainer.ckpt_path
    if run is not None and start is not None and not _lies_in(Path(str(start)), run.path):
        raise InputError(
            f"the trainer would go on from {start}, which is no checkpoint of the run {run.path}: "
            "give ckpt_path=Checkpoints(run).newest(ROUND); in a SLURM job without a checkpoint of "
            "its own Lightning takes hpc_ckpt_*.ckpt of Trainer(default_root_dir=), so give a "
            "folder there that nothing else writes to"
        )


def _check_callbacks(trainer: L.Trainer) -> None:
    """Refuse callbacks with which a round would not be what its settings say."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        names = (kind.__name__ for kind in type(callback).__mro__)
        if known := next((name for name in names if name in ALTERING), None):
            raise InputError(
                f"the callback {type(callback).__name__} would change what a round trains to, and "
                f"the run's settings would not say so: leave it out; {ALTERING[known]}"
            )


def check_whole_epochs(trainer: L.Trainer, instead: str) -> None:
    """Refuse the trainer's arguments that end an epoch before its batches are used up.

    Args:
        instead: what says how long an epoch is.

    Raises:
        InputError: names the argument.
    """
    limit: float = trainer.limit_train_batches
    cut = {
        "fast_dev_run": bool(trainer.fast_dev_run),  # type: ignore[attr-defined]
        "overfit_batches": trainer.overfit_batches != 0,  # type: ignore[attr-defined]
        "limit_train_batches": limit != 1 or isinstance(limit, int),  # 1 is a batch, 1.0 is all
        "max_steps": trainer.max_steps != -1,
    }
    for name in (name for name, given in cut.items() if given):
        value = getattr(trainer, name)
        raise InputError(
            f"trainer.{name}={value} would cut an epoch short and train on part of its labels: "
            f"leave it out; {instead}"
        )


def _lies_in(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def runtime_of(
    trainer: L.Trainer,
    parallel_prompts: int | None = None,
    *,
    bars: bool = True,
    engine: Engine | None = None,
) -> Runtime:
    """The trainer's device, precision and processes; its strategy must have its environment.

    Args:
        parallel_prompts: prompts that a process samples at the same time; None: one a CPU core,
            one on a GPU.
        bars: whether stages show progress bars.
        engine: computes units elsewhere; None: the trainer's processes do.

    Raises:
        InputError: groups of ranks make each forward together, which an engine cannot.
    """
    strategy, group = trainer.strategy, group_of(trainer)
    workers = Workers(
        trainer.global_rank,
        trainer.world_size,
        strategy.barrier,
        strategy.broadcast,
        threads=1 if group else parallel_prompts or cores_of_a_rank(trainer),
        bars=bars,
        counter=shared_counter(),
        engine=engine,
    )
    precision = arithmetic(str(trainer.precision))
    if group is not None:
        workers = _in_group(workers, group)
        precision = f"{precision}, {group.degrees}"  # sums are made in another order
    autocast = trainer.precision_plugin.forward_context
    return Runtime(strategy.root_device, precision, autocast, workers)


def _in_group(workers: Workers, group: ContextGroup) -> Workers:
    """The workers where ranks make each forward together."""
    if workers.engine is not None:
        raise InputError(
            setting="stages",
            expected="trainer.strategy.ulysses and ring divide each forward among ranks: give "
            "stages=ranks, or ulysses=1 and ring=1",
        )
    return replace(workers, peers=group.degrees.size, share=group.share)


def cores_of_a_rank(trainer: L.Trainer) -> int:
    """CPU cores that a rank has to itself; 1 where a GPU does the work, or the weights are shards:
    their state knows one forward at a time."""
    if trainer.strategy.root_device.type != "cpu" or isinstance(
        trainer.strategy, ModelParallelStrategy
    ):
        return 1
    return max(1, (os.cpu_count() or 1) // trainer.num_devices)


def announce(trainer: L.Trainer, run: RunDir, number: int) -> None:
    """Send a finished round's figures to the trainer's loggers, and tell the listeners.

    A listener that sets ``trainer.should_stop`` ends the fit before the next round, on all ranks.
    """
    figures = {**round_figures(run.line(number) or {}), "round": number}
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=trainer.global_step)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RoundListener) and trainer.is_global_zero:
            callback.on_round_end(trainer, number, run.round(number).path)
    trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)


def round_figures(line: Mapping[str, Any]) -> dict[str, float]:
    """What loggers are sent of a round's line: ``round/score``, ``round/gauge/motion``, ..."""
    figures = {name: line.get(name) for name in ("score", "eval_score", "win_rate")}
    figures |= {f"gauge/{name}": value for name, value in line.get("gauges", {}).items()}
    figures |= {f"dims/{name}": value for name, value in line.get("dims", {}).items()}
    figures["gain"] = (line.get("gain") or {}).get("mean")
    figures["agreement"] = (line.get("agreement") or {}).get("share")
    figures |= {f"choice/{name}": (line.get("choice") or {}).get(name) for name in
                ("eval_score", "win_rate")}  # fmt: skip
    if line.get("checks"):
        figures["alarms"] = len(alarms(line))
    figures |= {f"start/{name}": value for name, value in (line.get("start") or {}).items()}
    figures["beta"] = (line.get("train") or {}).get("beta")  # where it was settled by itself
    return {f"round/{name}": value for name, value in figures.items() if value is not None}
