"""File names as VBench's evaluation looks for them: ``PROMPT-K.mp4``, K counted from 0.

VBench (``vbench/__init__.py``) takes the whole prompt, VBench-2.0 (``vbench2/__init__.py``) its
first 180 characters. Both take the ending of the videos from any one file of the folder, which must
therefore hold videos alone.
"""

from collections.abc import Mapping, Sequence

from ipo_lightning.errors import InputError

LENGTHS: Mapping[str, int | None] = {"vbench": None, "vbench2": 180}
"""Naming -> characters of the prompt that are kept; None: all."""
LONGEST = 220
"""Bytes of a file's name; most file systems take 255, of which a name in writing needs 34 more."""


def video_name(prompt: str, k: int, naming: str) -> str:
    """The name of a prompt's k-th video."""
    return f"{prompt[: LENGTHS[naming]]}-{k}.mp4"


def check_names(prompts: Sequence[str], n: int, naming: str) -> None:
    """Refuse prompts that cannot be file names, and two that would share one.

    Raises:
        InputError: names the prompt.
    """
    taken: dict[str, str] = {}
    for prompt in prompts:
        name, start = video_name(prompt, n - 1, naming), f"naming={naming}: {prompt[:60]!r}"
        if "/" in name or "\0" in name:
            raise InputError(f"{start} has a '/', which no file name can have; leave it out")
        if len(name.encode()) > LONGEST:
            shorter = ", or give naming=vbench2" if LENGTHS[naming] is None else ""
            raise InputError(
                f"{start} ... makes a file name of {len(name.encode())} bytes, more than "
                f"{LONGEST}: shorten the prompt{shorter}"
            )
        if taken.setdefault(name, prompt) != prompt:
            raise InputError(f"{start} ... has the same first {LENGTHS[naming]} characters as "
                             "another prompt: they would share a file")  # fmt: skip
