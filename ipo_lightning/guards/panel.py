"""All guards of a run, and what they do."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from ipo_lightning.guards.best import Line, best_of
from ipo_lightning.guards.guard import Finding, Guard, RoundFacts
from ipo_lightning.settings import AtMost, Positive, Share, checked


@checked
class Guards:
    """Looks at each finished round with all guards.

    Args:
        checks: name -> guard; None: it is switched off.
        action: ``watch``: alarms are told and written down, and the run goes on; ``stop``: the run
            ends after the round, with status 3; ``rollback``: the next round starts from the best
            round so far, with a smaller learning rate.
        level: that an interval of the judge holds the truth in all rounds together, however many
            there will be: round k spends 1 / (k (k + 1)) of what is left to chance.
        lr_scale: by which a rollback multiplies the learning rate of all later rounds.
    """

    def __init__(
        self,
        checks: Mapping[str, Guard | None],
        action: Literal["watch", "stop", "rollback"] = "watch",
        level: Share = 0.95,
        lr_scale: Annotated[Positive, AtMost(1)] = 0.5,
    ) -> None:
        self.checks = {name: guard for name, guard in checks.items() if guard is not None}
        self.action, self.level, self.lr_scale = action, level, lr_scale

    def look(self, rounds: Sequence[RoundFacts]) -> list[Finding]:
        """What each guard finds of the newest round; nothing for the base model."""
        if len(rounds) < 2:
            return []
        number = rounds[-1].number
        each = 1 - (1 - self.level) / (number * (number + 1))
        found = {name: guard.look(rounds, each) for name, guard in self.checks.items()}
        return [Finding(name, *one) for name, one in found.items() if one is not None]

    def told(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """What a line of ``rounds.jsonl`` says of them: ``guards``, those with an alarm, and
        ``checks``, what each found."""
        return {
            "guards": [
                {"guard": one.guard, "action": self.action, "reason": one.reason}
                for one in findings
                if one.alarm
            ],
            "checks": {one.guard: one.reason for one in findings},
        }

    def stops(self, line: Line) -> str | None:
        """Why a run ends with a round of this line; None: it goes on."""
        raised = alarms(line)
        if self.action != "stop" or not raised:
            return None
        return f"stopped by guards after round {line['round']}: {'; '.join(raised)}"

    def distrusts(self, line: Line) -> str | None:
        """Why a command that ends with this line ends with status 3; None: it does not."""
        if self.action == "rollback" and (raised := alarms(line)):
            return f"alarms in round {line['round']}, the last one: {'; '.join(raised)}"
        return self.stops(line)

    def start_after(self, lines: Sequence[Line]) -> dict[str, Any] | None:
        """Where a rollback lets the next round start: the ``round`` whose policy it goes on from,
        and ``lr_scale``; None: the last one's, with the whole learning rate.

        Args:
            lines: of all finished rounds.
        """
        last, raised = lines[-1], alarms(lines[-1])
        scale = (last.get("start") or {}).get("lr_scale", 1.0)
        if self.action != "rollback" or (not raised and scale == 1):
            return None
        if not raised:
            return {"round": last["round"], "lr_scale": scale}
        return {"round": best_of(lines)["round"], "lr_scale": scale * self.lr_scale}


def alarms(line: Line) -> list[str]:
    """The alarms of a line of ``rounds.jsonl``, each as ``NAME: what was found``."""
    return [f"{one['guard']}: {one['reason']}" for one in line.get("guards") or ()]
