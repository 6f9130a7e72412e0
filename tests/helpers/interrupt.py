"""Callbacks that end a run at a certain moment: a lost machine, a signal, a trainer that stops."""

import os
import signal
from typing import Any

import lightning as L

from ipo_lightning.rounds.rollout import RolloutStage
from ipo_lightning.rounds.stage import Round
from ipo_lightning.sampling import Sampler


class At(L.Callback):
    """Does something after an optimizer step, or when a unit of videos is made.

    Args:
        optimizer_steps: global; None for no such moment.
        videos_of: units of videos that this process makes; None for no such moment.
        rollout: of a round: its units alone are counted, since ranks do not know how many units of
            other stages are dealt to them. None: all units.
        rank: of the process that does it; None: all do.
    """

    def __init__(
        self,
        optimizer_steps: int | None = None,
        videos_of: int | None = None,
        rollout: int | None = None,
        rank: int | None = None,
    ) -> None:
        self.optimizer_steps, self.videos_of, self.rank = optimizer_steps, videos_of, rank
        self.rollout, self.made, self.counting = rollout, 0, rollout is None

    def act(self) -> None:
        """What is done."""
        raise NotImplementedError

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        original, run = Sampler._make, RolloutStage.run

        def make(*args: Any) -> Any:
            self.made += self.counting
            if (
                self.counting
                and self.made == self.videos_of
                and self.rank in (None, trainer.global_rank)
            ):
                self.act()
            return original(*args)

        def counted(stage: RolloutStage, round: Round) -> None:
            self.counting = self.rollout in (None, round.number)
            run(stage, round)
            self.counting = self.rollout is None

        Sampler._make, RolloutStage.run = make, counted  # type: ignore[method-assign]
        self.original, self.run = original, run

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        Sampler._make, RolloutStage.run = self.original, self.run  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.optimizer_steps and self.rank in (None, trainer.global_rank):
            self.act()


class CrashAt(At):
    """Ends its process at once, as a lost machine would."""

    def act(self) -> None:
        """No handler of the program is called."""
        os._exit(9)


class SignalAt(At):
    """Sends its own process a signal, as a scheduler would.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int = signal.SIGTERM, rank: int = 0, **when: int) -> None:
        super().__init__(rank=rank, **when)
        self.number = number

    def act(self) -> None:
        """As ``kill`` does."""
        os.kill(os.getpid(), self.number)


class StopAt(L.Callback):
    """Asks the trainer to stop, as early stopping and time limits do.

    Args:
        optimizer_steps: global.
    """

    def __init__(self, optimizer_steps: int) -> None:
        self.optimizer_steps = optimizer_steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.optimizer_steps:
            trainer.should_stop = True
