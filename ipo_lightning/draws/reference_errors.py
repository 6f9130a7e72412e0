"""The reference's errors at the draws of a round, computed once and kept in the store.

A preference loss needs one number of the reference for each video of a draw, and the draws of a
round are known before it trains. So the numbers are computed at the round's start, without
gradients and in large batches. They are keyed by all that they depend on (network, objective,
precision, latents, text, noise), and by nothing else: runs that differ in the loss, its beta or the
learning rate share them.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ipo_lightning.draws.batch import PairBatch, PointBatch
from ipo_lightning.draws.dataset import Draws, collate
from ipo_lightning.objectives import Objective, squared_error
from ipo_lightning.parallel.runtime import Autocast
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Policy
from ipo_lightning.storage.store import LostBlob, Store, fingerprint


class ReferenceErrors:
    """Computes, stores and finds the errors of one frozen network.

    Args:
        policy: the model family. objective: how it is trained.
        store: where the errors are kept.
        network: fingerprint of the network whose errors they are.
        precision: the trainer's. batch_size: draws in one forward; part of the key, since rounding
            depends on it.
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        store: Store,
        *,
        network: str,
        precision: str,
        batch_size: int,
    ) -> None:
        self.policy, self.objective, self.store = policy, objective, store
        self.batch_size = batch_size
        self._depends_on = [network, policy.identity, objective.identity, precision]

    def missing(self, draws: Draws) -> list[range]:
        """The chunks of draws whose errors are yet to be computed."""
        return [chunk for chunk in self._chunks(draws) if self._find(draws, chunk) is None]

    def compute(
        self,
        draws: Draws,
        network: nn.Module,
        workers: Workers,
        autocast: Autocast,
        label: str,
    ) -> None:
        """Compute the errors that the store lacks, and keep them; the ranks share the work."""
        todo = workers.agree(lambda: self.missing(draws))
        device = next(network.parameters()).device

        def work(chunk: range) -> None:
            batch = workers.group.agree(lambda: collate([draws[index] for index in chunk]))
            errors = self._errors(draws, chunk, batch, network, autocast, device)
            if workers.keeps:
                self.store.put_record("reference", self._key(draws, chunk), errors)

        workers.run(todo, work, label, "batches", together=True, forwards=True)

    def table(self, draws: Draws) -> Tensor:
        """(V, 2) float32 for pairs, winner and loser, or (V, 1) for points, in the plan's order.

        Raises:
            LostBlob: a chunk that was just computed is not in the store.
        """
        rows: list[list[float]] = []
        for chunk in self._chunks(draws):
            found = self._find(draws, chunk)
            if found is None:
                raise LostBlob(
                    f"{self.store.root}: the reference errors just computed are gone; do all ranks "
                    "see this folder, and has the disk room?"
                )
            rows += found
        return torch.tensor(rows, dtype=torch.float32)

    def _chunks(self, draws: Draws) -> list[range]:
        size, count = self.batch_size, len(draws)
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def _key(self, draws: Draws, chunk: Sequence[int]) -> str:
        return fingerprint([*self._depends_on, [draws.key(index) for index in chunk]])

    def _find(self, draws: Draws, chunk: Sequence[int]) -> list[list[float]] | None:
        found: list[list[float]] | None = self.store.get_record(
            "reference", self._key(draws, chunk)
        )
        return found

    @torch.no_grad()
    def _errors(
        self,
        draws: Draws,
        chunk: Sequence[int],
        batch: PairBatch | PointBatch,
        network: nn.Module,
        autocast: Autocast,
        device: torch.device,
    ) -> list[list[float]]:
        videos = type(batch.videos())(*(part.to(device) for part in batch.videos()))
        noised = self.objective.noise(videos.latents, videos.noise, videos.u)
        with autocast():
            output = self.policy.predict(network, noised.sample, noised.timestep, videos.text)
        errors = squared_error(output, noised).view(-1, len(chunk)).T.tolist()
        for index, row in zip(chunk, errors, strict=True):
            if not all(map(math.isfinite, row)):
                raise FloatingPointError(
                    f"the reference's error at label {draws.plan[index].row} is {row}: its "
                    "weights or its latents are broken, or trainer.precision is too low"
                )
        return errors
