"""Which files are opened as videos, which of their streams is shown, and how much is too much."""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from ipo_lightning.decoding.boxes import check_samples
from ipo_lightning.errors import InputError

FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "gif", "mpegts", "mpeg", "flv", "asf", "ogg",
           "ivf", "mxf", "nut")  # fmt: skip
"""FFmpeg's names. Others are refused: a playlist by the name of a video reads further files."""
LARGEST = 2**26
"""Pixels of a frame: 8192 x 8192. A GIF of 100 bytes may ask for more memory than there is."""
HEAD = 512
"""Bytes at the beginning of a file that tell what it is."""
CONVERT = "ffmpeg -i FILE -pix_fmt yuv420p NEW.mp4 converts what FFmpeg reads"
AV = int(av.__version__.partition(".")[0])
TOLERANT: dict[str, Any] = {} if AV >= 19 else {"metadata_errors": "replace"}
"""A title that is no UTF-8 is no reason to refuse a file; PyAV 19 needs no asking."""
PICTURE_BRANDS = {"avif", "heic", "heix", "mif1"}

KINDS = (
    (b"\x89PNG", "it is a PNG picture"),
    (b"\xff\xd8\xff", "it is a JPEG picture"),
    (b"BM", "it is a BMP picture"),
    (b"II*\0", "it is a TIFF picture"),
    (b"MM\0*", "it is a TIFF picture"),
    (b"ID3", "it is an MP3 file"),
    (b"PK\x03\x04", "it is a zip archive"),
    (b"\x1f\x8b", "it is a gzip archive"),
    (b"%PDF", "it is a PDF file"),
    (b"PAR1", "it is a parquet file"),
    (b"version https://git-lfs", "it is a Git LFS pointer; git lfs pull brings the video"),
)
"""What else lies under a video's name: how it begins, and what to say of it."""


class Opened(NamedTuple):
    """A file that is being read, and what of it is shown."""

    path: Path
    container: InputContainer
    stream: VideoStream
    moving: int
    """How many streams of the file are videos; a cover's picture is none."""


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """A video file for reading.

    Raises:
        InputError: it is not there, no regular file, no video, or damaged; also of whatever a
            decoder says while it is read.
    """
    _check_place(path)
    with unreadable_is_input_error(path):
        check_samples(path)
    with unreadable_is_input_error(path), _container(path) as container:
        if container.metadata.get("major_brand") in PICTURE_BRANDS:
            raise InputError(f"video {path}: cannot be decoded (it is a picture); {CONVERT}")
        stream, moving = _shown(container, path)
        stream.codec_context.options = {"max_pixels": str(LARGEST)}
        yield Opened(path, container, stream, moving)


def _container(path: Path) -> InputContainer:
    """A file as PyAV has it, by an absolute path: what stands before a colon is a protocol."""
    return av.open(
        os.path.abspath(path),
        options={"format_whitelist": ",".join(FORMATS), "max_pixels": str(LARGEST)},
        **TOLERANT,
    )


def _check_place(path: Path) -> None:
    """Refuse what no decoder is to look at: of a pipe or a device there may be no end."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the latter: a NUL in its name
        hint = "; a link leads there, but to no file" if os.path.islink(path) else ""
        raise InputError(f"video {path}: no such file{hint}") from None
    except OSError as error:
        raise InputError(f"video {path}: cannot be read ({error.strerror})") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"video {path}: it is a folder; give a video file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"video {path}: it is a pipe or a device; give a file")
    if not os.access(path, os.R_OK):
        raise InputError(f"video {path}: no permission to read it; chmod a+r gives it")
    if not status.st_size:
        raise InputError(f"video {path}: cannot be decoded (the file is empty); copy it again")


def _shown(container: InputContainer, path: Path) -> tuple[VideoStream, int]:
    """The stream that players show, and how many there are."""
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        raise InputError(
            f"video {path}: it has sound or pictures, but no video stream; give a file that shows "
            "the video, or leave it out"
        )
    best = container.streams.best("video")
    stream = next((s for s in moving if best is not None and s.index == best.index), moving[0])
    if stream.codec_context is None:
        raise InputError(f"video {path}: cannot be decoded (unknown codec); {CONVERT}")
    return stream, len(moving)


@contextmanager
def unreadable_is_input_error(path: Path) -> Iterator[None]:
    """Name the file in whatever a decoder says about it."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # decoders raise their own classes, decord's is not exported
        if isinstance(error, MemoryError) and not isinstance(error, av.FFmpegError):
            raise  # FFmpeg's own: a damaged header asks for more than there is
        reason = _kind(path) or _words(error)
        raise InputError(
            f"video {path}: cannot be decoded ({reason}); copy it again, or give another: {CONVERT}"
        ) from error


def _kind(path: Path) -> str:
    """What a file is, where its first bytes tell that it is no video; else empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return ""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "it is a WebP picture"
    found = next((kind for start, kind in KINDS if head.startswith(start)), "")
    if not found and head.isascii() and not re.search(rb"[^\s\x20-\x7e]", head):
        return "it is a text, such as a web page or a playlist"
    return found


def _words(error: Exception) -> str:
    """What a decoder says, without the path; of FFmpeg's errors its last word in the log, too."""
    if isinstance(error, av.FFmpegError):
        logged: Sequence[Any] = error.log or ("",)  # (level, what logged it, what it said)
        reason = ": ".join(part for part in (error.strerror, logged[-1]) if part)
    else:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return " ".join(reason.split())[:200]
