"""Cells of a table's row, checked; messages name the row."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ipo_lightning.critics.people.annotations import OVERALL, Choice
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.names import video_path
from ipo_lightning.exchange.videos import Named
from ipo_lightning.storage.parquet import Embedded

CHOICE_WORDS: Mapping[str, Choice] = {
    "a": "A", "b": "B", "same": "same", "tie": "same", "invalid": "invalid"
}  # fmt: skip


def text(row: Mapping[str, Any], name: str, place: str) -> str:
    """A cell that must be a text.

    Raises:
        InputError: it is missing or empty.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: {name!r} must be a text, got {shown(value)}")
    return value


def number(row: Mapping[str, Any], name: str, place: str) -> float:
    """A cell that must be a number.

    Raises:
        InputError: it is something else, or not finite.
    """
    try:
        value = float(row.get(name))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InputError(f"{place}: {name!r} must be a number, got {shown(row.get(name))}")
    return value


def choice(row: Mapping[str, Any], name: str, place: str) -> Choice | None:
    """A cell with the better of two videos; None where it is empty.

    Raises:
        InputError: it says something else.
    """
    value = row.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    found = CHOICE_WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None:
        raise InputError(f"{place}: {name!r} must be A, B, same or invalid, got {shown(value)}")
    return found


def overall(labels: Mapping[str, Choice]) -> Choice:
    """The overall label of labels by dimension: the video that is better in more of them."""
    balance = sum({"A": 1, "B": -1}.get(value, 0) for value in labels.values())
    if balance:
        return "A" if balance > 0 else "B"
    return "same" if any(value != "invalid" for value in labels.values()) else "invalid"


def with_overall(labels: dict[str, Choice]) -> dict[str, Choice]:
    """The labels with `OVERALL` among them."""
    return labels if OVERALL in labels else {**labels, OVERALL: overall(labels)}


def video(row: Mapping[str, Any], name: str, place: str) -> Named:
    """A cell that must name a video, or hold it.

    Raises:
        InputError: it is missing or empty.
    """
    cell = row.get(name)
    if isinstance(cell, Embedded):
        return Named("", cell.sha256)
    if isinstance(cell, Mapping):  # {"bytes": null, "path": ...}, as `datasets` writes JSON
        row, name = cell, "path"
    return Named(video_path(text(row, name, place)))


def plain(row: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """The other cells with a value; numbers of a CSV file become numbers."""
    return dict(_plain(row, known))


def _plain(row: Mapping[str, Any], known: set[str]) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        empty = value is None or (isinstance(value, str) and not value)
        if name in known or empty or isinstance(value, Embedded):
            continue
        yield name, _numeric(value) if isinstance(value, str) else value


def _numeric(value: str) -> str | int | float:
    """The finite number that a text is, else the text."""
    for kind in (int, float):
        try:
            parsed = kind(value)
        except ValueError:
            continue
        if repr(parsed) == value and abs(parsed) < float("inf"):
            return parsed
    return value


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    return json.dumps(value, default=str)[:60]


def numbered(path: Path, count: int) -> str:
    """A name for a pair without one."""
    return f"{path.stem}-{count}"
