"""A prompt set as a file: what is in it, and how it grows without moving what is there."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ipo_lightning.errors import InputError
from ipo_lightning.prompts.composing import CATEGORIES, compositions
from ipo_lightning.prompts.files import (
    CATEGORY,
    SPLIT,
    SPLITS,
    Split,
    place,
    read_listed,
    read_prompts,
    split_at,
)
from ipo_lightning.prompts.likeness import Known
from ipo_lightning.storage.store import write_atomically
from ipo_lightning.storage.tables import rows_of

PROMPT, OUTLINE = "prompt", "outline"
COLUMNS = (PROMPT, CATEGORY, SPLIT, OUTLINE)
WRITTEN = (".csv", ".jsonl")
BENCHMARK = "prompt_en"
"""VBench's name of the column with its prompts."""
Expand = Callable[[Sequence[str]], Sequence[str | None]]
"""Composed prompts -> the prompts that are made of them; None: none was."""


@dataclass(frozen=True)
class Entry:
    """A prompt of a set.

    Args:
        outline: the composed prompt that it was expanded from; empty: it is as it was composed.
    """

    prompt: str
    category: str | None
    split: Split
    outline: str = ""

    @property
    def texts(self) -> list[str]:
        """What another prompt must not be like."""
        return [self.prompt, self.outline] if self.outline else [self.prompt]


@dataclass(frozen=True)
class Shares:
    """Of the prompts in the splits that are held out."""

    select: float
    final: float

    def of(self, text: str) -> Split:
        """The split of a prompt, by the hash of what it was composed as."""
        return split_at(place(text), self.select, self.final)


# -------------------------------------------------------------------- files


def read_set(file: Path) -> list[Entry]:
    """A set that was written by `write_set`; of a file that is not there, none.

    Raises:
        InputError: it is another kind of file.
    """
    if file.suffix not in WRITTEN:
        raise InputError(f"out={file}: give a {' or '.join(WRITTEN)} file")
    if not file.exists():
        return []
    outlines = {}
    for where, row in rows_of(file):
        if other := sorted(row.keys() - set(COLUMNS)):
            raise InputError(f"{where}: the column {other[0]!r} would be lost: give another out=")
        outlines[row.get(PROMPT)] = str(row.get(OUTLINE) or "")
    rows = read_listed(file)
    if rows[0].split is None:
        raise InputError(f"out={file}: it has no column {SPLIT!r}: give a new out= and take its "
                         f"prompts into it with add path={file}")  # fmt: skip
    return [
        Entry(row.prompt, row.category, row.split or "train", outlines.get(row.prompt, ""))
        for row in rows
    ]


def write_set(file: Path, entries: Sequence[Entry]) -> None:
    """Write a set, whole or not at all; a column that no prompt needs is left out."""
    rows = [
        dict(zip(COLUMNS, (one.prompt, one.category, one.split, one.outline), strict=True))
        for one in entries
    ]
    names = [name for name in COLUMNS if any(row[name] for row in rows)]
    kept = [{name: row[name] for name in names} for row in rows]
    if file.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_atomically(file, text.getvalue().encode())
    else:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        write_atomically(file, "".join(lines).encode())


def read_benchmark(file: Path) -> list[str]:
    """The prompts of a benchmark, as VBench's list has them or as any file of prompts.

    Raises:
        InputError: it is neither.
    """
    if file.suffix == ".json" and file.is_file():
        _, first = next(rows_of(file), ("", {}))
        return read_prompts(file, BENCHMARK if BENCHMARK in first else PROMPT)
    return read_prompts(file)


# -------------------------------------------------------------------- growth


def missing(entries: Sequence[Entry], number: int) -> dict[str, int]:
    """Category -> prompts that a set lacks to have ``number``, equally many of each."""
    there = Counter(one.category for one in entries)
    whole, rest = divmod(number, len(CATEGORIES))
    return {
        category: max(whole + (place < rest) - there[category], 0)
        for place, category in enumerate(CATEGORIES)
    }


def grown(
    wanted: Mapping[str, int],
    known: Known,
    shares: Shares,
    *,
    seed: int = 0,
    expand: Expand = list,
    batch: int = 64,
) -> Iterator[list[Entry]]:
    """New prompts, batch by batch, the categories in turns.

    Args:
        wanted: category -> how many.
        known: what none may be like; it learns the new ones.
        expand: what becomes of composed prompts.
        batch: prompts that are expanded together.

    Raises:
        InputError: no further ones can be composed, or of a batch none could be expanded.
    """
    lacking = {category: number for category, number in wanted.items() if number}
    sources = {category: compositions(category, known, seed) for category in lacking}
    while lacking:
        composed = []
        for category in _in_turns(lacking, batch):
            prompt = next(sources[category]).prompt
            known.add(prompt)
            composed.append((category, prompt))
        texts = expand([prompt for _, prompt in composed])
        if not any(texts):
            raise InputError(f"of {len(texts)} prompts none could be expanded")
        entries = [
            Entry(text, category, shares.of(prompt), "" if text == prompt else prompt)
            for (category, prompt), text in zip(composed, texts, strict=True)
            if text is not None and _is_new(text, prompt, known)
        ]
        for one in entries:
            lacking[str(one.category)] -= 1
        lacking = {category: number for category, number in lacking.items() if number}
        yield entries


def _in_turns(lacking: Mapping[str, int], most: int) -> list[str]:
    """One of each category in turns, until there are enough of it."""
    turns = [
        category
        for turn in range(max(lacking.values()))
        for category, number in lacking.items()
        if turn < number
    ]
    return turns[:most]


def _is_new(text: str, outline: str, known: Known) -> bool:
    """Whether a prompt is like none but its own outline; then it is known from now on."""
    if set(known.like(text)) - {outline}:
        return False
    if text != outline:
        known.add(text)
    return True


# -------------------------------------------------------------------- what is in a set


def counts(entries: Sequence[Entry]) -> list[str]:
    """A line a category: how many prompts of each split."""
    found = Counter((one.category or "no category", one.split) for one in entries)
    names = dict.fromkeys(category for category, _ in found)
    return [
        f"{name}: " + ", ".join(f"{found[name, split]} {split}" for split in SPLITS)
        for name in names
    ]


def crossing(entries: Sequence[Entry], threshold: float) -> list[tuple[Entry, Entry]]:
    """Near-duplicates in different splits: what is trained on would be held out too."""
    known = Known(threshold=threshold)
    by_prompt: dict[str, Entry] = {}
    found: list[tuple[Entry, Entry]] = []
    for one in entries:
        twins = (by_prompt[text] for text in known.like(one.prompt))
        found += [(one, twin) for twin in twins if twin.split != one.split]
        known.add(one.prompt)
        by_prompt[one.prompt] = one
    return found
