"""Evaluation videos as browsers play them, within what a page may weigh."""

import base64
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ipo_lightning.errors import InputError
from ipo_lightning.report.videos import thumbnail
from ipo_lightning.video import MIN_FRAME_HEIGHT, Clip, encode_video, read_video, spread

ROOM = 15_000_000
"""Bytes of all clips of a page: 20 MB in base64, so that a page stays below 25 MB."""
SAMPLE = 8  # clips from which the size of all is estimated


class Detail(NamedTuple):
    """How much of an evaluation's videos a page holds."""

    height: int = 192
    """Most px of a clip's height."""
    frames: int = 25
    """Most frames of a clip; it keeps its duration."""
    videos: int | None = None
    """Videos a prompt; None: all."""
    rounds: int | None = None
    """Rounds, the base among them; None: all."""

    def words(self) -> str:
        """What is left out, as a sentence; "" where nothing is."""
        less = [f"{self.videos} video a prompt"] if self.videos else []
        less += [f"{self.rounds} rounds at most"] if self.rounds else []
        less += (
            [f"{self.height} px, {self.frames} frames"] if self.height < DETAILS[0].height else []
        )
        return f"To keep the page small: {', '.join(less)}." if less else ""


DETAILS = (
    Detail(),
    Detail(videos=1),
    Detail(128, 17, videos=1),
    Detail(128, 17, videos=1, rounds=4),
    Detail(96, 9, videos=1, rounds=4),
    Detail(96, 9, videos=1, rounds=3),
)
"""From the most to the least."""


class Clips(NamedTuple):
    """The clips of a page."""

    content: dict[str, str]
    """Name of a video -> an mp4 in base64."""
    seconds: float
    """Duration of the longest."""
    small: bool
    """Whether their pixels are to be shown sharp."""
    left_out: int
    """Videos that were found and for which there was no room."""


def embedded(
    choose: Callable[[Detail], Sequence[str]], find: Callable[[str], Path], room: int = ROOM
) -> tuple[Detail, Clips]:
    """The clips of a page, with as much detail as there is room for.

    Args:
        choose: names of the videos, at a detail. find: the file of a video, by its name.
    """
    for detail in DETAILS[:-1]:
        names = choose(detail)
        if fits(names, detail, find, room):
            found = encoded(names, detail, find, room)
            if not found.left_out:
                return detail, found
    return DETAILS[-1], encoded(choose(DETAILS[-1]), DETAILS[-1], find, room)


def fits(names: Sequence[str], detail: Detail, find: Callable[[str], Path], room: int) -> bool:
    """Whether all clips fit, by the mean size of some."""
    some = [names[i] for i in spread(len(names), SAMPLE)] if len(names) > SAMPLE else []
    sizes = [len(clip[0]) for name in some if (clip := clip_of(find(name), detail))]
    return not sizes or sum(sizes) / len(sizes) * len(names) <= room


def encoded(names: Sequence[str], detail: Detail, find: Callable[[str], Path], room: int) -> Clips:
    """The clips that are found and for which there is room, in this order."""
    content: dict[str, str] = {}
    seconds, small, left_out = 0.0, False, 0
    for name in dict.fromkeys(names):
        clip = clip_of(find(name), detail)
        if clip is None:
            continue
        if len(clip[0]) > room:
            left_out += 1
            continue
        room -= len(clip[0])
        content[name] = base64.b64encode(clip[0]).decode("ascii")
        seconds, small = max(seconds, clip[1]), small or clip[2]
    return Clips(content, seconds, small, left_out)


def clip_of(file: Path, detail: Detail) -> tuple[bytes, float, bool] | None:
    """A clip, its seconds, and whether it is small; None where the file cannot be read."""
    try:
        return _clip(file, detail.height, detail.frames)
    except InputError:
        return None


@lru_cache(maxsize=4096)  # a page is made anew after each round
def _clip(file: Path, height: int, frames: int) -> tuple[bytes, float, bool]:
    clip = thumbnail(read_video(file), frames, height)
    seconds, small = len(clip.frames) / clip.fps, clip.frames.shape[1] < MIN_FRAME_HEIGHT
    if small:  # a browser's video has half the resolution in colour
        clip = Clip(clip.frames.repeat_interleave(2, 1).repeat_interleave(2, 2), clip.fps)
    return encode_video(clip, crf=18 if small else 26), seconds, small
