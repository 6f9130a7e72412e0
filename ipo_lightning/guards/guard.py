"""What a guard is: it looks at the finished rounds, and says whether to trust the newest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ipo_lightning.evaluation import EvaluatedVideo


@dataclass(frozen=True)
class RoundFacts:
    """A finished round, as guards see it.

    Args:
        line: its line of ``rounds.jsonl``. rows: its videos of the prompts by which rounds are
            chosen, with the same prompts and seeds in every round; the evaluation's where there are
            no others.
    """

    number: int
    line: Mapping[str, Any]
    rows: Sequence[EvaluatedVideo]

    def gauge(self, name: str) -> float | None:
        """The mean of a gauge over its evaluation videos; None where it was not measured."""
        value: float | None = (self.line.get("gauges") or {}).get(name)
        return value


@dataclass(frozen=True)
class Finding:
    """What a guard found of a round.

    Args:
        guard: its name among the settings. alarm: whether the round is not to be trusted.
        reason: what was found, as a clause for people: names, figures, the bound.
    """

    guard: str
    alarm: bool
    reason: str


class Guard(Protocol):
    """Looks at one thing. All that it knows is on disk, so a resumed run finds the same."""

    def look(self, rounds: Sequence[RoundFacts], level: float) -> tuple[bool, str] | None:
        """Whether the newest round raises an alarm, and why or why not; None: it cannot tell.

        Args:
            rounds: all finished ones in order, the base model's first, the newest last; two or
                more.
            level: of this round's intervals.
        """
