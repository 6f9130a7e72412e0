"""The end of a round's training: its policy is exported."""

import json
import time
from collections.abc import Mapping

from torch import Tensor, nn

from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.sharding import mesh_of, whole_tensors
from ipo_lightning.policy import put_weights
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.storage.store import replaced_folder, write_atomically


class TrainingStage(RoundStage):
    """The module's policy becomes the round's: ``policy/``, ``policy.json``, ``training.json``.

    The optimizer steps themselves are Lightning's, or your own loop's.
    """

    name = "training"

    def done(self, round: Round) -> bool:
        """Whether the policy is there."""
        return round.folder.fingerprint() is not None

    def run(self, round: Round) -> None:
        """Export what the module holds; ``policy.json`` comes last and ends the training."""
        folder, module = round.folder, round.module
        health = module.health.compute()
        weights = whole_tensors(module.trained())
        if not round.workers.leads:
            return
        folder.add_seconds(self.name, round.training_seconds)
        if folder.beta_file.exists():
            health["beta"] = json.loads(folder.beta_file.read_text())["beta"]
        write_atomically(folder.training_file, json.dumps(health).encode())
        with replaced_folder(folder.policy) as temporary:
            module.policy.export(exportable(module, weights), temporary)
        content = {"fingerprint": round.policies.fingerprint_of(weights), "round": round.number}
        write_atomically(folder.policy_file, json.dumps(content).encode())


def exportable(module: PreferenceModule, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network that one rank alone can write: the module's own, or a copy of its shards."""
    if mesh_of(module.network) is None:
        return module.network
    copy = module.policy.build()
    put_weights(copy, weights)
    return copy


class TrainingClock:
    """Seconds of a round's training steps; what lies between them does not count."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started = 0.0

    def reset(self, seconds: float = 0.0) -> None:
        """Start from so many seconds."""
        self.seconds = seconds

    def start(self) -> None:
        """A step begins."""
        self._started = time.monotonic()

    def stop(self) -> None:
        """The step is over."""
        self.seconds += time.monotonic() - self._started
