"""Prompt sets: three disjoint splits, each a list of prompts.

``train`` prompts are rolled out and learnt from, ``select`` prompts choose settings, ``final``
prompts are for the figures that are reported.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args

from ipo_lightning.errors import InputError
from ipo_lightning.settings import AtLeast, Below, checked
from ipo_lightning.storage.tables import SUFFIXES, NotARow, columns_of, rows_of
from ipo_lightning.storage.texts import one_line, read_text

TEXT = ".txt"
CATEGORY, SPLIT = "category", "split"
"""Columns of a table that say more of its prompts."""
Split = Literal["train", "select", "final"]
SPLITS: tuple[Split, ...] = get_args(Split)
Held = Annotated[float, AtLeast(0), Below(1)]
"""Share of the prompts in a split that is held out."""
Prompts = Callable[[Split], Sequence[str]]


class Listed(NamedTuple):
    """A prompt as its file has it."""

    prompt: str
    category: str | None = None
    split: Split | None = None
    """None: the file has no column ``split``."""


class PromptList(list[str]):
    """Prompts of a split.

    Args:
        rows: the prompts with what their file says of them.
    """

    def __init__(self, rows: Iterable[Listed]) -> None:
        kept = list(rows)
        super().__init__(row.prompt for row in kept)
        self.categories = {row.prompt: row.category for row in kept if row.category is not None}
        """Prompt -> category, of those that have one."""


@checked
def from_file(
    split: Split, *, path: str, select: Held = 0.05, final: Held = 0.05, key: str = "prompt"
) -> PromptList:
    """The prompts of one split of a file, see `read_listed`.

    A prompt's split is what the file's column ``split`` says; without one it is a function of the
    prompt's text alone: adding prompts moves none of the others.

    Args:
        path: the file.
        select, final: shares of the prompts in those splits, in [0, 1); the rest trains. A file
            with a column ``split`` needs none.
        key: the column of a table that holds the prompts.
    """
    rows = read_listed(Path(path), key)
    if rows[0].split is None:
        chosen = set(split_of([row.prompt for row in rows], split, path, select, final))
        return PromptList(row for row in rows if row.prompt in chosen)
    found = PromptList(row for row in rows if row.split == split)
    return _some(found, split, path, f"give some of them the split {split}")


def split_of(
    prompts: Sequence[str], split: Split, source: str, select: float, final: float
) -> list[str]:
    """The prompts of one split by `split_at`; ``source`` is where they come from."""
    chosen = [p for p in prompts if split_at(place(p), select, final) == split]
    return _some(chosen, split, source, f"add prompts or raise {split}")


def split_at(place: float, select: float, final: float) -> Split:
    """The split of a place in [0, 1), see `place`.

    Raises:
        InputError: the shares leave nothing to train on.
    """
    if not 0 <= select + final < 1:
        below = f"with final={final}; give shares that sum below 1"
        raise InputError(setting="select", value=select, expected=below)
    if place < final:
        return "final"
    return "select" if place < final + select else "train"


P = TypeVar("P", bound=Sequence[str])


def _some(chosen: P, split: Split, source: str, cure: str) -> P:
    """The prompts of a split, of which there must be some."""
    if not chosen:
        lacks = f"it has no prompt in its {split} split; {cure}"
        raise InputError(setting="path", value=source, expected=lacks)
    return chosen


def read_prompts(path: Path, key: str = "prompt") -> list[str]:
    """The prompts of a file, in order, each once, each as `one_line` has it.

    Args:
        path: ``.txt``, a prompt a line, or one of `SUFFIXES`, a prompt a row.
        key: the column that holds the prompts.

    Raises:
        InputError: there is no such file, it is of another kind, or it has no prompts.
    """
    return list(dict.fromkeys(prompt for prompt, _, _ in _rows(path.expanduser(), key)))


def read_listed(path: Path, key: str = "prompt") -> list[Listed]:
    """As `read_prompts`, with what a table's columns ``category`` and ``split`` say.

    Raises:
        InputError: also where a split is none of `SPLITS`, some rows have one and others none, or
            two rows say different things of a prompt.
    """
    found: dict[str, Listed] = {}
    places: dict[str, str] = {}
    for prompt, where, row in _rows(path.expanduser(), key):
        listed = Listed(prompt, _category(row, where), _split(row, where))
        if found.setdefault(prompt, listed) != listed:
            raise InputError(
                f"{where}: {prompt[:60]!r} has another split or category than at {places[prompt]}: "
                "a prompt has one of each"
            )
        places.setdefault(prompt, where)
    rows = list(found.values())
    lone = next((row for row in rows if (row.split is None) != (rows[0].split is None)), None)
    if lone is not None:
        bare = lone if lone.split is None else rows[0]
        raise InputError(f"{places[bare.prompt]}: no split, which other prompts of the file have: "
                         f"give one of {', '.join(SPLITS)}, or none to all")  # fmt: skip
    return rows


def _category(row: Mapping[str, Any], where: str) -> str | None:
    cell = row.get(CATEGORY)
    if cell is None:
        return None
    if not isinstance(cell, str):
        raise InputError(f"{where}: {CATEGORY!r} must be a text, got {repr(cell)[:60]}")
    return one_line(cell) or None


def _split(row: Mapping[str, Any], where: str) -> Split | None:
    cell = row.get(SPLIT)
    if cell is None or cell == "":
        return None
    for split in SPLITS:
        if cell == split:
            return split
    raise InputError(f"{where}: {SPLIT!r} must be one of {', '.join(SPLITS)}, got "
                     f"{repr(cell)[:60]}")  # fmt: skip


Placed = tuple[str, str, Mapping[str, Any]]
"""(prompt, where it stands, its row)."""


def _rows(path: Path, key: str) -> list[Placed]:
    """The prompts of a file, at least one, see `read_prompts`."""
    if not os.path.exists(path):  # of a name that is too long: false, where pathlib raises
        raise InputError(f"prompts: there is no file {path}")
    suffix = path.suffix.lower()
    if suffix not in (TEXT, *SUFFIXES):
        raise InputError(
            f"prompts: {path} ends in {suffix or 'nothing'}: give {TEXT}, a prompt a line, or a "
            f"table with a column {key!r}: {', '.join(SUFFIXES)}"
        )
    found = list(_of_text(path) if suffix == TEXT else _of_table(path, key))
    if not found:
        raise InputError(f"prompts: {path} has no prompts")
    return found


def read_named(path: Path) -> dict[str, str]:
    """Prompt -> the text that its videos are named after, of a table with ``prompt`` and ``name``.

    Raises:
        InputError: there is no such file, it is of another kind, or a row has no such texts.
    """
    path = path.expanduser()
    if not os.path.exists(path) or path.suffix.lower() not in SUFFIXES:
        raise InputError(f"names={path}: give a table with the columns 'prompt' and 'name': "
                         f"{', '.join(SUFFIXES)}")  # fmt: skip
    expected = 'expected {"prompt": "...", "name": "..."}, got'
    named = {}
    try:
        for place, row in rows_of(path):
            texts = [one_line(str(row.get(key) or "")) for key in ("prompt", "name")]
            if not all(texts):
                raise InputError(f"names: {place}: {expected} {repr(dict(row))[:60]}")
            named[texts[0]] = texts[1]
    except NotARow as error:
        raise InputError(f"names: {error.place}: {expected} {error.text!r}") from error
    return named


def _of_text(path: Path) -> Iterator[Placed]:
    """One a line; only what ends lines in files does so here, not what `str.splitlines` takes."""
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(map(one_line, lines), 1):
        if line:
            yield line, f"{path}:{number}", {}


def _of_table(path: Path, key: str) -> Iterator[Placed]:
    try:
        for place, row in rows_of(path):
            if key not in row:
                raise InputError(
                    f'{place}: expected {{"{key}": "..."}}, got the columns {columns_of(row)}; '
                    "data.prompts.key=COLUMN names another"
                )
            prompt = row[key]
            if not isinstance(prompt, str) or not one_line(prompt):
                raise InputError(f"{place}: {key!r} must be a prompt, got {repr(prompt)[:60]}")
            yield one_line(prompt), place, row
    except NotARow as error:
        raise InputError(
            f'{error.place}: expected {{"{key}": "..."}}, got {error.text!r}'
        ) from error


def place(prompt: str) -> float:
    """A number in [0, 1) that a prompt keeps for ever; two spellings of one line have one."""
    return int.from_bytes(hashlib.sha256(one_line(prompt).encode()).digest()[:7], "big") / 2**56
