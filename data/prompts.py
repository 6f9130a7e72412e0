"""Prompt sets: three disjoint splits, each a list of prompts.

``train`` prompts are rolled out and learnt from, ``select`` prompts choose settings, ``final``
prompts are for the figures that are reported.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from ipo_lightning.errors import InputError
from ipo_lightning.settings import AtLeast, Below, checked

Split = Literal["train", "select", "final"]
SPLITS: tuple[Split, ...] = get_args(Split)
Held = Annotated[float, AtLeast(0), Below(1)]
"""Share of the prompts in a split that is held out."""
Prompts = Callable[[Split], Sequence[str]]


@checked
def from_file(
    split: Split, *, path: str, select: Held = 0.05, final: Held = 0.05, key: str = "prompt"
) -> list[str]:
    """The prompts of one split of a text file (one a line) or a JSON-lines file.

    A prompt's split is a function of its text alone: adding prompts moves none of the others.

    Args:
        path: ``.txt``, or ``.jsonl`` whose objects hold the prompt under ``key``.
        select, final: shares of the prompts in those splits, in [0, 1); the rest trains.
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
    """The prompts of a text or JSON-lines file, in order, each once."""
    if not path.is_file():
        raise InputError(f"prompts: there is no file {path}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
    if path.suffix != ".jsonl":
        return list(dict.fromkeys(line for line in lines if line))
    prompts = [_prompt_of(line, key, f"{path}:{n}") for n, line in enumerate(lines, 1) if line]
    return list(dict.fromkeys(prompts))


def _prompt_of(line: str, key: str, place: str) -> str:
    try:
        prompt = json.loads(line)[key]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{place}: expected {{"{key}": "..."}}, got {line[:60]!r}') from error
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{place}: {key!r} must be a prompt, got {prompt!r}")
    return prompt.strip()


def place(prompt: str) -> float:
    """A number in [0, 1) that a prompt keeps for ever."""
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big") / 2**56
