"""The end of a round's training: its policy is exported."""

import time
import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from ipo_lightning.errors import InputError
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.sharding import mesh_of, whole_tensors
from ipo_lightning.rounds.checkpoints import Checkpoints
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.rounds.training_data import beta_of
from ipo_lightning.storage.layout import AGAIN
from ipo_lightning.storage.store import replaced_folder
from ipo_lightning.storage.torch_files import read_plain


class TrainingStage(RoundStage):
    """The module's policy becomes the round's: ``policy/``, ``policy.json``, ``training.json``.

    The optimizer steps themselves are Lightning's, or your own loop's.
    """

    name = "training"

    def done(self, round: Round) -> bool:
        """Whether the policy is there, as it was exported, and what its training was like."""
        folder = round.folder
        if not round.workers.leads or folder.fingerprint() is None:
            return folder.fingerprint() is not None
        if faults := folder.policy_faults():
            warnings.warn(f"{folder.path / faults[0]} is gone, or not as it was exported; the "
                          "policy is exported anew", stacklevel=2)  # fmt: skip
            return False
        return round.run.line(round.number) is not None or folder.intact(folder.training_file)

    def run(self, round: Round) -> None:
        """Export what the module holds; ``policy.json`` comes last and ends the training.

        Where the module has gone on to a later round, a policy that was lost since comes from the
        round's last checkpoint.

        Raises:
            InputError: it is another policy than it was, or there is no checkpoint.
        """
        if round.module.round == round.number:
            health = round.module.health.compute()
            if round.workers.leads:
                self._tell(round, health)
            self._export(round)
            return
        with round.policies.holding(final_weights(round)):
            self._export(round)

    def _tell(self, round: Round, health: dict[str, float]) -> None:
        """Write down what the training was like."""
        round.folder.add_seconds(self.name, round.training_seconds)
        if round.module.auto_beta:
            health["beta"] = beta_of(round.folder)
        round.folder.write_object(round.folder.training_file, health)

    def _export(self, round: Round) -> None:
        folder, module = round.folder, round.module
        weights = whole_tensors(module.trained())
        if not round.workers.leads:
            return
        found, before = round.policies.fingerprint_of(weights), folder.fingerprint()
        if before not in (None, found):
            raise InputError(
                f"{folder.policy} is gone or damaged, and the training that was found ends with "
                f"another policy: {AGAIN.format(number=round.number)}"
            )
        with replaced_folder(folder.policy) as temporary:
            module.policy.export(exportable(module, weights), temporary)
            folder.record_policy(temporary)
        folder.write_policy_file(found)


def final_weights(round: Round) -> dict[str, Tensor]:
    """The trained weights that a round ended with, from its last checkpoint.

    Raises:
        InputError: there is none, or it is of shards.
    """
    checkpoint = Checkpoints(round.run).newest_of(round.number)
    if checkpoint is None or checkpoint.is_dir():
        raise InputError(
            f"{round.folder.policy} is gone or damaged, and {round.folder.checkpoints} has no "
            f"checkpoint to make it of: {AGAIN.format(number=round.number)}"
        )
    state = read_plain(checkpoint)["state_dict"]
    return {
        name: state[f"network.{name}"]
        for name in round.module.trained()
        if f"network.{name}" in state
    }


def exportable(module: PreferenceModule, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network that one rank alone can write: the module's own, or a copy of its shards."""
    if mesh_of(module.network) is None:
        return module.network
    copy = module.policy.frame()
    copy.load_state_dict(weights, strict=False, assign=True)
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
