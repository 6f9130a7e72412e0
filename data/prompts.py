"""Prompt sets: three disjoint splits, each a list of prompts.

``train`` prompts are rolled out and learnt from, ``select`` prompts choose settings, ``final``
prompts are for the figures that are reported.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from ipo_lightning.errors import InputError
from ipo_lightning.settings import AtLeast, Below, checked
from ipo_lightning.storage.tables import SUFFIXES, NotARow, columns_of, rows_of
from ipo_lightning.storage.texts import one_line, read_text

TEXT = ".txt"
Split = Literal["train", "select", "final"]
SPLITS: tuple[Split, ...] = get_args(Split)
Held = Annotated[float, AtLeast(0), Below(1)]
"""Share of the prompts in a split that is held out."""
Prompts = Callable[[Split], Sequence[str]]


@checked
def from_file(
    split: Split, *, path: str, select: Held = 0.05, final: Held = 0.05, key: str = "prompt"
) -> list[str]:
    """The prompts of one split of a file, see `read_prompts`.

    A prompt's split is a function of its text alone: adding prompts moves none of the others.

    Args:
        path: the file.
        select, final: shares of the prompts in those splits, in [0, 1); the rest trains.
        key: the column of a table that holds the prompts.
    """
    return split_of(read_prompts(Path(path), key), split, path, select, final)


def split_of(
    prompts: Sequence[str], split: Split, source: str, select: float, final: float
) -> list[str]:
    """The prompts of one split, see `from_file`; ``source`` is where they come from."""
    if not 0 <= select + final < 1:
        below = f"with final={final}; give shares that sum below 1"
        raise InputError(setting="select", value=select, expected=below)
    bounds = {"final": (0.0, final), "select": (final, final + select),
              "train": (final + select, 1.0)}  # fmt: skip
    low, high = bounds[split]
    chosen = [p for p in prompts if low <= place(p) < high]
    if not chosen:
        lacks = f"it has no prompt in its {split} split; add prompts or raise {split}"
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
    path = path.expanduser()
    if not os.path.exists(path):  # of a name that is too long: false, where pathlib raises
        raise InputError(f"prompts: there is no file {path}")
    suffix = path.suffix.lower()
    if suffix not in (TEXT, *SUFFIXES):
        raise InputError(
            f"prompts: {path} ends in {suffix or 'nothing'}: give {TEXT}, a prompt a line, or a "
            f"table with a column {key!r}: {', '.join(SUFFIXES)}"
        )
    found = _of_text(read_text(path)) if suffix == TEXT else _of_table(path, key)
    prompts = list(dict.fromkeys(found))
    if not prompts:
        raise InputError(f"prompts: {path} has no prompts")
    return prompts


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


def _of_text(text: str) -> Iterator[str]:
    """One a line; only what ends lines in files does so here, not what `str.splitlines` takes."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return filter(None, map(one_line, lines))


def _of_table(path: Path, key: str) -> Iterator[str]:
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
            yield one_line(prompt)
    except NotARow as error:
        raise InputError(
            f'{error.place}: expected {{"{key}": "..."}}, got {error.text!r}'
        ) from error


def place(prompt: str) -> float:
    """A number in [0, 1) that a prompt keeps for ever; two spellings of one line have one."""
    return int.from_bytes(hashlib.sha256(one_line(prompt).encode()).digest()[:7], "big") / 2**56
