"""The files that a run leaves, read back: each is whole, of the right kind and types, or refused.

People edit some of them, with editors of any system: a byte order mark and blank lines say nothing.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from ipo_lightning.errors import InputError
from ipo_lightning.settings import Signature, check, signature_of

R = TypeVar("R")
Row = Mapping[str, Any]

CURE = "correct it, or remove it: the same command makes it again"
IS_FOLDER = "a folder where a file should be"
REMOVE_FOLDER = "remove the folder; the same command goes on"
SHOWN = 40
"""Letters of a damaged line in a message."""


class DamagedFile(InputError):
    """A file of a run that cannot be used as it is.

    Args:
        fault: what is wrong, and in which line.
        cure: what to do.
    """

    def __init__(self, path: Path, fault: str, cure: str = CURE) -> None:
        self.path, self.fault = path, fault
        super().__init__(f"{path} is damaged ({fault}); {cure}")


class MissingFile(DamagedFile):
    """A file of a run that is not there, or a link to nothing."""


def read_content(path: Path, cure: str = CURE) -> bytes:
    """The bytes of a file.

    Raises:
        MissingFile: it is not there, or a link to none.
        DamagedFile: it is no file, or may not be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        fault = f"a link to {path.readlink()}, where nothing is" if path.is_symlink() else "missing"
        raise MissingFile(path, fault, cure) from None
    except IsADirectoryError:
        fault, cure = IS_FOLDER, REMOVE_FOLDER
    except PermissionError:
        fault, cure = "Permission denied", "let yourself read it"
    except OSError as error:
        fault = error.strerror or str(error)
    raise DamagedFile(path, fault, cure)


def read_object(path: Path, cure: str = CURE) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        DamagedFile: it holds something else.
    """
    return _object(path, _text(path, cure), "", cure)


def read_rows(path: Path, cure: str = CURE) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file.

    Raises:
        DamagedFile: names the line.
    """
    return [row for _, row in _numbered(path, cure)]


def read_typed(path: Path, kind: type[R], cure: str = CURE) -> list[R]:
    """The rows of a JSON-lines file, as dataclasses.

    Raises:
        DamagedFile: names the line, and a field that lacks, is unknown or has another type.
    """
    signature = cast(Signature, signature_of(kind))  # a dataclass has one
    return [
        _typed(kind, signature.hints, row, path, f"line {number}", cure)
        for number, row in _numbered(path, cure)
    ]


def _typed(
    kind: type[R], hints: Mapping[str, Any], row: Row, path: Path, place: str, cure: str
) -> R:
    if unknown := sorted(row.keys() - hints.keys()):
        raise DamagedFile(path, f"{place}: unknown field {unknown[0][:SHOWN]!r}", cure)
    try:
        for name, value in row.items():
            if hints[name] is not type(value):  # most are, and need no closer look
                check(name, value, hints[name])
        return kind(**row)
    except InputError as error:
        fault = f"{place}: {error}"
    except TypeError as error:
        fault = f"{place}: {str(error).partition('() ')[2] or error}"
    raise DamagedFile(path, fault, cure)


def _numbered(path: Path, cure: str) -> Iterator[tuple[int, dict[str, Any]]]:
    # Split at line ends alone: U+2028, which str.splitlines takes for one, may stand in a prompt.
    for number, line in enumerate(_text(path, cure).split("\n"), 1):
        if line.strip("\ufeff \t\r"):
            yield number, _object(path, line.strip("\ufeff"), f"line {number}: ", cure)


def _text(path: Path, cure: str) -> str:
    content = read_content(path, cure)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DamagedFile(path, f"line {line}: not UTF-8", cure) from None


def _object(path: Path, text: str, place: str, cure: str) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        shown = text.strip()[:SHOWN]
        raise DamagedFile(path, f"{place}not JSON: {shown!r}" if shown else "empty", cure) from None
    if not isinstance(found, dict):
        raise DamagedFile(path, f"{place}expected an object, got {text.strip()[:SHOWN]!r}", cure)
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number of JSON")
    return value


def one_each(path: Path, keys: Iterable[Any], what: str, cure: str = CURE) -> None:
    """Refuse a file in which two lines are of the same thing.

    Raises:
        DamagedFile: names it.
    """
    seen: set[Any] = set()
    for key in keys:
        if key in seen:
            raise DamagedFile(path, f"two lines of {what} {key}", cure)
        seen.add(key)
