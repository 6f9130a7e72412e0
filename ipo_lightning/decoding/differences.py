"""What of a file readers disagree about: decord and PyAV, or this reader and an earlier one.

Found by encoding files with each property and comparing every value; see
tests/decoding/test_differences.py.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from av import VideoFrame

from ipo_lightning.decoding.frames import fps_of, settled
from ipo_lightning.decoding.opening import Opened, opened
from ipo_lightning.decoding.orientation import AS_STORED, orientation_of
from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import file_sha256

READER = 2
"""Part of the names of files that readers disagree about: raise it when they are read otherwise."""
CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")
CODECS = {"h264", "hevc", "mpeg4", "mpeg2video", "vp8", "vp9", "mjpeg"}
ANY_HEIGHT = {"yuv444p", "yuvj444p", "gbrp"}
EVEN_HEIGHT = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p"}
"""Pixel formats that decord converts to the values of PyAV; the latter not at odd heights."""
PYAV_ALONE = {"gif", "av1"}
"""Codecs that decord has never read: PyAV has read them in all versions."""


def content_name(path: Path) -> str:
    """The sha256 (hex) of a file; with this reader's version where an earlier one read it
    otherwise, so that nothing that was made of what that one saw is taken for it.

    Raises:
        OSError: it cannot be read.
    """
    name = file_sha256(path)
    try:
        return f"{name}-reader{READER}" if differences(path) else name
    except InputError:
        return name  # nothing is made of a damaged file


def sha256_of(name: str) -> str:
    """The sha256 (hex) in a `content_name`."""
    return name.partition("-")[0]


def differences(path: Path) -> list[str]:
    """The properties of a file that readers disagree about; empty for most files.

    Its header and the times of its packets are read, and one frame is decoded.

    Raises:
        InputError: it cannot be read.
    """
    with opened(path) as video:
        discarded = 0
        keys: list[bool] = []
        times: list[Fraction | None] = []
        first: VideoFrame | None = None
        for packet in video.container.demux(video.stream):
            if first is None:
                first = next(iter(packet.decode()), None)
            if packet.size:
                discarded += packet.is_discard
                keys.append(packet.is_keyframe)
                times.append(None if packet.pts is None else packet.pts * packet.time_base)
        if first is None:
            raise InputError(f"video {path}: it has no frames")
        found = dict(_of_frame(video, first))
        found["several video streams"] = video.moving > 1
        found["an edit list that cuts"] = discarded > 0
        found["no key frame at its beginning"] = not keys[0]
        found["a frame rate other than its header's"] = not _keeps_pace(times, video)
        return [name for name, is_so in found.items() if is_so]


def _of_frame(video: Opened, frame: VideoFrame) -> Iterator[tuple[str, bool]]:
    """What its first frame tells of a file."""
    codec = video.stream.codec_context.codec.canonical_name
    turned = orientation_of(frame, video.stream.metadata, video.path) != AS_STORED
    yield "a rotation or mirroring", turned
    if codec in PYAV_ALONE:
        return
    pixels = frame.format.name
    yield "its container", video.container.format.name not in CONTAINERS
    yield "its codec", codec not in CODECS
    yield "its pixel format", pixels not in ANY_HEIGHT | EVEN_HEIGHT
    yield "an odd height", pixels in EVEN_HEIGHT and frame.height % 2 == 1
    yield "interlacing", bool(frame.interlaced_frame)


def _keeps_pace(times: list[Fraction | None], video: Opened) -> bool:
    """Whether a file's rate is its header's; those without times of their own have no other."""
    known = sorted(time for time in times if time is not None)
    if len(known) < len(times):
        return True
    rate = video.stream.average_rate
    return rate is not None and fps_of(settled(known, video), video) == float(rate)
