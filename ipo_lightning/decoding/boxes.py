"""How many samples an MP4 declares without spending a byte on each: FFmpeg makes room for all."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ipo_lightning.errors import InputError

MOST_SAMPLES = 2**23
"""Of a track whose samples are not listed one by one; FFmpeg takes 72 bytes for each."""
MOST_BOXES = 2**16
WITHIN = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
PER_SAMPLE = 0xF00
"""Flags of a ``trun`` that lists something of every sample."""


class Box(NamedTuple):
    """A part of an MP4."""

    kind: bytes
    start: int
    """Of its content, in bytes from the beginning of the file."""
    end: int


def check_samples(path: Path) -> None:
    """Refuse an MP4 of a few bytes that declares millions of samples.

    Sound without compression has as many, of which each takes a byte at least.

    Raises:
        InputError: it does.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        declared = sum(_declared(file, box) for box in _boxes(file, 0, size, [MOST_BOXES]))
    if declared > max(MOST_SAMPLES, size):
        raise InputError(
            f"video {path}: cannot be decoded (it declares {declared:,} frames in {size:,} bytes); "
            "copy it again"
        )


def _boxes(file: BinaryIO, start: int, end: int, left: list[int]) -> Iterator[Box]:
    """The boxes within a part of the file that hold no others, at most as many as are ``left``."""
    while start + 8 <= end and left[0] > 0:
        left[0] -= 1
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8).rjust(8, b"\0"))
            head = 16
        stop = end if length == 0 else min(start + max(length, head), end)
        if kind in WITHIN:
            yield from _boxes(file, start + head, stop, left)
        else:
            yield Box(kind, start + head, stop)
        start = stop


def _declared(file: BinaryIO, box: Box) -> int:
    """The samples that a box declares by their number alone."""
    if box.kind not in (b"stsz", b"trun") or box.end - box.start < 12:
        return 0
    file.seek(box.start)
    first, second, third = struct.unpack(">III", file.read(12))
    if box.kind == b"stsz":  # version and flags, size of all samples, number
        return third if second else 0
    return 0 if first & PER_SAMPLE else second  # version and flags, number
