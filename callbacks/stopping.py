"""What ends a run between two rounds: the held-out judge, or the guards."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from typing_extensions import override

from ipo_lightning.guards import Guards, chosen_by
from ipo_lightning.rounds import IterationCallback, StageReached
from ipo_lightning.settings import Count, NotNegative, checked
from ipo_lightning.storage.layout import RunDir


class StoppedBefore(StageReached):
    """Raised to leave the fit of a run that was stopped after an earlier round."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__("evaluation", number)
        self.args = (reason,)


class RoundStopping(L.Callback):
    """Stops a run after a round, by what its lines of rounds.jsonl say.

    The iteration callback calls :meth:`on_round_end`; the round that was just finished stays whole.
    All that counts is in rounds.jsonl: a resumed run stops where one without a break does.
    """

    stopped: str | None = None
    """Why the run was stopped, as a sentence."""

    def reason(self, lines: Sequence[Mapping[str, Any]]) -> str | None:
        """Why a run with these lines of rounds.jsonl stops; None where it goes on."""
        raise NotImplementedError

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave before the next round's videos are made, on all ranks: they read the same file.

        Raises:
            StoppedBefore: the run was stopped before.
        """
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        run = next((one.run for one in callbacks if isinstance(one, IterationCallback)), None)
        lines = run.lines() if run is not None else []
        if lines and (reason := self.reason(lines)):
            raise StoppedBefore(int(lines[-1]["round"]), reason)

    def on_round_end(self, trainer: L.Trainer, round_number: int, round_dir: Path) -> None:
        """Ask the trainer to stop, where there is a reason."""
        self.stopped = self.reason(RunDir(round_dir.parent).lines())
        trainer.should_stop = trainer.should_stop or self.stopped is not None


class GuardStopping(RoundStopping):
    """Stops the run after a round in which a guard raised an alarm, if its guards are to.

    Args:
        guards: of the run.
    """

    def __init__(self, guards: Guards) -> None:
        self.guards = guards

    @override
    def reason(self, lines: Sequence[Mapping[str, Any]]) -> str | None:
        return self.guards.stops(lines[-1])


@checked
class JudgeEarlyStopping(RoundStopping):
    """Stops the run when the held-out judge's score has not risen for some rounds.

    It is the score that rounds are chosen by, see `ipo_lightning.guards.chosen_by`.

    Args:
        patience: rounds without a rise, the base model counting as the first score to beat.
        min_gain: least rise, in the judge's units.
    """

    def __init__(self, patience: Count = 2, min_gain: NotNegative = 0.0) -> None:
        self.patience, self.min_gain = patience, min_gain

    @override
    def reason(self, lines: Sequence[Mapping[str, Any]]) -> str | None:
        chosen = all(line.get("choice") for line in lines)  # those of an older version have none
        scores = [(chosen_by(line) if chosen else line)["eval_score"] for line in lines]
        best, number = rounds_since_best(scores, self.min_gain)
        if number < self.patience:
            return None
        return (
            f"early stopping: the held-out judge's score has not risen for {number} rounds; the "
            f"best is round {lines[best]['round']}"
        )


def rounds_since_best(scores: Sequence[float | None], min_gain: float) -> tuple[int, int]:
    """Place of the last score that rose by more than ``min_gain`` over all before it, and how many
    have come since; rounds without a score count as no rise."""
    best = 0
    for place, score in enumerate(scores):
        before = scores[best]
        if score is not None and (before is None or score > before + min_gain):
            best = place
    return best, len(scores) - 1 - best
