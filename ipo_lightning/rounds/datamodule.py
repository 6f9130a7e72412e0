"""Critic-labelled pairs and points, streamed to the module round by round.

One Lightning epoch is one round. Its order is a pure function of (seed, round), its noise and
timesteps of (seed, round, draw); the loader's whole state is how many batches it has yielded.
"""

from collections.abc import Iterator
from typing import Annotated, Any, cast

import lightning as L
from lightning.pytorch.loops.progress import _ProcessedTracker
from torch.utils.data import DataLoader

from ipo_lightning.draws.batch import PairBatch, PointBatch
from ipo_lightning.draws.dataset import Draws, collate
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.strategies import replica_of
from ipo_lightning.settings import AtLeast, Count, Null, checked
from ipo_lightning.storage.layout import RoundSource
from ipo_lightning.storage.store import Store, fingerprint


class DrawLoader:
    """Yields a fixed number of batches of a round, and can be stopped and resumed at any of them.

    The plan of draws fills all ranks' batches, so every rank yields the same number, whatever the
    number of pairs.
    """

    def __init__(
        self,
        draws: Draws,
        *,
        batch_size: int,
        batches: int,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
    ) -> None:
        self.draws, self.batch_size, self.batches = draws, batch_size, batches
        self.rank, self.world, self.num_workers = rank, world, num_workers
        self.labels = fingerprint([row.row() for row in draws.data.rows])
        """What the round trains on."""
        self.consumed = 0
        """Batches yielded by each rank so far in this round."""

    def order(self) -> list[list[int]]:
        """This rank's batches, as places in the round's plan of draws."""
        batch, batches = self.batch_size, self.batches * self.world
        ours = range(self.rank, batches, self.world)
        return [list(range(i * batch, (i + 1) * batch)) for i in ours]

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[PairBatch | PointBatch]:
        todo = self.order()[self.consumed :]
        loader: DataLoader[Any] = DataLoader(
            self.draws, batch_sampler=todo, num_workers=self.num_workers, collate_fn=collate
        )
        for batch in loader:
            self.consumed += 1
            yield batch
        self.consumed = 0

    def state_dict(self) -> dict[str, int | str]:
        """Plain values; equal on all ranks, so that rank 0's serve every rank."""
        return {
            "round": self.draws.data.number,
            "labels": self.labels,
            "consumed": self.consumed,
            "videos": self.world * self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a loader of the same round stopped; another round's state says nothing."""
        if state["round"] != self.draws.data.number:
            return
        if state.get("labels", self.labels) != self.labels:  # checkpoints of old do not say
            raise InputError(
                f"round {state['round']} was begun with other labels: its pairs.jsonl or "
                "points.jsonl was changed since. Put it back, or remove it, to have it made again; "
                "or remove the round's checkpoints, to begin it with the changed labels"
            )
        if state["videos"] != self.world * self.batch_size:
            raise InputError(
                f"round {state['round']} was begun with {state['videos']} labels a step on all "
                f"devices together, now it is {self.world * self.batch_size}: finish the round as "
                "it was begun, or choose data.batch_size and trainer.devices to the same product"
            )
        self.consumed = state["consumed"] % self.batches


@checked
class PreferenceDataModule(L.LightningDataModule):
    """Streams each round's labels, pulling the round itself from what makes it.

    Args:
        store: where latents and embeddings lie.
        batch_size: pairs or points a step on each device, or group of devices (`Degrees`).
        optimizer_steps: a round.
        max_passes: most times that a round trains on each of its labels: with few labels it makes
            fewer optimizer steps. None: no limit.
        num_workers: processes that load and draw noise; 0 does it in the training process.
        seed: the run's.
        source: makes the rounds; None: the trainer's callback that does.
    """

    def __init__(
        self,
        store: Store,
        *,
        batch_size: Count,
        optimizer_steps: Count,
        max_passes: Annotated[Count | None, Null("no limit")] = None,
        num_workers: Annotated[int, AtLeast(0)] = 0,
        seed: int = 0,
        source: RoundSource | None = None,
    ) -> None:
        super().__init__()
        self.store, self.batch_size, self.optimizer_steps = store, batch_size, optimizer_steps
        self.max_passes = max_passes
        self.num_workers, self.seed, self.source = num_workers, seed, source

    def train_dataloader(self) -> DrawLoader:
        """The loader of the round that is about to train, or goes on.

        Lightning asks here, at the start of each epoch, once everything is restored under every
        strategy: the one place where a round can be made, fresh and on resume alike.
        """
        source = self._source()
        if source is None or self.trainer is None:
            raise RuntimeError("PreferenceDataModule needs an IterationCallback in the trainer")
        # `processed`, not `current_epoch`: the latter lags behind where a checkpoint was written
        # at the end of an epoch.
        progress = cast(_ProcessedTracker, self.trainer.fit_loop.epoch_progress.current)
        number = progress.processed + 1
        replica = replica_of(self.trainer)
        a_step = self.trainer.accumulate_grad_batches * replica.count * self.batch_size
        data = source.ensure_round(number, self.optimizer_steps * a_step)
        steps = self._steps(len(data.rows), a_step)
        return DrawLoader(
            Draws(data, self.store, self.seed, steps * a_step),
            batch_size=self.batch_size,
            batches=steps * self.trainer.accumulate_grad_batches,
            rank=replica.rank,
            world=replica.count,
            num_workers=self.num_workers,
        )

    def _steps(self, labels: int, a_step: int) -> int:
        """Optimizer steps of a round with so many labels, of which each takes ``a_step``."""
        if self.max_passes is None:
            return self.optimizer_steps
        return min(self.optimizer_steps, -(-self.max_passes * labels // a_step))

    def _source(self) -> RoundSource | None:
        callbacks = self.trainer.callbacks if self.trainer else []  # type: ignore[attr-defined]
        found = (one for one in callbacks if isinstance(one, RoundSource))
        return self.source or next(found, None)
