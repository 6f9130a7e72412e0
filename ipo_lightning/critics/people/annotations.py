"""The canonical format of people's labels: JSON lines about pairs of videos.

One row is one annotator's verdict on one pair, by dimension. Field names are VideoAlign's, so that
a table of these rows is one of its CSV files.

Labels are columns like the other fields. A column is a dimension if it is one of `DIMS`, or if any
row of the file has a `Choice` in it; a dimension has only choices. Further facts about a pair are
under ``extra``; unknown columns of other files are read as ``extra`` too.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import write_jsonl
from ipo_lightning.storage.tables import Placed, rows_of

Choice = Literal["A", "B", "same", "invalid"]
"""The better video; ``invalid``: no verdict is possible."""
CHOICES: tuple[Choice, ...] = get_args(Choice)
OVERALL = "Overall"
DIMS = ("VQ", "MQ", "TA", OVERALL)
"""VideoAlign's dimensions: visual quality, motion quality, text alignment, and overall."""
EXTRA = "extra"
PLAIN = ("pair_id", "prompt", "path_A", "path_B", "video_A", "video_B", "annotator", "shown_left",
         "seconds", "timestamp", "round", "source")  # fmt: skip
NO_DIMS = (*PLAIN, EXTRA, "A_model", "B_model", "left_model", "right_model")
"""Names that no dimension may have; a model may be called A or B, like a choice."""
NUMBERS = {"seconds": "number", "round": "whole number"}
"""The fields that are not texts; a whole number may be written as 1.0."""
NAME = re.compile(r"[\w-]+")
"""The name of a video in a store."""


@dataclass(frozen=True)
class Annotation:
    """One annotator's verdict on one pair."""

    pair_id: str
    prompt: str
    path_A: str  # noqa: N815 - VideoAlign's name
    """The video's file, relative to the file of annotations; empty where only its hash is known."""
    path_B: str  # noqa: N815
    labels: Mapping[str, Choice]
    """By dimension; `OVERALL` is the whole verdict. An absent dimension was not asked."""
    video_A: str = ""  # noqa: N815
    """sha256 of the mp4 file: its name in a run's store."""
    video_B: str = ""  # noqa: N815
    annotator: str = ""
    shown_left: str = ""
    """The video that was shown on the left, "A" or "B"."""
    seconds: float | None = None
    timestamp: str = ""
    """ISO 8601, UTC."""
    round: int | None = None
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the file, such as fps and models."""
    place: str = field(default="", compare=False)
    """File and line of the row, for messages."""

    def row(self) -> dict[str, Any]:
        """The row as plain JSON: a column for each label and field, and ``extra``."""
        plain = {name: getattr(self, name) for name in PLAIN}
        kept = {name: value for name, value in plain.items() if value not in ("", None)}
        return {**({EXTRA: dict(self.extra)} if self.extra else {}), **kept, **self.labels}


def read_annotations(path: Path) -> list[Annotation]:
    """The rows of a canonical file.

    Raises:
        InputError: names the line and what is wrong with it.
    """
    return annotations_of(rows_of(path))


def annotations_of(rows: Iterable[Placed]) -> list[Annotation]:
    """Rows of a canonical file, each with its place for messages.

    Raises:
        InputError: names the place and what is wrong with the row.
    """
    rows = list(rows)
    dims = _dimensions(row for _, row in rows)
    found = []
    for place, row in rows:
        try:
            found.append(_annotation(row, dims, place))
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
    return found


def _dimensions(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """The columns that are labels."""
    said = {name for row in rows for name, value in row.items() if value in CHOICES}
    return (said | {*DIMS}) - {*NO_DIMS}


def _annotation(row: Mapping[str, Any], dims: Collection[str], place: str) -> Annotation:
    """A row of JSON as an annotation.

    Raises:
        InputError: a field is missing, or a label is not a `Choice`.
    """
    for name in ("prompt", OVERALL):
        if name not in row:
            raise InputError(f"{name} is missing")
    labels = {name: _choice(name, row[name]) for name in row if name in dims and given(row[name])}
    if OVERALL not in labels:
        raise InputError(f"{OVERALL}={row[OVERALL]!r}: give one of {', '.join(CHOICES)}")
    known = {name: _plain(name, row[name]) for name in PLAIN if given(row.get(name))}
    if "prompt" not in known:
        raise InputError("prompt is empty")
    for side in ("A", "B"):
        if not known.get(f"path_{side}") and not known.get(f"video_{side}"):
            raise InputError(f"path_{side} and video_{side} are both missing; give one of them")
    defaults = {"pair_id": "", "path_A": "", "path_B": ""}
    return Annotation(**{**defaults, **known}, labels=labels, extra=_extra(row, dims), place=place)


def given(value: Any) -> bool:
    """Whether a cell has a value: not null, blank or NaN."""
    if isinstance(value, float):
        return not math.isnan(value)
    return bool(value.strip()) if isinstance(value, str) else value is not None


def _choice(name: str, value: Any) -> Choice:
    for choice in CHOICES:
        if value == choice:
            return choice
    own = "" if name in DIMS else (
        f"; if {name} is not a dimension, put it under {EXTRA}: {{...}}"
    )  # fmt: skip
    raise InputError(
        f"{name}={repr(value)[:60]}: give one of {', '.join(CHOICES)}, or nothing{own}"
    )


def _extra(row: Mapping[str, Any], dims: Collection[str]) -> dict[str, Any]:
    """The content of `EXTRA`, and the columns that are neither fields nor labels."""
    nested = row.get(EXTRA)
    own = nested if isinstance(nested, Mapping) else {}
    known = {*PLAIN, *dims, *([EXTRA] if isinstance(nested, Mapping) else [])}
    beside = {name: row[name] for name in row if name not in known and given(row[name])}
    return {**beside, **own}


def _plain(name: str, value: Any) -> Any:
    """A field of `PLAIN` in its own type; in a CSV file numbers are texts.

    Raises:
        InputError: it is of another type, or a hash has other characters: it could be a path.
    """
    kinds = (str, int, float) if name in (*NUMBERS, "pair_id", "annotator") else (str,)
    kind = NUMBERS.get(name, "text")
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise InputError(f"{name}={value!r}: give a {kind}")
    if name in ("video_A", "video_B") and not NAME.fullmatch(str(value)):
        raise InputError(f"{name}={value!r}: give the sha256 of the video's file")
    if name not in NUMBERS:
        return str(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    whole = kind == "whole number"
    if not math.isfinite(number) or (whole and not number.is_integer()):
        raise InputError(f"{name}={repr(value)[:60]}: give a {kind}")
    return int(number) if whole else number


def write_annotations(path: Path, rows: Iterable[Annotation]) -> None:
    """Write a canonical file, atomically."""
    write_jsonl(path, (one.row() for one in rows))
