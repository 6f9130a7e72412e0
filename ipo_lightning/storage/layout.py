"""A run on disk: its rounds, their files, and what is finished.

The presence of a stage's file says that the stage is finished, since it appears whole or not at
all. What the rows refer to lies in the store and checks itself.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

from torch import Tensor

from ipo_lightning.storage.records import (
    AnyVerdict,
    Candidate,
    Pair,
    Point,
    RealClip,
    Row,
    read_verdict,
)
from ipo_lightning.storage.store import read_jsonl, write_atomically, write_jsonl

Stage = Literal["rollout", "critique", "labelling", "training", "evaluation"]
STAGES: tuple[Stage, ...] = get_args(Stage)
REFERENCE_ERRORS = "reference errors"
"""A stage that leaves no file in the round: its results lie in the store, and find themselves."""


class RoundDir:
    """The folder of one round: ``round_K``. Round 0 holds the base model's evaluation alone."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.candidates_file = path / "candidates.jsonl"
        self.verdicts_file = path / "verdicts.jsonl"
        self.pairs_file = path / "pairs.jsonl"
        self.points_file = path / "points.jsonl"
        self.labelling_file = path / "labelling.json"
        self.evaluation_file = path / "evaluation.jsonl"
        self.seconds_file = path / "seconds.json"
        self.beta_file = path / "beta.json"
        self.training_file = path / "training.json"
        self.policy = path / "policy"
        self.policy_file = path / "policy.json"
        self.checkpoints = path / "checkpoints"

    def candidates(self) -> list[Candidate]:
        """The round's videos."""
        return [Candidate(**row) for row in read_jsonl(self.candidates_file)]

    def verdicts(self) -> list[AnyVerdict]:
        """What the critic said of them."""
        return [read_verdict(row) for row in read_jsonl(self.verdicts_file)]

    def pairs(self) -> list[Pair]:
        """The labelled pairs."""
        return [Pair(**row) for row in read_jsonl(self.pairs_file)]

    def points(self) -> list[Point]:
        """The labelled videos."""
        return [Point(**row) for row in read_jsonl(self.points_file)]

    @staticmethod
    def write(path: Path, rows: Iterable[Row]) -> None:
        """Write one of the files above."""
        write_jsonl(path, (row.row() for row in rows))

    def labels_file(self, label_kind: str) -> Path:
        """The file of labels that a pairwise or a pointwise loss trains on."""
        return self.pairs_file if label_kind == "pairwise" else self.points_file

    def forget_labels(self) -> None:
        """Remove what was said of the round's videos, once they are no longer the same."""
        for file in (
            self.verdicts_file, self.pairs_file, self.points_file, self.labelling_file
        ):  # fmt: skip
            file.unlink(missing_ok=True)

    def fingerprint(self) -> str | None:
        """The fingerprint of the policy that the round ended with, if it has been exported."""
        if not self.policy_file.exists():
            return None
        return str(json.loads(self.policy_file.read_text())["fingerprint"])

    def seconds(self) -> dict[str, float]:
        """Seconds spent so far, by stage."""
        return json.loads(self.seconds_file.read_text()) if self.seconds_file.exists() else {}

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add to a stage's time, so that a resumed stage counts whole."""
        spent = self.seconds()
        spent[stage] = round(spent.get(stage, 0.0) + seconds, 3)
        write_atomically(self.seconds_file, json.dumps(spent).encode())


class RunDir:
    """The folder of a run: ``outputs/NAME``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.rounds_file = self.path / "rounds.jsonl"

    def round(self, number: int) -> RoundDir:
        """The folder of a round, whether or not it exists."""
        return RoundDir(self.path / f"round_{number}", number)

    def lines(self) -> list[dict[str, Any]]:
        """One line a finished round, in order."""
        return read_jsonl(self.rounds_file) if self.rounds_file.exists() else []

    def line(self, number: int) -> dict[str, Any] | None:
        """The line of a round, or None where it is not finished."""
        return next((line for line in self.lines() if line["round"] == number), None)

    def append(self, line: dict[str, Any]) -> None:
        """Add the line of a finished round, atomically; a round has one line."""
        kept = [old for old in self.lines() if old["round"] != line["round"]]
        write_jsonl(self.rounds_file, sorted([*kept, line], key=lambda one: one["round"]))

    def done(self, number: int, label_kind: str) -> dict[Stage, bool]:
        """Which stages of a round are finished."""
        one = self.round(number)
        return {
            "rollout": one.candidates_file.exists(),
            "critique": one.verdicts_file.exists(),
            "labelling": one.labels_file(label_kind).exists(),
            "training": one.fingerprint() is not None,
            "evaluation": self.line(number) is not None,
        }


class RoundData(NamedTuple):
    """What a round trains on."""

    number: int
    rows: Sequence[Pair] | Sequence[Point]
    texts: dict[str, str]
    """Prompt or caption -> blob of its embedding."""
    errors: Tensor | None = None
    """(V, 2) errors of the reference at the V draws to pairs, or (V, 1) to points, float32; None
    where it is asked live, or never."""
    real: Sequence[RealClip] = ()
    """Real clips to train on beside the labels, for lambda_2."""


@runtime_checkable
class RoundSource(Protocol):
    """What makes a round's data: the iteration callback, as the datamodule sees it."""

    def ensure_round(self, number: int, draws: int) -> RoundData:
        """Make the data of a round, or find it on disk; called before the round trains.

        ``draws`` is how many draws of its labels it will make, on all ranks together.
        """
        ...
