"""Command line: export a round's labels, import preference data.

python -m ipo_lightning.exchange export run=outputs/NAME round=1 format=trl out=DIR
python -m ipo_lightning.exchange import path=FILE out=FILE.jsonl
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ipo_lightning.commands import Command, by_settings, run
from ipo_lightning.critics.people.annotations import Annotation, write_annotations
from ipo_lightning.errors import InputError, pipe_may_close
from ipo_lightning.exchange.points import pairs_of
from ipo_lightning.exchange.publishing import FILES, publish_round
from ipo_lightning.exchange.publishing import FORMATS as WRITTEN
from ipo_lightning.exchange.reading import FORMATS, read_any
from ipo_lightning.exchange.videos import video_file, video_place
from ipo_lightning.storage.parquet import embedded_files
from ipo_lightning.storage.store import file_sha256, write_atomically

EXPORT = {
    "run": None, "round": "1", "format": "trl", "out": None, "playable": "false", "files_at": ""
}  # fmt: skip
IMPORT = {"path": None, "format": "auto", "out": None, "videos": ""}
"""Settings with their defaults; None: must be given."""
HELP = f"""settings:
  export  run=FOLDER round=1 format={"|".join(WRITTEN)} out=NEW_FOLDER
          playable=true       encode the videos for browsers
          files_at=ADDRESS    label_studio: prefix of a video's path
  import  path=FILE_OR_FOLDER format=auto|{"|".join(FORMATS)} out=FILE.jsonl
          videos=FOLDER       folder of the videos, if not the file's: rows get their sha256
"""


def export(settings: Mapping[str, str]) -> str:
    """Write the labels of a round as a dataset."""
    number, playable = settings["round"], settings["playable"]
    if not number.isdecimal() or int(number) < 1:
        raise InputError(f"round={number}: give a whole number, at least 1")
    if playable not in ("true", "false"):
        raise InputError(f"playable={playable}: give true or false")
    done = publish_round(
        settings["run"], int(number), settings["format"], settings["out"],
        playable=playable == "true", files_at=settings["files_at"],
    )  # fmt: skip
    return f"{done.folder}: {done.labels} labels, {done.videos} videos, README.md (fill in the "\
        "licence)"  # fmt: skip


def import_(settings: Mapping[str, str]) -> str:
    """Write the pairs of a file as canonical JSON lines."""
    out = Path(settings["out"])
    if out.suffix != ".jsonl":
        raise InputError(f"out={out}: give a .jsonl file")
    found = read_any(settings["path"], settings["format"])
    rows = found.pairs or pairs_of(found.points)
    folder = Path(settings["videos"]) if settings["videos"] else found.folder
    named = [_hashed(row, folder) for row in rows]
    moved = _moved(named, folder, out.parent)
    try:
        written = _unpacked(named if moved is None else moved, found.path, out.parent)
        write_annotations(out, written)
    except OSError as error:
        raise InputError(f"out={out} cannot be written: {error}") from error
    known = sum(bool(row.video_A and row.video_B) for row in named)
    text = f"{out}: {len(named)} pairs ({found.format}), of {known} of them both videos were found"
    return text if moved is not None else (
        f"{text}; their paths are relative to {folder}, not to the new file: to read it, give "
        f"videos={folder} (audit.py), data.videos= (task=critic) or data.imported.videos="
    )  # fmt: skip


def _hashed(row: Annotation, folder: Path) -> Annotation:
    """The row with the sha256 of its videos, if they are found and it has none."""
    return replace(
        row,
        video_A=row.video_A or _sha256(folder, row.path_A),
        video_B=row.video_B or _sha256(folder, row.path_B),
    )


def _moved(rows: Sequence[Annotation], folder: Path, new: Path) -> list[Annotation] | None:
    """The rows with paths relative to ``new``; None where a video is outside of it."""
    base = os.path.abspath(new)
    paths = {path for row in rows for path in (row.path_A, row.path_B) if path}
    places = {path: Path(os.path.abspath(video_place(folder, path))) for path in paths}
    if not all(place.is_relative_to(base) for place in places.values()):
        return None
    known = {path: place.relative_to(base).as_posix() for path, place in places.items()}
    known[""] = ""
    return [replace(row, path_A=known[row.path_A], path_B=known[row.path_B]) for row in rows]


def _unpacked(rows: Sequence[Annotation], table: Path, new: Path) -> list[Annotation]:
    """The rows with paths of the videos that a parquet file holds, which are put beside them."""
    held = {row.video_A for row in rows if not row.path_A}
    held |= {row.video_B for row in rows if not row.path_B}
    if table.suffix.lower() != ".parquet" or not held:
        return list(rows)
    places = {"": ""}
    for name, content in embedded_files(table):
        if name in held:
            places[name] = f"{FILES}/{name}.mp4"
            write_atomically(new / places[name], content)
    return [
        replace(
            row,
            path_A=row.path_A or places.get(row.video_A, ""),
            path_B=row.path_B or places.get(row.video_B, ""),
        )
        for row in rows
    ]


def _sha256(folder: Path, path: str) -> str:
    try:
        return file_sha256(video_file(folder, path))
    except (InputError, OSError):
        return ""


COMMANDS: Mapping[str, Command] = {
    "export": (export, EXPORT),
    "import": (import_, IMPORT),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    about = "Export a round's labels, import preference data."
    return run("exchange", about, HELP, by_settings(COMMANDS), arguments)


if __name__ == "__main__":
    with pipe_may_close():
        sys.exit(main())
