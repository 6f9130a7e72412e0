"""Every frame of a file that players show, checked, with the time at which it appears."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from av import VideoFrame
from numpy.typing import NDArray

from ipo_lightning.decoding.opening import LARGEST, Opened
from ipo_lightning.errors import InputError

MOST_DECODED = 2**37
"""Pixels that are decoded of a file: 18 minutes of 1920 x 1080 at 60 frames a second."""
WORTH_THREADS = 2**16
"""Pixels of a frame that are converted to RGB sooner than a second thread is woken."""
MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}
"""Of RGB, SD, HD and UHD, by H.273: those that FFmpeg makes RGB of."""
ANEW = "ffmpeg -i FILE NEW.mp4 gives it new ones"
UNSTAMPED = ("avi",)
"""Formats without time stamps: FFmpeg guesses them, of B-frames in the wrong order."""


def frames_of(video: Opened) -> Iterator[VideoFrame]:
    """The frames, in the order in which they are shown.

    Threads that decode a frame each would let the end of a truncated file pass for its end.

    Raises:
        InputError: a frame is damaged or too large, the size changes, there is no frame, or there
            are too many.
    """
    size: tuple[int, int] | None = None
    decoded = 0
    for number, frame in enumerate(video.container.decode(video.stream)):
        size = size or (frame.width, frame.height)
        decoded += frame.width * frame.height
        fault = _fault(frame, size, decoded)
        if fault:
            raise InputError(f"video {video.path}: frame {number} {fault}")
        yield frame
    if size is None:
        raise InputError(f"video {video.path}: it has no frames")


def _fault(frame: VideoFrame, size: tuple[int, int], decoded: int) -> str:
    """What is wrong with a frame; empty: nothing."""
    if frame.is_corrupt:
        return "is damaged; copy the file again"
    if (frame.width, frame.height) != size:
        return (
            f"is {frame.width} x {frame.height}, the first one {size[0]} x {size[1]}; bring all to "
            "one size (ffmpeg -i FILE NEW.mp4 does)"
        )
    if frame.width * frame.height > LARGEST:
        return f"is {frame.width} x {frame.height}; scale the video down"
    if frame.colorspace not in MATRICES:
        return (
            f"has colours that are not read (matrix {frame.colorspace} of H.273); convert it to "
            "BT.709 with a program that knows them"
        )
    if decoded > MOST_DECODED:
        return "is one of too many to decode; cut the video into clips"
    return ""


def pixels_of(frame: VideoFrame) -> NDArray[np.uint8]:
    """A frame as it is stored, uint8 RGB (H, W, 3)."""
    threads = 1 if frame.width * frame.height < WORTH_THREADS else 0
    return frame.to_ndarray(format="rgb24", threads=threads).view(np.uint8)


def time_of(frame: VideoFrame) -> Fraction | None:
    """When a frame appears, in seconds, where the file tells."""
    if frame.pts is None or frame.time_base is None:
        return None
    return frame.pts * frame.time_base


def settled(times: Sequence[Fraction | None], video: Opened) -> list[Fraction]:
    """When the frames appear, in seconds, ascending; guessed ones of an AVI are put in order.

    Raises:
        InputError: a time is missing, or they run backwards.
    """
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        raise InputError(f"video {video.path}: frame {list(times).index(None)} has no time; {ANEW}")
    ordered = sorted(known)
    if known != ordered and video.container.format.name not in UNSTAMPED:
        raise InputError(f"video {video.path}: the times of its frames run backwards; {ANEW}")
    return ordered


def fps_of(times: Sequence[Fraction], video: Opened) -> float:
    """Frames a second: the header's where the frames keep to it, else their mean rate.

    They keep to it where none is a quarter of a frame from its place. The header of a file with a
    variable frame rate may have any number.

    Args:
        times: see `settled`; at least one.
    """
    header = video.stream.average_rate
    span = times[-1] - times[0]
    if header and all(
        abs(time - times[0] - number / header) < Fraction(1, 4) / header
        for number, time in enumerate(times)
    ):
        return float(header)
    return float((len(times) - 1) / span if span else header or 1)


def colours_of(frame: VideoFrame) -> tuple[Any, ...]:
    """What the conversion of a frame to RGB goes by."""
    return frame.format.name, frame.colorspace, frame.color_range, frame.interlaced_frame
