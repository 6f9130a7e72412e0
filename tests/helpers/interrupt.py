"""A callback that sends its own process a signal, as a scheduler would."""

import os
import signal
from typing import Any

import lightning as L

from ipo_lightning.sampling import Sampler


class SignalAt(L.Callback):
    """Sends a signal after an optimizer step, or when a unit of videos is made.

    Args:
        number: the signal's.
        optimizer_steps: global; None for no such moment.
        videos_of: units of videos that this process makes; None for no such moment.
        rank: of the process that is sent the signal.
    """

    def __init__(
        self,
        number: int = signal.SIGTERM,
        optimizer_steps: int | None = None,
        videos_of: int | None = None,
        rank: int = 0,
    ) -> None:
        self.number, self.optimizer_steps, self.rank = number, optimizer_steps, rank
        self.videos_of = videos_of

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        original, made = Sampler._make, iter(range(1, 10**6))

        def make(*args: Any) -> Any:
            if next(made) == self.videos_of and trainer.global_rank == self.rank:
                os.kill(os.getpid(), self.number)
            return original(*args)

        Sampler._make = make  # type: ignore[method-assign]
        self.original = original

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        Sampler._make = self.original  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.optimizer_steps and trainer.global_rank == self.rank:
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
