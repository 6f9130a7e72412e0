"""Ways in which files are damaged, edited or put in another's place."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.helpers import damaged

Damage = Callable[[Path, random.Random], bool]
"""Damages a file in place; False where this way does not apply to it."""


def truncate(path: Path, rng: random.Random) -> bool:
    """Lose the end, as a full disk or a broken copy does."""
    size = path.stat().st_size
    if size < 2:
        return False
    os.truncate(path, rng.randrange(1, size))
    return True


def empty(path: Path, rng: random.Random) -> bool:
    """Lose everything but the name."""
    os.truncate(path, 0)
    return True


def flip(path: Path, rng: random.Random) -> bool:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    if not content:
        return False
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))
    return True


def zeros(path: Path, rng: random.Random) -> bool:
    """Lose a block, as a power cut does on some file systems."""
    content = bytearray(path.read_bytes())
    if not content:
        return False
    start = rng.randrange(len(content))
    end = min(len(content), start + 4096)
    content[start:end] = bytes(end - start)
    path.write_bytes(bytes(content))
    return True


def delete(path: Path, rng: random.Random) -> bool:
    """Lose the file."""
    path.unlink()
    return True


def swap(path: Path, rng: random.Random) -> bool:
    """Exchange two files of one kind, as a careless copy does."""
    alike = sorted(one for one in path.parent.parent.rglob(f"*{path.suffix}") if one.is_file())
    others = [one for one in alike if one != path and one.read_bytes() != path.read_bytes()]
    if not others:
        return False
    other = rng.choice(others)
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)
    return True


def directory(path: Path, rng: random.Random) -> bool:
    """A folder where the file was."""
    damaged.folder(path)
    return True


def dangling(path: Path, rng: random.Random) -> bool:
    """A link to nowhere where the file was."""
    damaged.dead_link(path)
    return True


def lose_line(path: Path, rng: random.Random) -> bool:
    """Lose a line."""
    if path.suffix != ".jsonl":
        return False
    lines = path.read_bytes().splitlines(keepends=True)
    if not lines:
        return False
    lines.pop(rng.randrange(len(lines)))
    path.write_bytes(b"".join(lines))
    return True


def blank_line(path: Path, rng: random.Random) -> bool:
    """An editor's blank line at the end, and its byte order mark: nothing is lost."""
    if path.suffix not in (".json", ".jsonl"):
        return False
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n")
    return True


def no_utf8(path: Path, rng: random.Random) -> bool:
    """A byte that no text has."""
    if path.suffix not in (".json", ".jsonl", ".yaml", ".md"):
        return False
    content = bytearray(path.read_bytes())
    content.insert(rng.randrange(len(content) + 1), 0xFF)
    path.write_bytes(bytes(content))
    return True


def temporary(path: Path, rng: random.Random) -> bool:
    """What a kill in the midst of writing leaves: a half of the file under its temporary name."""
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.with_name(f".{path.name}.0123456789abcdef0123456789abcdef").write_bytes(half)
    return True


def folder_gone(path: Path, rng: random.Random) -> bool:
    """Lose the folder that the file is in, unless that is the run's own."""
    if path.parent.name in ("run", "store") or path.parent.parent.name == "store":
        return False
    shutil.rmtree(path.parent)
    return True


DAMAGES: tuple[Damage, ...] = (
    truncate, empty, flip, zeros, delete, swap, directory, dangling, lose_line, blank_line,
    no_utf8, temporary, folder_gone,
)  # fmt: skip
