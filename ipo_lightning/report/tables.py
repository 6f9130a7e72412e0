"""Numbers as text, and the tables of a run as plain text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ipo_lightning.storage.layout import STAGES

Row = Mapping[str, Any]


def finite(value: Any) -> float | None:
    """A finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits; whole numbers unchanged; "-" for a missing one."""
    known = finite(value)
    if known is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    decimals = digits - 1 - math.floor(math.log10(abs(known))) if known else digits - 1
    if decimals > 6:
        return f"{known:.{digits - 1}e}"
    return f"{known:.{max(decimals, 0)}f}"


def plus_minus(value: Any, error: Any) -> str:
    """A value and its standard error, with the decimals of the error."""
    mean, spread_ = finite(value), finite(error)
    if mean is None or not spread_:
        return number(value)
    decimals = min(max(1 - math.floor(math.log10(spread_)), 0), 6)
    return f"{mean:.{decimals}f} +- {spread_:.{decimals}f}"


def interval(value: Any, bounds: Any, form: str = ".2f") -> str:
    """A number with its interval, as in ``0.62 [0.55, 0.70]``."""
    rate = finite(value)
    if rate is None:
        return "-"
    low, high = (finite(b) for b in (bounds or (None, None)))
    shown = format(rate, form)
    return shown if low is None or high is None else f"{shown} [{low:{form}}, {high:{form}}]"


def gain_of(line: Row) -> str:
    """The gain over the base with its interval; "-" where it is unknown."""
    gain = line.get("gain") or {}
    return interval(gain.get("mean"), (gain.get("low"), gain.get("high")), "+.3f")


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Rows as aligned plain text under the column names; a missing value is "-".

    Columns of numbers are aligned right, others left.
    """
    cells = [[cell(row.get(name)) for name in columns] for row in rows]
    grid = [list(columns), *cells]
    widths = [max(len(line[i]) for line in grid) for i in range(len(columns))]
    words = [any(is_word(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(
            text.ljust(width) if left else text.rjust(width)
            for text, width, left in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in grid
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def cell(value: Any) -> str:
    """One cell of a table: text on one line, numbers to three digits."""
    return " ".join(value.split()) if isinstance(value, str) else number(value)


def is_word(text: str) -> bool:
    """Whether a cell is text rather than a number or a missing value."""
    return bool(text) and text != "-" and not text.lstrip("+-")[:1].isdigit()


def rounds_table(lines: Sequence[Row]) -> str:
    """The end-of-run table from the lines of ``rounds.jsonl``."""
    rows = rounds_rows(lines)
    return table(rows, list(rows[0])) if rows else "no finished round yet"


def rounds_rows(lines: Sequence[Row]) -> list[dict[str, str]]:
    """One row a round: heading -> cell.

    "drift" is the change of the error on real videos since the base, in per cent; it rises if the
    policy forgets real video to please the critic.
    """
    base = base_gauges(lines)
    moving = next((name for name in ("travel", "motion") if name in base), "motion")
    return [
        {
            "round": number(line.get("round")),
            "score": plus_minus(line.get("score"), line.get("score_se")),
            "held-out": plus_minus(line.get("eval_score"), line.get("eval_score_se")),
            "gain": gain_of(line),
            "win rate": interval(line.get("win_rate"), line.get("win_rate_ci")),
            "pairs": number(line.get("n_pairs")),
            moving: number(gauges_of(line).get(moving)),
            "drift": percent(relative(gauges_of(line), base, "real_error")),
            "minutes": f"{sum(seconds_of(line).values()) / 60:.1f}",
        }
        for line in lines
    ]


def base_gauges(lines: Sequence[Row]) -> Row:
    """The gauges of round 0; empty where it is missing."""
    return next((gauges_of(line) for line in lines if line.get("round") == 0), {})


def gauges_of(line: Row) -> Row:
    """The gauges of a line of ``rounds.jsonl``."""
    return line.get("gauges") or {}


def seconds_of(line: Row) -> dict[str, float]:
    """Seconds by stage of a line of ``rounds.jsonl``, in the order of the loop."""
    spent = {k: s for k, s in (line.get("seconds") or {}).items() if finite(s) is not None}
    order = [*(stage for stage in STAGES if stage in spent), *spent]
    return {stage: spent[stage] for stage in order}


def relative(values: Row, base: Row, name: str) -> float | None:
    """A value divided by the base's; None where one is missing or the base's is zero."""
    value, reference = finite(values.get(name)), finite(base.get(name))
    return None if value is None or not reference else value / reference


def percent(ratio: float | None) -> str:
    """A ratio as a signed change."""
    return "-" if ratio is None else f"{100 * (ratio - 1):+.1f} %"
