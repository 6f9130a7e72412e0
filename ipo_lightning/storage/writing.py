"""What keeps a file from being written, above all a full disk, in a sentence with what to do."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipo_lightning.errors import InputError

FULL = {
    errno.ENOSPC: "no space left",
    errno.EDQUOT: "your quota is used up",
    errno.EFBIG: "larger than a file may be there",
}
CLOSED = {
    errno.EROFS: "it is read-only",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EIO: "the disk reports an error",
    errno.ENOTDIR: "a file lies where a folder should be",
    errno.EISDIR: "a folder lies where a file should be; remove it",
    errno.ENOTEMPTY: "a folder lies where a file should be; remove it",
    errno.EEXIST: "a file lies where a folder should be; remove it",
    errno.ELOOP: "a link that leads to itself",
}
WRITERS = ("No space left on device", "Disk quota exceeded", "PytorchStreamWriter failed",
           "inline_container.cc", "File too large", "iostream error")  # fmt: skip
"""In messages of libraries that raise no OSError where a file cannot be written."""


class CannotWrite(InputError):
    """A file cannot be written where it belongs."""


@contextmanager
def room_to_write(path: Path) -> Iterator[None]:
    """Say of a disk that is full, or closed to us, which it is and what to do.

    Raises:
        CannotWrite: names the file, the cause, and for a full disk how much is free.
    """
    try:
        yield
    except Exception as error:  # safetensors and torch have errors of their own
        if isinstance(error, InputError) or (said := cause(error, path)) is None:
            raise
        raise CannotWrite(said) from error


def cause(error: BaseException, path: Path) -> str | None:
    """Why a file could not be written, as a sentence; None where the error is of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ENAMETOOLONG:
        return f"{str(path)[:80]}...: a longer name than the disk takes; give another"
    if number in CLOSED:
        return f"{path} cannot be written: {CLOSED[number]}; the same command goes on then"
    if number in FULL:
        return _no_room(path, FULL[number])
    if number is None and any(words in str(error) for words in WRITERS):
        return _no_room(path, FULL[errno.ENOSPC])
    return None


def _no_room(path: Path, why: str) -> str:
    disk = disk_of(path)
    free = shutil.disk_usage(disk).free / 2**20
    return (
        f"{path} cannot be written: {why} (disk {disk}, {free:,.1f} MiB free); make room, and the "
        "same command goes on"
    )


def disk_of(path: Path) -> Path:
    """Where the disk is mounted that a file is on, or would be."""
    place = Path(os.path.realpath(path))
    while not place.exists() or not os.path.ismount(place):
        place = place.parent
    return place
