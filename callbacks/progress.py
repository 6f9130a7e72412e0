"""What shows how far a run is: a progress bar of a round's updates, or a JSON line a stage."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from typing_extensions import override

from ipo_lightning.rounds import IterationCallback, Round, RoundStage
from ipo_lightning.rounds.headings import heading
from ipo_lightning.rounds.training import TrainingStage
from ipo_lightning.storage.layout import (
    DRAFT_CRITIQUE,
    DRAFTS,
    REFERENCE_ERRORS,
    RoundData,
    RunDir,
    drafts_in,
)


class RoundProgressBar(TQDMProgressBar):
    """One bar a round, in line with the bars of the other stages."""

    def __init__(self) -> None:
        super().__init__(leave=True)  # a new bar each round, the old one stays in sight

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, *_: object) -> None:
        """Name the round; the bar is made by the base class."""
        super().on_train_epoch_start(trainer)
        self.train_progress_bar.set_description(f"{round_of(trainer)}: training")

    @override
    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Loss, and the share of pairs that the policy has the right way round."""
        shown = {"loss": "train/loss", "accuracy": "train/accuracy"}
        metrics = trainer.callback_metrics
        return {name: f"{metrics[key]:.3f}" for name, key in shown.items() if key in metrics}

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the terminal to the stages that follow."""
        super().on_train_epoch_end(trainer, pl_module)
        self.train_progress_bar.close()


def round_of(trainer: L.Trainer) -> str:
    """How the bar names the round that is trained, see `heading`."""
    number, last = trainer.current_epoch + 1, trainer.max_epochs
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    run = next((one.run for one in callbacks if isinstance(one, IterationCallback)), None)
    if run is None or not trainer.is_global_zero:
        return f"round {number}"
    return heading(run, number, None if last == -1 else last)


class StageLog(L.Callback):
    """Tells of each finished stage and of each alarm of a guard, on the leading rank.

    Args:
        emit: takes the name of an event and its facts by name.
    """

    def __init__(self, emit: Callable[..., None]) -> None:
        self.emit = emit
        self.updates: int | None = None
        """Optimizer steps of the round that is trained."""

    def told(self, stages: Sequence[RoundStage]) -> list[RoundStage]:
        """The stages, so that each tells when it has run; those of one name tell together."""
        names = [stage.name for stage in stages]
        spent: dict[str, float] = {}
        return [
            ToldStage(stage, self, spent, last=stage.name not in names[place + 1 :])
            for place, stage in enumerate(stages)
        ]

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the round's updates."""
        self._count(trainer)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The same, since a resumed round has no start; the rounds' own callback comes later."""
        self._count(trainer)

    def _count(self, trainer: L.Trainer) -> None:
        self.updates = int(trainer.num_training_batches) // trainer.accumulate_grad_batches

    def on_round_end(self, trainer: L.Trainer, round_number: int, round_dir: Path) -> None:
        """See `RoundListener`."""
        line = RunDir(round_dir.parent).line(round_number) or {}
        for found in line.get("guards") or ():
            self.emit("guard", round=round_number, **found)

    def units(self, round: Round) -> dict[str, int | None]:
        """How much each stage made: videos, verdicts, labels, draws, optimizer steps, videos."""
        folder = round.folder
        lines = folder.manifest().lines
        labels = lines.get(folder.labels_file(round.module.label_kind).name)
        drafts = drafts_in(folder)
        return {
            DRAFTS: lines.get(drafts.candidates_file.name),
            DRAFT_CRITIQUE: lines.get(drafts.verdicts_file.name),
            "rollout": lines.get(folder.candidates_file.name),
            "critique": lines.get(folder.verdicts_file.name),
            "labelling": labels,
            REFERENCE_ERRORS: round.draws,
            "training": self.updates,
            "evaluation": lines.get(folder.evaluation_file.name),
        }


class ToldStage(RoundStage):
    """A stage that tells how long it ran.

    Args:
        stage: what is run. log: that is told. spent: seconds by name, not yet told.
        last: whether no later stage has its name.
    """

    def __init__(
        self, stage: RoundStage, log: StageLog, spent: dict[str, float], *, last: bool
    ) -> None:
        self.stage, self.log, self.spent, self.last = stage, log, spent, last
        self.name = stage.name

    @override
    def done(self, round: Round) -> bool:
        return self.stage.done(round)

    @override
    def run(self, round: Round) -> None:
        started = time.monotonic()
        self.stage.run(round)
        trained = round.training_seconds if self.name == TrainingStage.name else 0.0
        self.spent[self.name] = (
            self.spent.get(self.name, 0.0) + trained + time.monotonic() - started
        )
        self._tell(round)

    @override
    def load(self, round: Round) -> RoundData:
        self._tell(round)  # what an earlier stage of its name took
        return self.stage.load(round)

    def _tell(self, round: Round) -> None:
        if not (self.last and self.name and self.name in self.spent and round.workers.leads):
            return
        self.log.emit(
            "stage",
            round=round.number,
            stage=self.name,
            seconds=float(f"{self.spent.pop(self.name):.3f}"),  # as the rounds' records have it
            units=self.log.units(round).get(self.name),
        )
