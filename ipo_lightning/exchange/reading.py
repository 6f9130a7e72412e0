"""Reads preference data of any known format, as pairs or points."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ipo_lightning.critics.people.annotations import OVERALL, Annotation, annotations_of
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import genai_bench, label_studio, trl, videoalign, videofeedback
from ipo_lightning.exchange.points import VideoPoint, pairs_of
from ipo_lightning.exchange.videos import unpack, videos_of
from ipo_lightning.storage.parquet import Embedded
from ipo_lightning.storage.store import Store
from ipo_lightning.storage.tables import SUFFIXES, Placed, columns_of, rows_of
from ipo_lightning.storage.texts import one_line

TABLES = ("metadata", "annotations")
"""Names of the table in a folder: Hugging Face's, and that of other exports."""


class Format(NamedTuple):
    """How a format is recognised and read; it has pairs or points."""

    fits: Callable[[Sequence[Placed]], bool]
    pairs: Callable[[Path, Sequence[Placed]], list[Annotation]] | None = None
    points: Callable[[Path, Sequence[Placed]], list[VideoPoint]] | None = None


def _columns(rows: Sequence[Placed]) -> set[str]:
    """The columns of the first row."""
    return set(rows[0][1]) if rows else set()


def _unpacked(placed: Placed) -> Placed:
    """A canonical row that holds its videos as one that names them by their sha256."""
    place, row = placed
    held = {name: cell for name, cell in row.items() if isinstance(cell, Embedded)}
    plain = {name: cell for name, cell in row.items() if name not in held}
    for side in ("A", "B"):
        if f"path_{side}" in held:
            plain[f"video_{side}"] = held[f"path_{side}"].sha256
    return place, plain


FORMATS = {
    "label_studio": Format(label_studio.is_export, label_studio.read),
    "genai_bench": Format(lambda rows: _columns(rows) >= genai_bench.NEEDED, genai_bench.read),
    "videofeedback": Format(
        lambda rows: _columns(rows) >= videofeedback.NEEDED, points=videofeedback.read_points
    ),
    "trl": Format(lambda rows: trl.has_pairs(_columns(rows)), trl.read),
    "trl_points": Format(lambda rows: trl.has_points(_columns(rows)), points=trl.read_points),
    "canonical": Format(
        lambda rows: (
            _columns(rows) >= {"prompt", OVERALL}
            and bool(_columns(rows) & {"pair_id", "video_A", "annotator", "shown_left"})
        ),
        lambda path, rows: annotations_of(map(_unpacked, rows)),
    ),
    "videoalign": Format(lambda rows: _columns(rows) >= videoalign.NEEDED, videoalign.read),
}
"""In the order in which they are tried."""


class Preferences(NamedTuple):
    """The pairs or points of a file."""

    format: str
    path: Path
    """The file; paths of videos are relative to its folder."""
    pairs: list[Annotation]
    points: list[VideoPoint]

    @property
    def folder(self) -> Path:
        """The folder that paths of videos are relative to."""
        return self.path.parent

    def unpack(self, store: Store) -> None:
        """Put the videos that the file itself holds into a store, where `Finder` finds them.

        Raises:
            InputError: the file cannot be read.
        """
        rows: list[Annotation | VideoPoint] = [*self.pairs, *self.points]
        unpack(self.path, (video for row in rows for video in videos_of(row)), store)

    def comparisons(self) -> list[Annotation]:
        """The pairs; rated videos become every two of a prompt.

        Raises:
            InputError: no prompt has two rated videos.
        """
        pairs = self.pairs or pairs_of(self.points)
        if not pairs:
            raise InputError(f"{self.path}: there are no pairs: no prompt has two rated videos, or "
                             "all answers are empty")  # fmt: skip
        return pairs

    def one_lined(self) -> "Preferences":
        """The same with each prompt as `one_line` has it, as prompts of other files are.

        Two spellings of a prompt would be trained on and held out.
        """
        return self._replace(
            pairs=[replace(one, prompt=one_line(one.prompt)) for one in self.pairs],
            points=[replace(one, prompt=one_line(one.prompt)) for one in self.points],
        )


def read_any(path: str | Path, format: str = "auto") -> Preferences:
    """The pairs or points of a file, or of the table in a folder.

    Args:
        path: one of `SUFFIXES` (``.parquet`` needs pyarrow), or a folder with one of `TABLES` in
            such a file.
        format: one of `FORMATS`; ``auto``: by the columns.

    Raises:
        InputError: there is no such file, it has no rows, or their format is unknown.
    """
    file = _table(Path(path))
    rows = list(rows_of(file))
    if not rows:
        raise InputError(f"{file}: the file has no rows")
    if format != "auto" and format not in FORMATS:
        raise InputError(f"format={format}: choose auto, {', '.join(FORMATS)}")
    name = _recognised(file, rows) if format == "auto" else format
    chosen = FORMATS[name]
    if not chosen.fits(rows):
        raise InputError(f"{file} is not of format {name}: {_told(rows)}")
    pairs = chosen.pairs(file, rows) if chosen.pairs else []
    points = chosen.points(file, rows) if chosen.points else []
    return Preferences(name, file, pairs, points)


def read_preferences(path: str | Path, format: str = "auto") -> list[Annotation]:
    """The pairs of a file, see `read_any` and `Preferences.comparisons`."""
    return read_any(path, format).comparisons()


def _table(path: Path) -> Path:
    if not os.path.isdir(path):  # False for a name that is too long, where pathlib raises
        if not os.path.isfile(path):
            raise InputError(f"{path}: there is no such file or folder")
        return path
    names = [f"{stem}{suffix}" for stem in TABLES for suffix in SUFFIXES]
    places = [place / name for place in (path, path / "train") for name in names]
    found = [file for file in places if file.is_file()]
    if not found:
        raise InputError(f"{path}: there is no {' or '.join(TABLES)}.jsonl, .csv or .parquet in "
                         "this folder; give the file itself")  # fmt: skip
    if len(found) > 1:
        raise InputError(f"{path} has both {found[0]} and {found[1]}; give one of the files")
    return found[0]


def _recognised(path: Path, rows: Sequence[Placed]) -> str:
    for name, one in FORMATS.items():
        if one.fits(rows):
            return name
    raise InputError(f"{path}: unknown format (known: {', '.join(FORMATS)}); {_told(rows)}")


def _told(rows: Sequence[Placed]) -> str:
    """The columns of a table, and a hint at blanks around their names."""
    names = sorted(map(str, _columns(rows)))
    odd = next((name for name in names if name != name.strip()), None)
    hint = "" if odd is None else f" (remove the blanks around {odd[:60]!r})"
    return f"its columns are {columns_of(dict.fromkeys(names))}{hint}"
