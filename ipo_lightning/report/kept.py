"""A page that is whole, and whose run has not changed since, is kept as it is."""

from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ipo_lightning.errors import InputError
from ipo_lightning.report.run import FOLDER, Run
from ipo_lightning.storage.run_files import read_object
from ipo_lightning.storage.store import canonical, file_sha256, fingerprint, write_atomically

MADE = "made.json"
"""Beside the summary: what the page and its summary were made of, and their hashes."""


def is_made(target: Path, summary: Path, made_of: str) -> bool:
    """Whether a page and its summary are as they were made of this."""
    try:
        known = read_object(summary.parent / MADE)
        return known == _record(target, summary, made_of)
    except (InputError, OSError):
        return False


def record(target: Path, summary: Path, made_of: str) -> None:
    """Write down what the page and its summary, just made, were made of."""
    made = _record(target, summary, made_of)
    write_atomically(summary.parent / MADE, canonical(made) + b"\n")


def _record(target: Path, summary: Path, made_of: str) -> dict[str, str]:
    files = {path.name: file_sha256(path) for path in (target, summary)}
    return {"made_of": made_of, **files}


def made_of(
    run: Run, find: Callable[[str], Path], command: str | None, folder: Path | None = None
) -> str:
    """Fingerprint of all that a page shows: the run's files, its videos' sizes, and the code."""
    videos = sorted({name for name in _videos(run)})
    sizes = [_size(find(name)) for name in videos]
    plots = sorted(path.name for path in (folder or run.path / FOLDER).glob("*.png"))
    return fingerprint([repr(run), videos, sizes, plots, command, _code()])


def _videos(run: Run) -> Iterator[str]:
    """Names of the videos that the run's rows speak of."""
    for one in run.rounds:
        for rows in (one.candidates, one.evaluation, one.choice):
            yield from (str(row.get("video")) for row in rows)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


@cache
def _code() -> str:
    """Fingerprint of the library's own files."""
    own: Any = files("ipo_lightning")
    kinds = (".py", ".html", ".css", ".js")
    found = sorted(path for path in Path(str(own)).rglob("*") if path.suffix in kinds)
    return fingerprint([[path.name, file_sha256(path)] for path in found])
