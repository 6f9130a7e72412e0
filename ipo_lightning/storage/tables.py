"""Tables that others wrote, row by row: CSV, JSON lines, JSON and parquet, a place beside each row.

Text is UTF-8, with or without a byte order mark, with line ends of any system.
"""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from ipo_lightning.errors import InputError, printable
from ipo_lightning.storage.parquet import light_rows
from ipo_lightning.storage.texts import MOST_ROWS, read_text

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet", ".tsv")

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
"""What stands between the columns in tables of some programs."""
OWN = {".csv": ",", ".tsv": "\t"}
"""What stands between them by the file's ending."""
MOST_COLUMNS = 1000
SHOWN = 200
"""Letters of columns' names in a message."""
_LIMIT = Lock()
"""Of the longest cell of a CSV file, which Python keeps once for all its readers."""

Placed = tuple[str, Mapping[str, Any]]
"""(where a row stands, for messages; the row by column)."""


class NotARow(InputError):
    """What stands where a row should."""

    def __init__(self, place: str, fault: str, text: str) -> None:
        self.place, self.text = place, text.strip()[:60]
        super().__init__(f"{place}: {fault} {self.text!r}")


def rows_of(path: Path) -> Iterator[Placed]:
    """The rows of a file, by its ending; JSON lines and a list of objects are told by the content.

    A cell of a parquet file that holds a file is an `Embedded`.

    Raises:
        InputError: the file cannot be read, or a row is no row; the message has its place.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: give a {', '.join(SUFFIXES)} file")
    if suffix == ".parquet":
        yield from ((f"{path}: row {n}", row) for n, row in enumerate(light_rows(path), 1))
    elif suffix in OWN:
        try:
            yield from _csv(path, read_text(path), OWN[suffix])
        except csv.Error as error:
            raise InputError(f"{path} cannot be read: {error}") from error
    else:
        yield from _json(path, read_text(path))


def columns_of(row: Mapping[str, Any]) -> str:
    """The names of a row's columns, for a message."""
    names = ", ".join(printable(str(name)) for name in row)
    return names if len(names) <= SHOWN else f"{names[:SHOWN]}..."


def _csv(path: Path, text: str, separator: str) -> Iterator[Placed]:
    """The rows of a CSV file, without those that are blank; a cell may be as long as the file."""
    with _cells_of(len(text)):
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        _check_names(path, list(reader.fieldnames or []), separator)
        rows = [(reader.line_num, row) for row in reader]
    for number, row in rows:
        if not any("".join(cell or "").strip() for cell in row.values()):
            continue
        if None in row:
            raise InputError(f"{path}:{number}: more cells than columns; put quotes around cells "
                             f"that hold {SEPARATORS[separator]}")  # fmt: skip
        yield f"{path}:{number}", row


def _check_names(path: Path, names: list[str], separator: str) -> None:
    """Refuse a table whose columns are not told apart by what its ending says, or by their names.

    Raises:
        InputError: says which.
    """
    other = [SEPARATORS[one] for one in SEPARATORS if one != separator and one in "".join(names)]
    if other and len(names) == 1:
        raise InputError(
            f"{path}:1: columns are separated by {other[0]}: use {SEPARATORS[separator]}"
        )
    if len(names) > MOST_COLUMNS:
        raise InputError(f"{path}:1: {len(names):,} columns, of which {MOST_COLUMNS} are read")
    twice = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if twice:
        raise InputError(f"{path}:1: two columns are called {twice[0][:SHOWN]!r}")


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


def _json(path: Path, text: str) -> Iterator[Placed]:
    """A list of objects, or an object a line: files of either kind go by either ending."""
    if _by_line(path.suffix.lower(), text):
        yield from _lines(path, io.StringIO(text, newline=""))
        return
    if text.count("{") + text.count("[") > MOST_ROWS:
        raise InputError(f"{path} cannot be read: more than {MOST_ROWS:,} objects; split it")
    whole = _parsed(text, str(path))
    if isinstance(whole, list):
        yield from _array(path, whole)
    elif isinstance(whole, dict) and whole:  # a file with one object is a file with one row
        yield f"{path}: row 1", whole
    else:
        raise NotARow(str(path), "expected a list of objects, got", json.dumps(whole))


def _by_line(suffix: str, text: str) -> bool:
    """Whether a file is JSON lines: as its first line has it, and its ending where that is odd."""
    lines = suffix == ".jsonl"
    first = text.lstrip("\ufeff\t\r\n ").partition("\n")[0]
    try:
        row = _parsed(first, "")
    except NotARow:
        return lines and not first.startswith("[")
    if isinstance(row, dict):
        return lines or bool(row)
    return lines and not (isinstance(row, list) and all(isinstance(one, dict) for one in row))


def _lines(path: Path, lines: Iterable[str]) -> Iterator[Placed]:
    for number, line in enumerate(lines, 1):
        plain = line.lstrip("\ufeff")  # of files that were put together
        if plain.strip():
            place = f"{path}:{number}"
            yield place, _object(_parsed(plain, place), place)


def _array(path: Path, rows: list[Any]) -> Iterator[Placed]:
    for number, row in enumerate(rows, 1):
        yield f"{path}: row {number}", _object(row, f"{path}: row {number}")


def _parsed(text: str, place: str) -> Any:
    """JSON without what it has no word for: NaN, infinities, halves of characters."""
    try:
        parsed = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if "\\ud" in text.lower():
            json.dumps(parsed, ensure_ascii=False).encode()
        return parsed
    except json.JSONDecodeError as error:
        where = f"{place}, line {error.lineno}" if error.lineno > 1 else place
        raise NotARow(where, "not JSON:", text[max(error.pos - 30, 0) :]) from error
    except (ValueError, RecursionError) as error:
        raise NotARow(place, "not JSON:", text) from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of JSON")
    return value


def _object(row: Any, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise NotARow(place, "expected an object, got", json.dumps(row))
    return row
