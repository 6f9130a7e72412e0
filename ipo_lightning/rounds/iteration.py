"""The loop in a Lightning trainer: one fit for all rounds, an epoch each.

`ipo_lightning.rounds` makes, exports and closes the rounds. This callback gives it the trainer,
times the training steps and saves checkpoints.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, cast

import lightning as L
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.computing import Engine
from ipo_lightning.parallel.signals import Stopped, StopSignals
from ipo_lightning.rounds.checkpoints import Checkpoints
from ipo_lightning.rounds.maker import RoundMaker
from ipo_lightning.rounds.stage import RoundStage
from ipo_lightning.rounds.trainer import announce, check_trainer, runtime_of
from ipo_lightning.rounds.training import TrainingClock
from ipo_lightning.settings import Count, Null, checked
from ipo_lightning.storage.layout import RoundData, RunDir, Stage


@checked
class IterationCallback(L.Callback):
    """Makes, checkpoints and closes the rounds of a run; a `RoundSource` for the datamodule.

    The last round is the trainer's ``max_epochs``.

    Args:
        run: the run's folder.
        stages: of a round, in order, see `round_stages`.
        until: a stage of the last round to stop after; None runs it to the end.
        checkpoint_every: optimizer steps between checkpoints in a round; a kill loses at most
            these.
        parallel_prompts: prompts that a process samples at the same time; None: one a core on the
            CPU, one on a GPU. It changes no bit.
        requeue: whether SIGUSR1 in a SLURM job puts the job back into the queue, once the
            checkpoint is written (``sbatch --signal=USR1@SECONDS``).
        engine: computes the units of the stages elsewhere; None: the trainer's processes do.
    """

    def __init__(
        self,
        run: RunDir,
        stages: Sequence[RoundStage],
        *,
        until: Stage | None = None,
        checkpoint_every: Count = 20,
        parallel_prompts: Annotated[Count | None, Null("chosen by the device")] = None,
        requeue: bool = False,
        engine: Engine | None = None,
    ) -> None:
        self.run, self.stages, self.until = run, stages, until
        self.checkpoint_every, self.parallel_prompts = checkpoint_every, parallel_prompts
        self.engine = engine
        self.checkpoints, self.clock = Checkpoints(run), TrainingClock()
        self.signals, self.batches = StopSignals(requeue), 0
        self.cut_short: str | None = None
        """What ended the last fit in the midst of a round, as a sentence."""

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Bind the rounds to the trainer: by now it knows its devices, and no loader is built."""
        check_trainer(trainer, self.run)
        self.cut_short = None
        self.trainer, self.module = trainer, cast(PreferenceModule, pl_module)
        self.maker = RoundMaker(
            self.run,
            self.module,
            self.stages,
            runtime_of(
                trainer,
                self.parallel_prompts,
                bars=trainer.progress_bar_callback is not None,
                engine=self.engine,
            ),
            last_round=None if trainer.max_epochs == -1 else trainer.max_epochs,
            until=self.until,
            clock=self.clock,
            on_closed=partial(announce, trainer, self.run),
        )

    def ensure_round(self, number: int, draws: int) -> RoundData:
        """See `RoundSource`: the datamodule asks, once everything is restored."""
        self.signals.install(self.trainer)  # Lightning has set its own handlers by now
        return self.maker.ensure_round(number, draws)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Skipped where a round is resumed: its time so far comes from the checkpoint."""
        self.clock.reset()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of a batch; stages between rounds must not count as training."""
        self.signals.deferred = True
        self.clock.start()

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save a checkpoint every so many optimizer steps, and before the fit is left."""
        self.clock.stop()
        self.batches = batch_idx + 1
        steps, between = divmod(self.batches, trainer.accumulate_grad_batches)
        if between or self.batches == trainer.num_training_batches:
            return  # the epoch's end saves the last one
        leaving = self.signals.wanted(trainer)
        if leaving or trainer.should_stop or steps % self.checkpoint_every == 0:
            self.checkpoints.save(trainer, self.module.round, steps)
        if leaving:
            self.signals.leave(self._progress(trainer))

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The round is trained: keep its policy, then see what it is worth."""
        if self.batches < trainer.num_training_batches:  # Lightning calls this all the same
            self.cut_short = f"the trainer was stopped in {self._progress(trainer)}"
            trainer.should_stop = True
            return
        optimizer_steps = self.batches // trainer.accumulate_grad_batches
        self.module.finish_round()
        self.checkpoints.save(trainer, self.module.round, optimizer_steps)
        if self.signals.wanted(trainer):
            self.signals.leave(self._progress(trainer))
        self.signals.deferred = False
        self.module.drop_moments()  # videos are made next: they may need the room
        self.maker.close_round(self.module.round)

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Another rank, or a loader's worker, may have left on the signal before this process."""
        self._end_engine()
        if not isinstance(exception, Stopped) and self.signals.received is not None:
            self.signals.leave(f"round {self.module.round}")

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The fit is over: signals are somebody else's again."""
        self._end_engine()
        self.signals.restore()

    def _end_engine(self) -> None:
        if self.engine is not None:
            self.engine.close()

    def _progress(self, trainer: L.Trainer) -> str:
        """How far the round's training is."""
        of, batches = int(trainer.num_training_batches), trainer.accumulate_grad_batches
        done = f"{self.batches // batches} of {of // batches} optimizer steps"
        return f"round {self.module.round}, after {done}"

    @override
    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far in this round."""
        return {"training_seconds": self.clock.seconds}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.clock.reset(state_dict["training_seconds"])
