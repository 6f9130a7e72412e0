"""Tables that others wrote, row by row: CSV, JSON lines, JSON and parquet, a place beside each row.

A parquet file needs pyarrow or pandas, which this project does not install.
"""

import csv
import json
import math
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, TextIO

from ipo_lightning.errors import InputError

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")

UTF_8 = "save it as UTF-8 (iconv -f cp1252 -t utf-8, or Excel's 'CSV UTF-8')"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""What stands in the place of commas in tables of some programs."""
_LIMIT = Lock()
"""Of the longest cell of a CSV file, which Python keeps once for all its readers."""

Placed = tuple[str, Mapping[str, Any]]
"""(where a row stands, for messages; the row by column)."""


def rows_of(path: Path) -> Iterator[Placed]:
    """The rows of a file, by its ending.

    Raises:
        InputError: the file cannot be read, or a row is no row; the message has its place.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: give a {', '.join(SUFFIXES)} file")
    try:
        if suffix == ".parquet":
            yield from ((f"{path}: row {n}", row) for n, row in enumerate(_parquet(path), 1))
            return
        _refuse_wide(path)
        with open(path, encoding="utf-8-sig", newline="") as file:
            if suffix == ".csv":
                yield from _csv(path, file)
            elif suffix == ".json":
                yield from _array(path, file.read())
            else:
                yield from _lines(path, file)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: not UTF-8 ({error.reason}); {UTF_8}") from error
    except csv.Error as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _refuse_wide(path: Path) -> None:
    """Texts of two bytes a letter, which may pass for UTF-8 that means nothing."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) or b"\0" in head:
        raise InputError(f"{path} cannot be read: UTF-16, or no text at all; save it as UTF-8")


def _csv(path: Path, file: TextIO) -> Iterator[Placed]:
    """The rows of a CSV file, without those that are blank; a cell may be as long as the file."""
    with _cells_of(path.stat().st_size):
        reader = csv.DictReader(file, strict=True)
        names = reader.fieldnames or []
        other = [SEPARATORS[one] for one in SEPARATORS if len(names) == 1 and one in names[0]]
        if other:
            raise InputError(f"{path}:1: columns are separated by {other[0]}: use commas")
        rows = [(reader.line_num, row) for row in reader]
    for number, row in rows:
        if not any("".join(cell or "").strip() for cell in row.values()):
            continue
        if None in row:
            raise InputError(f"{path}:{number}: more cells than columns")
        yield f"{path}:{number}", row


@contextmanager
def _cells_of(size: int) -> Iterator[None]:
    """Cells of up to ``size`` letters, while it lasts."""
    with _LIMIT:
        before = csv.field_size_limit()
        try:
            csv.field_size_limit(max(before, size))
            yield
        finally:
            csv.field_size_limit(before)


def _lines(path: Path, lines: Iterable[str]) -> Iterator[Placed]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}:{number}", _object(_parsed(line, f"{path}:{number}"), f"{path}:{number}")


def _array(path: Path, text: str) -> Iterator[Placed]:
    rows = _parsed(text, str(path))
    if not isinstance(rows, list):
        raise InputError(f"{path}: expected a list of objects, got {text.strip()[:60]!r}")
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", _object(row, f"{path}: row {number}")


def _parsed(text: str, place: str) -> Any:
    """JSON without the numbers that it has no word for: NaN and infinities."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON: {text.strip()[:60]!r}") from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of JSON")
    return value


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, got {json.dumps(row)[:60]!r}")
    return row


def _parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file, by pyarrow or whatever pandas finds."""
    try:
        try:
            rows: list[dict[str, Any]] = (
                import_module("pyarrow.parquet").read_table(path).to_pylist()
            )
        except ImportError:
            rows = import_module("pandas").read_parquet(path).to_dict("records")
    except ImportError as error:
        raise InputError(
            f"{path}: parquet needs a package that is not installed: pip install pyarrow, or give "
            "a .csv or .jsonl"
        ) from error
    except (ValueError, OSError) as error:  # pyarrow's own errors are of these classes
        raise InputError(f"{path} is no parquet file: {error}") from error
    return rows
