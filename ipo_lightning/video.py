"""Videos as files and as pictures.

Frames are uint8 RGB (T, H, W, 3) on the CPU throughout. PyAV reads and writes; where single frames
of a file are wanted, decord picks them if it is installed and gives the same values.
"""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import av
import numpy as np
import torch
from av.video.stream import VideoStream
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from ipo_lightning.decoding.differences import differences
from ipo_lightning.decoding.frames import (
    colours_of,
    fps_of,
    frames_of,
    pixels_of,
    settled,
    time_of,
)
from ipo_lightning.decoding.opening import opened, unreadable_is_input_error
from ipo_lightning.decoding.orientation import AS_STORED, Orientation, orientation_of
from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import write_atomically

try:  # decord has wheels for x86-64 Linux only
    import decord
except ImportError:
    decord = None

MIN_FRAME_HEIGHT = 96  # px; a smaller frame is hard to judge by eye
MAX_FRAMES_A_ROW = 9  # of a contact sheet
MOST_HELD = 2**32
"""Bytes of a video in memory: 23 s of 1920 x 1080 at 30 frames a second."""


class Clip(NamedTuple):
    """One video in memory."""

    frames: Tensor  # uint8 (T, H, W, 3), RGB
    fps: float  # frames a second


class Timeline(NamedTuple):
    """When the frames of a file are shown, and how they are to be turned."""

    times: list[Fraction]  # seconds at which each frame appears, ascending
    orientation: Orientation  # what puts a frame upright
    alike: bool  # whether decord is there and gives the values of PyAV


# --- Files ---------------------------------------------------------------------------------------


def write_video(path: str | Path, clip: Clip, lossless: bool = False) -> None:
    """Write ``clip`` as mp4, atomically: ``path`` holds a whole video or what it held before.

    See :func:`encode_video` for ``lossless``.
    """
    write_atomically(Path(path), encode_video(clip, lossless))


def encode_video(clip: Clip, lossless: bool = False, crf: int = 18) -> bytes:
    """The bytes of ``clip`` as mp4; equal clips give equal bytes (one machine's libraries).

    ``lossless=True`` keeps every RGB value (H.264 High 4:4:4, which browsers may refuse): what a
    critic or a gauge reads. ``lossless=False`` is for people: yuv420p at ``crf``, which plays
    everywhere but needs even sizes, so odd ones gain a row or column by repeating the edge.
    """
    frames = check_frames(clip.frames)
    codec, pixel_format = ("libx264rgb", "rgb24") if lossless else ("libx264", "yuv420p")
    if not lossless:
        frames = pad_to_even(frames)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # One thread, since x264 slices its work by thread and the bytes would follow the machine;
        # no macroblock tree, since its AVX-512 kernel makes about 1 encoding in 50 differ.
        options = {
            "crf": "0" if lossless else str(crf),
            "preset": "medium",
            "threads": "1",
            "x264-params": "mbtree=0",
        }
        rate = Fraction(clip.fps).limit_denominator(1001)
        stream = cast(VideoStream, container.add_stream(codec, rate=rate, options=options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        stream.codec_context.thread_count = 1
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def pad_to_even(frames: Tensor) -> Tensor:
    """Repeat the last row or column of (T, H, W, 3) where H or W is odd."""
    bottom, right = frames.shape[1] % 2, frames.shape[2] % 2
    if not bottom and not right:
        return frames
    channels_first = frames.permute(0, 3, 1, 2).float()  # replication has no uint8 kernel
    padded = F.pad(channels_first, (0, right, 0, bottom), mode="replicate")
    return padded.permute(0, 2, 3, 1).to(torch.uint8).contiguous()


class VideoFile:
    """A video file that is read where it is needed: one that is pickled takes its bytes along."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Clip:
        """See `read_video`."""
        return read_video(self.path)

    def __reduce__(self) -> Any:
        return VideoBytes, (self.path.name, self.path.read_bytes())


class VideoBytes(NamedTuple):
    """The content of a video file of another machine, and its name."""

    name: str
    content: bytes

    def read(self) -> Clip:
        """See `read_video`."""
        with TemporaryDirectory() as folder:
            path = Path(folder, self.name)
            path.write_bytes(self.content)
            return read_video(path)


def read_video(path: str | Path) -> Clip:
    """Read every frame of a video file, upright.

    Raises:
        InputError: it cannot be read, see `ipo_lightning.decoding`, or needs too much memory.
    """
    path = Path(path)
    frames: list[np.ndarray] = []
    times: list[Fraction | None] = []
    with opened(path) as video:
        held, orientation = 0, AS_STORED
        for frame in frames_of(video):
            if not frames:
                orientation = orientation_of(frame, video.stream.metadata, path)
            held += 3 * frame.width * frame.height
            if held > MOST_HELD:
                raise InputError(
                    f"video {path}: its frames take more than {MOST_HELD // 2**30} GiB; cut it "
                    "into clips (ffmpeg -ss START -t SECONDS -i FILE NEW.mp4) or scale it down"
                )
            frames.append(orientation.upright(pixels_of(frame)))
            times.append(time_of(frame))
        fps = fps_of(settled(times, video), video)
    return Clip(check_frames(torch.from_numpy(np.stack(frames))), fps)


def read_timeline(path: Path) -> Timeline:
    """Decode a file once, keeping no pixels: its frames' exact times, or what is wrong with it.

    Packets would tell the times sooner, but not which of them are shown, nor that all are sound.

    Raises:
        InputError: see `read_video`.
    """
    with opened(path) as video:
        times: list[Fraction | None] = []
        colours = set()
        for frame in frames_of(video):
            if not times:
                orientation = orientation_of(frame, video.stream.metadata, path)
            times.append(time_of(frame))
            colours.add(colours_of(frame))
        known = settled(times, video)
    alike = len(colours) == 1 and decord is not None and not differences(path)
    return Timeline(known, orientation, alike)


def read_frames(path: Path, timeline: Timeline, indices: Sequence[int]) -> Iterator[Tensor]:
    """Chosen frames of a file, upright, uint8 (H, W, 3), one at a time.

    By decord where it is installed and gives the values of PyAV, else by PyAV.

    Args:
        timeline: the file's own, see `read_timeline`.
        indices: places in the timeline, ascending; a place may come again.
    """
    done = 0
    if decord is not None and timeline.alike:
        try:
            for frame in frames_with_decord(path, timeline, indices):
                yield frame
                done += 1
            return
        except InputError:  # it refuses some sound files, such as frames 8, 16 or 24 px wide
            pass  # PyAV has read the file before, see `read_timeline`: it goes on
    yield from frames_with_pyav(path, timeline, indices[done:])


def frames_with_decord(path: Path, timeline: Timeline, indices: Sequence[int]) -> Iterator[Tensor]:
    """See :func:`read_frames`."""
    with unreadable_is_input_error(path):
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != len(timeline.times):
            raise InputError(f"video {path}: decord sees other frames than PyAV")
        for index in indices:
            yield check_frames(torch.from_numpy(reader[index].asnumpy())[None])[0]


def frames_with_pyav(path: Path, timeline: Timeline, indices: Sequence[int]) -> Iterator[Tensor]:
    """See :func:`read_frames`."""
    wanted = Counter(indices)
    with opened(path) as video:
        for number, frame in enumerate(frames_of(video)):
            if number in wanted:
                upright = timeline.orientation.upright(pixels_of(frame))
                yield from [torch.from_numpy(upright.copy())] * wanted.pop(number)
            if not wanted:
                return
        raise InputError(f"video {path}: it ends before frame {max(wanted)}")


def check_frames(frames: Tensor) -> Tensor:
    """Refuse what is not uint8 (T, H, W, 3) with T >= 1."""
    ok = frames.dtype == torch.uint8 and frames.ndim == 4 and frames.shape[-1] == 3
    if not ok or 0 in frames.shape:
        shape = tuple(frames.shape)
        raise ValueError(f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {shape}")
    return frames.detach().cpu().contiguous()


# --- Pictures ------------------------------------------------------------------------------------


def spread(num_frames: int, at_most: int) -> list[int]:
    """Indices of at most ``at_most`` frames, evenly spaced, first and last among them."""
    count = min(num_frames, at_most)
    return [round(i * (num_frames - 1) / max(count - 1, 1)) for i in range(count)]


def fitting_scale(height: int, target: int = MIN_FRAME_HEIGHT) -> int:
    """The smallest whole factor that makes a frame at least ``target`` px high."""
    return max(1, -(-target // height))


def enlarge(frame: Tensor, scale: int) -> Image.Image:
    """One frame (H, W, 3) as a picture, each pixel a square of ``scale`` px."""
    picture = Image.fromarray(frame.detach().cpu().contiguous().numpy())
    size = (picture.width * scale, picture.height * scale)
    return picture.resize(size, Image.Resampling.NEAREST)


def contact_sheet(
    rows: Sequence[Tensor], labels: Sequence[str] | None = None, scale: int | None = None
) -> Image.Image:
    """One video a row, time from left to right, at most nine frames each.

    ``rows``: uint8 (T, H, W, 3), sizes may differ. ``labels``: a caption above each row.
    ``scale``: whole enlargement factor; by default each frame becomes at least 96 px high.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one video")
    captions = [""] * len(rows) if labels is None else list(labels)
    strips = [strip(check_frames(r), c, scale) for r, c in zip(rows, captions, strict=True)]
    gap = 8
    width = max(s.width for s in strips) + 2 * gap
    height = sum(s.height + gap for s in strips) + gap
    sheet = Image.new("RGB", (width, height), "white")
    top = gap
    for row in strips:
        sheet.paste(row, (gap, top))
        top += row.height + gap
    return sheet


def strip(frames: Tensor, caption: str, scale: int | None) -> Image.Image:
    """One row of a contact sheet: the caption, then the frames."""
    factor = scale or fitting_scale(frames.shape[1])
    tiles = [enlarge(frames[i], factor) for i in spread(len(frames), MAX_FRAMES_A_ROW)]
    gap, text_height = 4, 20 if caption else 0
    step = tiles[0].width + gap
    picture = Image.new("RGB", (len(tiles) * step - gap, tiles[0].height + text_height), "white")
    if caption:
        draw_caption(picture, caption)
    for i, tile in enumerate(tiles):
        picture.paste(tile, (i * step, text_height))
    return picture


def draw_caption(picture: Image.Image, caption: str) -> None:
    """Write ``caption`` at the top, cut to the picture's width."""
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    text = " ".join(caption.split())
    if draw.textlength(text, font=font) > picture.width:
        while text and draw.textlength(text + "...", font=font) > picture.width:
            text = text[:-1]
        text += "..."
    draw.text((0, 1), text, fill="#222222", font=font)


def animation(frames: Tensor, fps: float, scale: int | None = None) -> bytes:
    """A looping WebP of (T, H, W, 3) for web pages; exact below 96 px, where blur would show."""
    frames = check_frames(frames)
    factor = scale or fitting_scale(frames.shape[1])
    return encode_loop(
        frames,
        fps,
        factor,
        "WEBP",
        lossless=frames.shape[1] < MIN_FRAME_HEIGHT,
        quality=80,
        method=4,
    )


def gif(frames: Tensor, fps: float, scale: int | None = None) -> bytes:
    """A looping GIF of (T, H, W, 3), for TensorBoard."""
    frames = check_frames(frames)
    factor = scale or fitting_scale(frames.shape[1])
    return encode_loop(frames, fps, factor, "GIF", optimize=False, disposal=1)


def encode_loop(frames: Tensor, fps: float, scale: int, kind: str, **options: object) -> bytes:
    """Frames as an endlessly looping image of Pillow's format ``kind``."""
    pictures = [enlarge(frame, scale) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        kind,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        **options,
    )
    return buffer.getvalue()
