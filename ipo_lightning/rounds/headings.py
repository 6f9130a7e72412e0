"""How progress bars name a round: its number, and the time that is left of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

from ipo_lightning.storage.layout import RunDir


def heading(run: RunDir, number: int, last: int | None) -> str:
    """``round 2 of 3, about 4 min left``; of the time nothing before a round is finished.

    Args:
        last: the run's last round; None: there is none.
    """
    if last is None:
        return f"round {number}"
    left = seconds_left(run.lines(), run.round(number).seconds(), number, last)
    return f"round {number} of {last}" + ("" if left is None else f", about {in_words(left)} left")


def seconds_left(
    lines: Sequence[Mapping[str, Any]], spent: Mapping[str, float], number: int, last: int
) -> float | None:
    """Seconds to the end of a run, if rounds go on taking what they took; None: none is finished.

    Args:
        lines: of ``rounds.jsonl``.
        spent: seconds of the stages of round ``number`` that are finished.
    """
    rounds = [line.get("seconds") or {} for line in lines if 0 < line["round"] < number]
    if not rounds or number > last:
        return None
    stages = {stage for seconds in rounds for stage in seconds}
    means = {s: sum(seconds.get(s, 0.0) for seconds in rounds) / len(rounds) for s in stages}
    open_now = sum(mean for stage, mean in means.items() if stage not in spent)
    return open_now + (last - number) * sum(means.values())


def in_words(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
