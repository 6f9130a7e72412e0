"""The best round of a run, by the figures that rounds are chosen by and not reported with."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]
"""A line of ``rounds.jsonl``."""


def chosen_by(line: Line) -> Line:
    """The judge's figures that rounds are chosen by: those on the select split, see
    ``evaluation.choice_n``; the reported ones where a run has no others."""
    return line.get("choice") or line


def best_of(lines: Sequence[Line]) -> dict[str, Any]:
    """The best finished round: that with the greatest lower end of the judge's gain over the base.

    The base model, round 0, where no round's mean gain is above zero. Rounds without a gain, as of
    older versions, are chosen by the judge's mean score; the last one where the judge scored none,
    and among equals.

    Args:
        lines: of all finished rounds, the base model's first.

    Returns:
        ``round``, ``by`` in words, and ``low``, that lower end: the content of ``best.json``.
    """
    split = "select split" if lines[-1].get("choice") else "evaluated split"
    trained = [line for line in lines if line["round"]]
    gains = [chosen_by(line).get("gain") or {"low": None} for line in trained]
    if gains and all(gain["low"] is not None for gain in gains):
        rounds = [line["round"] for line in trained]
        low, best = max((gain["low"], one) for gain, one in zip(gains, rounds, strict=True))
        if all(gain["mean"] <= 0 for gain in gains):
            low, best = 0.0, 0
        return {"round": best, "by": f"the judge's gain, {split}", "low": low}
    best = max(lines, key=lambda line: (score_of(line), line["round"]))["round"]
    return {"round": best, "by": f"the judge's score, {split}", "low": None}


def score_of(line: Line) -> float:
    """The judge's mean score that a round is chosen by; minus infinity where it scored none."""
    score = chosen_by(line).get("eval_score")
    return -math.inf if score is None else float(score)
