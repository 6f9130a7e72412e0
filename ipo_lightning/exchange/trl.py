"""The preference columns of TRL's trainers, with videos: ``prompt, chosen, rejected`` for pairs,
``prompt, completion, label`` for points.

On disk this is a ``videofolder`` of Hugging Face ``datasets``: the columns ``chosen_file_name`` and
``rejected_file_name`` (or ``completion_file_name``) of ``metadata.jsonl`` name files of the folder;
``load_dataset`` makes columns ``chosen`` and ``rejected`` (or ``completion``) of videos of them.
Sources: the guide "Create a video dataset" and ``folder_based_builder.py`` of ``datasets``,
"Dataset formats and types" of TRL.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ipo_lightning.critics.people.annotations import OVERALL, Annotation
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.columns import numbered, plain, shown, text, video
from ipo_lightning.exchange.points import VideoPoint
from ipo_lightning.storage.store import write_jsonl
from ipo_lightning.storage.tables import Placed

PAIR, POINT = ("chosen", "rejected"), ("completion",)
METADATA = "metadata.jsonl"


def has_pairs(columns: set[str]) -> bool:
    """Whether a table has the columns of pairs."""
    return "prompt" in columns and all(_column(columns, name) for name in PAIR)


def has_points(columns: set[str]) -> bool:
    """Whether a table has the columns of points."""
    return {"prompt", "label"} <= columns and _column(columns, *POINT) is not None


def read(path: Path, rows: Sequence[Placed]) -> list[Annotation]:
    """The pairs; the chosen video is A.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    found = []
    for number, (place, row) in enumerate(rows, 1):
        chosen, rejected = (_column(set(row), name) or name for name in PAIR)
        first, second = (video(row, name, place) for name in (chosen, rejected))
        found.append(
            Annotation(
                pair_id=numbered(path, number),
                prompt=text(row, "prompt", place),
                path_A=first.path,
                path_B=second.path,
                video_A=first.sha256,
                video_B=second.sha256,
                labels={OVERALL: "A"},
                source=path.name,
                extra=plain(row, {"prompt", chosen, rejected}),
                place=place,
            )
        )
    return found


def read_points(path: Path, rows: Sequence[Placed]) -> list[VideoPoint]:
    """The points; a label is true or false, the overall score 1 or 0.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    found = []
    for place, row in rows:
        column = _column(set(row), *POINT) or POINT[0]
        label = LABELS.get(str(row.get("label")).strip().lower())
        if label is None:
            raise InputError(
                f"{place}: 'label' must be true or false, got {shown(row.get('label'))}"
            )
        one = video(row, column, place)
        found.append(
            VideoPoint(
                prompt=text(row, "prompt", place),
                path=one.path,
                sha256=one.sha256,
                scores={OVERALL: float(label)},
                desirable=label,
                source=path.stem,
                extra=plain(row, {"prompt", column, "label"}),
                place=place,
            )
        )
    return found


LABELS: Mapping[str, bool] = {"true": True, "false": False, "1": True, "0": False}


def write(folder: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the table of a ``videofolder``, atomically; returns its path."""
    write_jsonl(folder / METADATA, rows)
    return folder / METADATA


def _column(columns: set[str], name: str) -> str | None:
    """The column with a video's file, by its name on disk or in memory; None: there is none."""
    return next((one for one in (f"{name}_file_name", name) if one in columns), None)
