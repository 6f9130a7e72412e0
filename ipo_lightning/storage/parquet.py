"""Parquet files, row by row, with the videos that they may hold.

They need pyarrow, or pandas with an engine of its own, which this project does not install.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ipo_lightning.errors import InputError
from ipo_lightning.storage.texts import LARGEST, MOST_ROWS, check_regular

MOST_TOGETHER = 64
"""Rows in memory at a time, where they are small."""


class Embedded(NamedTuple):
    """A cell that holds a file, as Hugging Face ``datasets`` writes videos."""

    sha256: str
    name: str
    """What the file was called; empty where that is not known."""


def light_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows; a cell that holds a file has become `Embedded`.

    Raises:
        InputError: it cannot be read, or holds more text than fits into memory.
    """
    held = 0
    for row in _rows(path):
        light = {str(name): _light(cell) for name, cell in row.items()}
        held += sum(len(cell) for cell in light.values() if isinstance(cell, str))
        if held > LARGEST:
            raise InputError(f"{path} cannot be read: more than {LARGEST >> 20} MiB of text; "
                             "split it")  # fmt: skip
        yield light


def embedded_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """The sha256 (hex) and the bytes of each file that is embedded at the top of a row.

    Raises:
        InputError: it cannot be read.
    """
    for row in _rows(path):
        for cell in row.values():
            content = _content(cell)
            if content is not None:
                yield hashlib.sha256(content).hexdigest(), content


def _content(cell: Any) -> bytes | None:
    """The file in a cell: bytes, or ``{"bytes": ..., "path": ...}``."""
    if isinstance(cell, Mapping) and set(cell) == {"bytes", "path"}:
        cell = cell["bytes"]
    return cell if isinstance(cell, bytes) else None


def _light(cell: Any) -> Any:
    """A cell without bytes; a file that is only named is its name."""
    content = _content(cell)
    if content is not None:
        name = cell["path"] if isinstance(cell, Mapping) else None
        return Embedded(hashlib.sha256(content).hexdigest(), str(name or ""))
    if isinstance(cell, Mapping):
        if set(cell) == {"bytes", "path"}:
            return cell["path"]
        return {str(name): _light(value) for name, value in cell.items()}
    return [_light(value) for value in cell] if isinstance(cell, list) else cell


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows, by pyarrow or whatever pandas finds."""
    check_regular(path)
    with _sentences(path):
        try:
            file = import_module("pyarrow.parquet").ParquetFile(path)
        except ImportError:
            yield from import_module("pandas").read_parquet(path).to_dict("records")
            return
        with file:
            if file.metadata.num_rows > MOST_ROWS:
                raise InputError(f"{path} cannot be read: more than {MOST_ROWS:,} rows; split it")
            parts = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(part).total_byte_size for part in parts)
            together = min(MOST_TOGETHER, LARGEST // max(size, 1))
            for batch in file.iter_batches(batch_size=max(1, together)):
                yield from batch.to_pylist()


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """Name the file in whatever a parquet library says; they raise classes of any kind."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except ImportError as error:
        raise InputError(
            f"{path}: parquet needs a package that is not installed: pip install pyarrow, or give "
            "a .csv or .jsonl"
        ) from error
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is no parquet file, or a damaged one: {said}") from error
