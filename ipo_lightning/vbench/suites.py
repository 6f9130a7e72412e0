"""The videos that VBench, VBench-Long and VBench-2.0 evaluate: prompts, numbers, file names.

All three look for their videos in one flat folder, ``PROMPT-K.mp4``: VBench and VBench-Long 5 of a
prompt, VBench-2.0 3, or 20 of a prompt of diversity. Of VBench's prompts for temporal flickering 25
are asked for, of which its static filter keeps 5. VBench-Long takes VBench's prompts and cuts the
videos into clips itself.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ipo_lightning.errors import InputError
from ipo_lightning.storage.texts import one_line, read_text


class Suite(NamedTuple):
    """What a suite's loader looks for."""

    naming: str
    """Of `ipo_lightning.vbench.names`."""
    videos: int
    """Of a prompt."""
    more: Mapping[str, int]
    """Dimension -> videos of its prompts, where it wants more."""
    info: str
    """The name of its file of prompts."""


SUITES: Mapping[str, Suite] = {
    "vbench": Suite("vbench", 5, {"temporal_flickering": 25}, "VBench_full_info.json"),
    "vbench_long": Suite("vbench", 5, {"temporal_flickering": 25}, "VBench_full_info.json"),
    "vbench2": Suite("vbench2", 3, {"Diversity": 20}, "VBench2_full_info.json"),
}


class Entry(NamedTuple):
    """A prompt of a suite, and the dimensions that are evaluated on its videos."""

    prompt: str
    dimensions: tuple[str, ...]


def read_info(file: Path) -> list[Entry]:
    """The entries of a suite's file, in order.

    Raises:
        InputError: it is another kind of file.
    """
    try:
        rows = json.loads(read_text(file))
        entries = [Entry(row["prompt_en"], tuple(row["dimension"])) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"info={file}: expected VBench's list of prompts, "
                         '[{"prompt_en": "...", "dimension": ["..."]}, ...]: '
                         f"{type(error).__name__} {error}") from error  # fmt: skip
    if not entries:
        raise InputError(f"info={file}: it has no prompts")
    return entries


def of_dimensions(entries: Sequence[Entry], dimensions: Sequence[str]) -> list[Entry]:
    """The entries of some dimensions; all where none is given.

    Raises:
        InputError: there is no such dimension.
    """
    known = list(dict.fromkeys(name for entry in entries for name in entry.dimensions))
    unknown = [name for name in dimensions if name not in known]
    if unknown:
        raise InputError(f"dimensions={','.join(dimensions)}: there is no {unknown[0]}; choose "
                         f"among {', '.join(known)}")  # fmt: skip
    wanted = set(dimensions or known)
    return [entry for entry in entries if wanted & set(entry.dimensions)]


def read_rewritten(file: Path, entries: Sequence[Entry]) -> dict[str, str]:
    """Prompt -> the longer text that is sampled in its place, of a file with a line for each entry.

    VBench has such files in ``prompts/augmented_prompts``. A prompt of several entries takes the
    first one's.

    Args:
        entries: all of a suite, in order.

    Raises:
        InputError: the file has another number of lines, an empty one, or a text of two prompts.
    """
    lines = [one_line(line) for line in read_text(file).rstrip("\n").split("\n")]
    if len(lines) != len(entries) or not all(lines):
        raise InputError(f"rewritten={file}: {sum(map(bool, lines))} lines; give a text for each "
                         f"of the {len(entries)} entries, in their order")  # fmt: skip
    texts: dict[str, str] = {}
    for entry, line in zip(entries, lines, strict=True):
        texts.setdefault(entry.prompt, line)
    if len(set(texts.values())) != len(texts):
        raise InputError(f"rewritten={file}: two prompts have the same text")
    return texts


def videos_of(entries: Sequence[Entry], suite: Suite) -> dict[str, int]:
    """Prompt -> how many videos of it; a prompt of several entries is made once."""
    wanted: dict[str, int] = {}
    for prompt, dimensions in entries:
        videos = max([suite.videos, *(suite.more.get(name, 0) for name in dimensions)])
        wanted[prompt] = max(videos, wanted.get(prompt, 0))
    return wanted


def part_of(wanted: Mapping[str, int], part: int, parts: int) -> dict[str, int]:
    """Every ``parts``-th prompt, from the ``part``-th on (from 1), for one of several machines."""
    return dict(list(wanted.items())[part - 1 :: parts])


def by_number(wanted: Mapping[str, int]) -> dict[int, list[str]]:
    """Number of videos -> the prompts that need as many."""
    groups: dict[int, list[str]] = {}
    for prompt, videos in wanted.items():
        groups.setdefault(videos, []).append(prompt)
    return groups


def link_folders(
    folder: Path, entries: Sequence[Entry], names: Mapping[str, Sequence[str]]
) -> None:
    """Link the videos into a folder for each dimension, as VBench's scripts for whole models look
    for them: ``FOLDER/DIMENSION/PROMPT-K.mp4``. Links that are there stay.

    Args:
        folder: the flat folder with the videos; the links lie in ``FOLDER-by-dimension``.
        names: prompt -> the names of its files.
    """
    for prompt, dimensions in entries:
        for dimension in dimensions:
            place = folder.with_name(f"{folder.name}-by-dimension") / dimension
            place.mkdir(parents=True, exist_ok=True)
            for name in names.get(prompt, ()):
                if not (place / name).is_symlink():
                    (place / name).symlink_to(Path("../..") / folder.name / name)
