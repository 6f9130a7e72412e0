"""The loop: the stages of a round, and what brings a run from round to round.

`round_stages` states the loop as a list; `RoundMaker` goes through it. A new stage is one class, a
`RoundStage`, and one line in that list.
"""

from ipo_lightning.rounds.checkpoints import CheckpointFiles, Checkpoints
from ipo_lightning.rounds.datamodule import PreferenceDataModule
from ipo_lightning.rounds.iteration import IterationCallback
from ipo_lightning.rounds.maker import RoundMaker, StageReached
from ipo_lightning.rounds.policies import RoundPolicies
from ipo_lightning.rounds.rollout import RolloutPlan
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.rounds.stages import round_stages
from ipo_lightning.rounds.trainer import RoundListener, announce, runtime_of
from ipo_lightning.rounds.training import TrainingClock

__all__ = [
    "Checkpoints",
    "CheckpointFiles",
    "IterationCallback",
    "PreferenceDataModule",
    "RolloutPlan",
    "Round",
    "RoundListener",
    "RoundMaker",
    "RoundPolicies",
    "RoundStage",
    "StageReached",
    "TrainingClock",
    "announce",
    "round_stages",
    "runtime_of",
]
