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

from ipo_lightning.draws.batch import Videos
from ipo_lightning.draws.dataset import Draws, collate
from ipo_lightning.objectives import Objective, squared_error
from ipo_lightning.parallel.computing import itself
from ipo_lightning.parallel.runtime import Autocast
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Policy, PolicyUse
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
        self._network, self._precision = network, precision
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
        use = PolicyUse(
            self.policy, network, autocast, precision=self._precision, fingerprint=self._network
        )

        def work(chunk: range) -> None:
            batch = workers.group.agree(lambda: collate([draws[index] for index in chunk]))
            started = calls.start(errors_at, self.objective, batch.videos(), len(chunk))
            errors = calls.finish(started, itself)
            self._check(draws, chunk, errors)
            if workers.keeps:
                self.store.put_record("reference", self._key(draws, chunk), errors)

        with workers.computing(use, len(todo)) as calls:
            workers.run(todo, work, label, "batches", together=True, forwards=True, calls=calls)

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

    def _check(self, draws: Draws, chunk: Sequence[int], errors: Sequence[Sequence[float]]) -> None:
        """Refuse errors that are no numbers."""
        for index, row in zip(chunk, errors, strict=True):
            if not all(map(math.isfinite, row)):
                raise FloatingPointError(
                    f"the reference's error at label {draws.plan[index].row} is {row}: its "
                    "weights or its latents are broken, or trainer.precision is too low"
                )


@torch.no_grad()
def errors_at(
    use: PolicyUse, objective: Objective, videos: Videos, draws: int
) -> list[list[float]]:
    """The errors of a network on the videos of so many draws: a row each."""
    near = type(videos)(*(part.to(use.device) for part in videos))
    noised = objective.noise(near.latents, near.noise, near.u)
    with use.autocast():
        output = use.policy.predict(use.network, noised.sample, noised.timestep, near.text)
    errors: list[list[float]] = squared_error(output, noised).view(-1, draws).T.tolist()
    return errors
