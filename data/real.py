"""Captioned video files as real clips for the paper's lambda_2: found, cut to size, encoded once.

Frames are uint8 RGB. Nothing is loaded before `RealVideos.prepare`; what is wrong with the list of
clips is said when it is read, what is wrong with a clip when its turn comes.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ipo_lightning.decoding.differences import content_name
from ipo_lightning.draws.encoding import DAMAGED, Footage, LeftOut, RealData, encode_once
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.names import alike, ambiguity, spellings
from ipo_lightning.exchange.videos import Named, unpack
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Policy
from ipo_lightning.storage.parquet import Embedded
from ipo_lightning.storage.store import Store, fingerprint
from ipo_lightning.storage.tables import SUFFIXES, columns_of, rows_of
from ipo_lightning.storage.texts import NotUtf8, one_line, read_text
from ipo_lightning.video import read_frames, read_timeline

RECIPE = 1
"""Part of every clip's fingerprint: raise it when the same file gives other frames."""
VIDEOS = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")
TOO_SHORT = "too short"
TOO_SLOW = "too few frames a second"
ENOUGH = Fraction(99, 100)
"""Share of the policy's frame rate that a file must have: 23.976 passes for 24, 15 not for 16."""


class Captioned(NamedTuple):
    """A video file and what is seen in it."""

    video: Path
    caption: str


class Listed(NamedTuple):
    """A clip as its list has it: named, or held by the list itself."""

    video: Path | Embedded
    caption: str


class RealVideos:
    """Video files with captions, as a `RealSource`.

    Args:
        path: a folder, searched with all its subfolders, in which ``clip.txt`` lies beside
            ``clip.mp4`` and holds its caption; or a list, a clip a row: one of `SUFFIXES`. Hidden
            files and those of other endings are passed over in a folder, and refused in a list.
        video: the list's column with paths, absolute or relative to the list's folder, or, in a
            parquet file, with the videos themselves.
        caption: the list's column with captions. White space in a caption counts as one blank.

    Raises:
        InputError: no such path, no clips, a missing column, file or caption.
    """

    def __init__(self, path: str, *, video: str = "video", caption: str = "caption") -> None:
        self.path = Path(path).expanduser()
        if self.path.is_dir():
            self.clips = _of_folder(self.path)
        elif self.path.is_file():
            self.clips = _of_list(self.path, video, caption)
        else:
            raise InputError(setting="path", value=path, expected="there is no such folder or file")
        self._hashes: list[str] | None = None

    def inputs(self) -> Iterator[Path]:
        """The clips and, in a folder, their captions."""
        for clip in self.clips:
            if isinstance(clip.video, Path):
                yield clip.video
                if self.path.is_dir():
                    yield clip.video.with_suffix(".txt")

    def prepare(
        self, policy: Policy, store: Store, workers: Workers, device: torch.device
    ) -> RealData:
        """See `RealSource.prepare`; a file's contents are looked at once in a process."""
        clips = self._unpacked(store, workers)
        hashes = workers.agree(lambda: self._contents(clips, workers))
        footage = [footage_of(clip, file, policy) for file, clip in zip(hashes, clips, strict=True)]
        return encode_once(footage, policy, store, workers, device, f"data.real.path={self.path}")

    def _unpacked(self, store: Store, workers: Workers) -> list[Captioned]:
        """The clips as files; those that the list holds are put into the store."""
        held = [clip.video for clip in self.clips if isinstance(clip.video, Embedded)]
        if held:
            if workers.leads:
                unpack(self.path, (Named("", one.sha256) for one in held), store)
            workers.barrier()
        return [
            Captioned(store.path("videos", video.sha256, ".mp4"), caption)
            if isinstance(video, Embedded) else Captioned(video, caption)
            for video, caption in self.clips
        ]  # fmt: skip

    def _contents(self, clips: Sequence[Captioned], workers: Workers) -> list[str]:
        """`content_name` of each file."""
        if self._hashes is None:
            files = [clip.video for clip in clips]
            self._hashes = hashes_of(files, "real videos: hashes", workers)
        return self._hashes


def hashes_of(files: Sequence[Path], label: str, workers: Workers) -> list[str]:
    """`content_name` of each file, with a progress bar on the leading rank."""
    bar = tqdm(files, label, unit=" files", disable=not workers.shows)
    return [_content(file) for file in bar]


def footage_of(clip: Captioned, content: str, policy: Policy) -> Footage:
    """A video file as a policy trains on it: cut to its size and rate when it is read.

    Args:
        content: the file's `content_name`.
    """
    size, fps = policy.size, float(policy.fps)
    return Footage(
        fingerprint({"recipe": RECIPE, "file": content, "size": list(size), "fps": fps}),
        clip.caption,
        str(clip.video),
        partial(read_clip, clip.video, size, fps),
    )


def _content(path: Path) -> str:
    try:
        return content_name(path)
    except OSError as error:
        raise InputError(f"real video {path} cannot be read: {error.strerror}") from error


# --- Lists ---------------------------------------------------------------------------------------


def _of_folder(folder: Path) -> list[Listed]:
    """The clips of a folder, by path."""
    clips = sorted(
        (file for file in _files(folder) if file.suffix.lower() in VIDEOS),
        key=lambda file: file.relative_to(folder).parts,
    )
    if not clips:
        lacks = f"no {', '.join(VIDEOS)} in this folder"
        raise InputError(setting="path", value=folder, expected=lacks)
    bare = [clip for clip in clips if not clip.with_suffix(".txt").is_file()]
    if bare:
        raise InputError(
            f"{bare[0]}: no caption; write it to {bare[0].with_suffix('.txt').name} beside it "
            f"({len(bare)} of {len(clips)} clips of {folder} have none)"
        )
    return [Listed(clip, _caption_file(clip.with_suffix(".txt"))) for clip in clips]


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; linked folders are followed, each once."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _caption_file(path: Path) -> str:
    try:
        return _one_line(read_text(path), str(path))
    except NotUtf8 as error:
        raise InputError(f"{path} is not UTF-8 text: {error.detail}") from error


def _of_list(path: Path, video: str, caption: str) -> list[Listed]:
    """The clips of a list, in its order."""
    if path.suffix.lower() not in SUFFIXES:
        kinds = f"give a folder, or a list: {', '.join(SUFFIXES)}"
        raise InputError(setting="path", value=path, expected=kinds)
    clips = []
    for place, row in rows_of(path):
        for key, setting in ((video, "video"), (caption, "caption")):
            if key not in row:
                raise InputError(f"{place}: no column {key!r} among {columns_of(row)}; name yours "
                                 f"with data.real.{setting}=COLUMN")  # fmt: skip
        clips.append(
            Listed(
                _listed(path.parent, row[video], video, place),
                _one_line(row[caption], f"{place}: {caption!r}"),
            )
        )
    if not clips:
        raise InputError(setting="path", value=path, expected="the list has no rows")
    return clips


def _listed(folder: Path, cell: Any, column: str, place: str) -> Path | Embedded:
    """The video of a row: the file that its cell names, whoever wrote it, or the one it holds."""
    if isinstance(cell, Embedded):
        return cell
    name = _text(cell, f"{place}: {column!r}").strip()
    known = [folder / one for one in (cell, *spellings(name))]
    found = [file for file in known if os.path.isfile(file)][:1]  # of names too long: false
    found = found or alike(folder, spellings(name))
    if len(found) > 1:
        raise InputError(f"{place}: {ambiguity(name, found)}")
    file = found[0] if found else known[-1]
    if file.suffix.lower() not in VIDEOS:
        raise InputError(f"{place}: {file.name[:200]!r} is none of {', '.join(VIDEOS)}")
    if not os.path.isfile(file):
        raise InputError(f"{place}: there is no file {str(folder / name)[:400]}")
    return file


def _text(cell: Any, place: str) -> str:
    if not isinstance(cell, str) or not one_line(cell):
        raise InputError(f"{place} must be a text, got {repr(cell)[:60]}")
    return cell


def _one_line(cell: Any, place: str) -> str:
    """A text as one line, see `one_line`."""
    return one_line(_text(cell, place))


# --- Clips ---------------------------------------------------------------------------------------


def read_clip(path: Path, size: tuple[int, int, int], fps: float) -> Tensor | LeftOut:
    """The middle of a video at the policy's size and rate, uint8 (T, H, W, 3), or why not.

    Args:
        size: frames, height, width.
        fps: frames a second of the result.
    """
    count, height, width = size
    try:
        timeline = read_timeline(path)
        chosen = choose_frames(timeline.times, count, fps)
        if isinstance(chosen, LeftOut):
            return chosen
        frames = [fit(frame, height, width) for frame in read_frames(path, timeline, chosen)]
    except InputError as error:
        return LeftOut(DAMAGED, str(error).removeprefix(f"video {path}: "))
    return torch.stack(frames)


def choose_frames(times: Sequence[Fraction], count: int, fps: float) -> list[int] | LeftOut:
    """Which frames of a video show ``count`` moments, 1/fps apart, from its middle.

    The first moment is that of a frame, the last one at or before the middle of what room there is;
    each following moment takes the nearest frame, the earlier one of two. A frame stands for half a
    frame's time around it, so 97 frames at 16 fps are the least for 49 at 8 fps.

    Args:
        times: when each frame appears, in seconds, ascending; at least one.
    """
    step = 1 / Fraction(fps).limit_denominator(1001)
    length, span = times[-1] - times[0], (count - 1) * step
    intervals = len(times) - 1
    if span > length + length / (2 * max(intervals, 1)):
        return LeftOut(TOO_SHORT)
    if intervals * step < ENOUGH * length:
        return LeftOut(TOO_SLOW)
    middle = times[0] + max(length - span, Fraction(0)) / 2
    start = times[bisect_right(times, middle) - 1]
    return [_nearest(times, start + number * step) for number in range(count)]


def _nearest(times: Sequence[Fraction], moment: Fraction) -> int:
    after = min(bisect_left(times, moment), len(times) - 1)
    before = max(after - 1, 0)
    return before if moment - times[before] <= times[after] - moment else after


def fit(frame: Tensor, height: int, width: int) -> Tensor:
    """Scale a frame, uint8 (H, W, 3), until it just covers the size, and take the centre.

    Bicubic and antialiased; a frame of the right size keeps its values. Pixels count as square.
    """
    old_height, old_width = frame.shape[:2]
    scale = max(height / old_height, width / old_width)
    tall, wide = max(height, round(old_height * scale)), max(width, round(old_width * scale))
    if (tall, wide) != (old_height, old_width):
        pixels = F.interpolate(
            frame.permute(2, 0, 1)[None].float(), (tall, wide), mode="bicubic", antialias=True
        )
        frame = pixels[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0)
    top, left = (tall - height) // 2, (wide - width) // 2
    return frame[top : top + height, left : left + width]
