"""Video files with the properties that files of others have, each a few kB."""

import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


def gradient(count: int = 12, height: int = 48, width: int = 64) -> Pixels:
    """Frames that differ from each other, and each from itself turned or mirrored."""
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    noise = np.random.default_rng(0).integers(-8, 8, (count, height, width, 3))
    smooth = np.stack([3 * x + 8 * t, 4 * y, x + y + 5 * t], -1) % 256
    return (smooth + noise).clip(0, 255).astype(np.uint8)


def encode(
    path: Path,
    *,
    frames: Pixels | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    dropped: int = 0,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    **context: Any,
) -> Path:
    """Write a file of 8 frames a second.

    Args:
        times: of the frames, in milliseconds, in place of an even rate.
        dropped: how many packets at the beginning are left out.
        options: of the encoder. container: of the container. context: attributes of the encoder.
    """
    frames = gradient() if frames is None else frames
    options = dict(options or {})
    if codec == "libx264":  # equal frames give equal bytes, see `encode_video`
        own = options.pop("x264-params", "")
        options |= {"threads": "1", "x264-params": f"mbtree=0:{own}".rstrip(":")}
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=8 if times is None else 1000, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.metadata.update(metadata or {})
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        packets = _packets(stream, frames, times)
        for packet in list(packets)[dropped:]:
            file.mux(packet)
    return path


def _packets(stream: Any, frames: Pixels, times: Sequence[int] | None) -> Iterator[av.Packet]:
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        if times is not None:
            frame.pts, frame.time_base = times[number], Fraction(1, 1000)
        yield from stream.encode(frame)
    yield from stream.encode()


def two_streams(path: Path, picture: bool = False) -> Path:
    """The first stream is 64 x 48, the other 96 x 64; with ``picture``: a cover before a video."""
    with av.open(str(path), "w") as file:
        streams = []
        for place, (width, height) in enumerate(((64, 48), (96, 64))):
            still = picture and place == 0
            stream: Any = file.add_stream("mjpeg" if still else "libx264", rate=8)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if still else "yuv420p"
            streams.append(stream)
        if picture:
            streams[0].disposition = av.stream.Disposition.attached_pic
        for stream in streams:
            frames = gradient(1 if stream.name == "mjpeg" else 12, stream.height, stream.width)
            for packet in _packets(stream, frames, None):
                file.mux(packet)
    return path


def sound(path: Path) -> Path:
    """A file with a tenth of a second of silence and no picture."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("aac", rate=8000)
        stream.layout = "mono"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        for packet in (*stream.encode(silence), *stream.encode()):
            file.mux(packet)
    return path


def turned(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Give an mp4 a display matrix, as telephones write them."""
    a, b, c, d = (round(65536 * value) for value in matrix)
    content = path.read_bytes()
    place = content.index(b"tkhd") + 44
    new = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + new + content[place + 36 :])
    return path


def edited(path: Path, *entries: tuple[int, int]) -> Path:
    """Give an mp4 an edit list: (duration in milliseconds, first frame) each.

    The times of a file of `encode` begin two frames late where it has B-frames.
    """
    content = path.read_bytes()
    scale = struct.unpack(">I", content[(at := content.index(b"mdhd") + 16) : at + 4])[0]
    edits = b"".join(
        struct.pack(">IiHH", duration, (first + 2) * scale // 8, 1, 0)
        for duration, first in entries
    )
    path.write_bytes(_boxes(content, _box(b"edts", _box(b"elst", struct.pack(
        ">II", 0, len(entries)) + edits))))  # fmt: skip
    return path


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def _boxes(content: bytes, edits: bytes) -> bytes:
    """The same boxes with these edits behind each track's header."""
    done, place = b"", 0
    while place < len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        inner = content[place + 8 : place + size]
        if kind != b"edts":
            done += _box(kind, _boxes(inner, edits) if kind in (b"moov", b"trak") else inner)
        done += edits if kind == b"tkhd" else b""
        place += size
    return done


def joined(path: Path, height: int, width: int) -> Path:
    """Two transport streams in one file, the second one of this size; its times begin anew."""
    first = encode(path.with_name("first.ts")).read_bytes()
    other = encode(path.with_name("other.ts"), frames=gradient(12, height, width)).read_bytes()
    path.write_bytes(first + other)
    return path


def still_frames(path: Path, size: int, count: int) -> Path:
    """A GIF of black frames that takes a few bytes a frame, whatever their size."""
    frame = b"\x21\xf9\x04\x04\x0a\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, size, size, 0)
    head = b"GIF89a" + struct.pack("<HHBBB", size, size, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    path.write_bytes(head + (frame + b"\x02\x02\x44\x01\0") * count + b"\x3b")
    return path
