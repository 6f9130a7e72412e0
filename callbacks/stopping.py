"""Early stopping over rounds: by the held-out judge, never by the critic that labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from typing_extensions import override

from ipo_lightning.rounds import IterationCallback, StageReached
from ipo_lightning.settings import Count, NotNegative, checked
from ipo_lightning.storage.layout import RunDir


class JudgeStalled(StageReached):
    """Raised to leave the fit of a run that has stopped before."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__("evaluation", number)
        self.args = (reason,)


@checked
class JudgeEarlyStopping(L.Callback):
    """Stops the run when the held-out judge's score has not risen for some rounds.

    The iteration callback calls :meth:`on_round_end`; the round that was just finished stays whole.
    All that counts is in rounds.jsonl: a resumed run stops where one without a break does.

    Args:
        patience: rounds without a rise, the base model counting as the first score to beat.
        min_gain: least rise, in the judge's units.
    """

    def __init__(self, patience: Count = 2, min_gain: NotNegative = 0.0) -> None:
        self.patience, self.min_gain = patience, min_gain
        self.stopped: str | None = None
        """Why the run was stopped, as a sentence."""

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave before the next round's videos are made, on all ranks: they read the same file.

        Raises:
            JudgeStalled: the run was stopped before.
        """
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        run = next((one.run for one in callbacks if isinstance(one, IterationCallback)), None)
        lines = run.lines() if run is not None else []
        if lines and (reason := self.reason(lines)):
            raise JudgeStalled(int(lines[-1]["round"]), reason)

    def on_round_end(self, trainer: L.Trainer, round_number: int, round_dir: Path) -> None:
        """Ask the trainer to stop, where the score has not risen."""
        self.stopped = self.reason(RunDir(round_dir.parent).lines())
        trainer.should_stop = trainer.should_stop or self.stopped is not None

    def reason(self, lines: Sequence[Mapping[str, Any]]) -> str | None:
        """Why a run with these lines of rounds.jsonl stops; None where it goes on."""
        best, number = rounds_since_best([line["eval_score"] for line in lines], self.min_gain)
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
