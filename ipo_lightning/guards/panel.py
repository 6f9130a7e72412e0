"""All guards of a run, and what they do."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ipo_lightning.guards.guard import Finding, Guard, RoundFacts
from ipo_lightning.settings import Share, checked


@checked
class Guards:
    """Looks at each finished round with all guards.

    Args:
        checks: name -> guard; None: it is switched off.
        action: ``watch``: alarms are told and written down, and the run goes on; ``stop``: the run
            ends after the round, with status 3.
        level: that an interval of the judge holds the truth in all rounds together, however many
            there will be: round k spends 1 / (k (k + 1)) of what is left to chance.
    """

    def __init__(
        self,
        checks: Mapping[str, Guard | None],
        action: Literal["watch", "stop"] = "watch",
        level: Share = 0.95,
    ) -> None:
        self.checks = {name: guard for name, guard in checks.items() if guard is not None}
        self.action, self.level = action, level

    def look(self, rounds: Sequence[RoundFacts]) -> list[Finding]:
        """What each guard finds of the newest round; nothing for the base model."""
        if len(rounds) < 2:
            return []
        number = rounds[-1].number
        each = 1 - (1 - self.level) / (number * (number + 1))
        found = {name: guard.look(rounds, each) for name, guard in self.checks.items()}
        return [Finding(name, *one) for name, one in found.items() if one is not None]

    def stops(self, line: Mapping[str, Any]) -> str | None:
        """Why a run ends with a round of this line of ``rounds.jsonl``; None: it goes on."""
        raised = alarms(line)
        if self.action != "stop" or not raised:
            return None
        return f"stopped by guards after round {line['round']}: {'; '.join(raised)}"


def alarms(line: Mapping[str, Any]) -> list[str]:
    """The alarms of a line of ``rounds.jsonl``, each as ``NAME: what was found``."""
    return [f"{one['guard']}: {one['text']}" for one in line.get("guards") or () if one["alarm"]]


def best_round(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """The trained round with the greatest lower end of the judge's gain over the base.

    By the judge's mean where rounds of an older version have no such interval; the last one where
    the judge scored none, and among equals. None: no round is trained.
    """
    trained = [line for line in lines if line["round"]]
    gains = [(line.get("gain_ci") or (None,))[0] for line in trained]
    if None in gains:
        gains = [line.get("eval_score") for line in trained]
    keys = [(-math.inf if gain is None else gain, line["round"])
            for gain, line in zip(gains, trained, strict=True)]  # fmt: skip
    return max(keys)[1] if keys else None
