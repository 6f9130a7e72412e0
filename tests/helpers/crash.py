"""A callback that ends its process at once, as a lost machine would; used by test_distributed."""

import os
from typing import Any

import lightning as L

from ipo_lightning.sampling import Sampler


class CrashAt(L.Callback):
    """Ends every rank after a number of updates, or in the middle of a round's rollout.

    Args:
        optimizer_steps: global; None for no such end.
        videos_of: units of videos made by a rank; None for no such end.
    """

    def __init__(self, optimizer_steps: int | None = None, videos_of: int | None = None) -> None:
        self.optimizer_steps, self.videos_of = optimizer_steps, videos_of

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        original, made = Sampler._make, iter(range(1, 10**6))

        def make(*args: Any) -> Any:
            if next(made) == self.videos_of:
                os._exit(9)
            return original(*args)

        Sampler._make = make  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.optimizer_steps:
            os._exit(9)
