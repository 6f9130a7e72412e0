"""The frames of a video that a multimodal model sees, and their size.

Frames are chosen and resized here for all models, on uint8, as qwen-vl-utils does it, with which
most of them were tuned. The models' processors only normalise them and cut them into patches, so
that a score depends neither on the release of transformers nor on a video decoder.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ipo_lightning.errors import InputError
from ipo_lightning.settings import Count, Positive, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip

MOST_OBLONG = 200
"""Longer side over the shorter; qwen-vl-utils refuses more."""


class Grid(NamedTuple):
    """The sizes that a model's processor takes."""

    side: int = 1
    """Height and width, in pixels, are multiples of it."""
    frames: int = 1
    """The number of frames is a multiple of it."""
    exact: tuple[int, int] | None = None
    """(height, width) that all frames have, for models that see one size only."""


class Shown(NamedTuple):
    """The frames of a video that a model is shown."""

    frames: Tensor  # uint8 (n, 3, h, w), RGB
    indices: tuple[int, ...]
    """Places of the frames in the whole video."""
    total: int
    """Frames of the whole video."""
    fps: float
    """Of the whole video."""


@checked
@dataclass(frozen=True)
class Viewing:
    """How videos are shown.

    The defaults are those of VideoReward: 2 frames a second, between 4 and 768, at about 448 x 448.
    """

    fps: Positive = 2.0
    """Frames shown of each second, evenly over the video, with its first and last. More show finer
    motion; tokens, memory and time grow with them."""
    least_frames: Count = 4
    """The least number of frames that are shown, if the video has as many."""
    most_frames: Count = 768
    """The largest number of frames that are shown. Equal to ``least_frames``: always this many."""
    min_pixels: Count = 128 * 28 * 28
    """A smaller frame is enlarged to about this many pixels."""
    max_pixels: Count = 448 * 448
    """A larger frame is reduced to at most this many pixels."""

    def __post_init__(self) -> None:
        for least, most in (("least_frames", "most_frames"), ("min_pixels", "max_pixels")):
            low, high = getattr(self, least), getattr(self, most)
            if low > high:
                raise InputError(setting=least, value=low, expected=f"give at most {most}={high}")

    @property
    def identity(self) -> str:
        """A hash of the settings, part of a critic's identity."""
        settings = [self.fps, self.least_frames, self.most_frames, self.min_pixels, self.max_pixels]
        return f"view-{fingerprint(settings)[:8]}"

    def count(self, total: int, fps: float, multiple: int = 2) -> int:
        """How many of a video's frames are shown.

        As in qwen-vl-utils: the length in seconds times ``fps``, within the bounds, rounded to the
        nearest multiple (halves to the even one, as Python rounds). It is less than
        ``least_frames`` where the video has fewer frames, and not a multiple where it has fewer
        than one multiple.

        Args:
            total: frames of the video. fps: its frames a second.
            multiple: what the number must be a multiple of.
        """
        least = math.ceil(self.least_frames / multiple) * multiple
        most = min(self.most_frames, total) // multiple * multiple
        wished = min(max(total / fps * self.fps, least), most)
        return min(max(round(wished / multiple) * multiple, 1), total)

    def indices(self, total: int, fps: float, multiple: int = 2) -> list[int]:
        """Indices of the `count` frames that are shown, evenly spaced."""
        count = self.count(total, fps, multiple)
        places: list[int] = torch.linspace(0, total - 1, count).round().long().tolist()
        return places

    def show(self, clip: Clip, grid: Grid) -> Shown:
        """A video as a model sees it.

        Args:
            clip: uint8 (T, H, W, 3).

        Raises:
            InputError: its frame rate is unknown, or its frames are too oblong.
        """
        total, height, width = clip.frames.shape[:3]
        if not clip.fps > 0:
            raise InputError(
                f"a video of {clip.fps} frames a second cannot be shown to a model: give videos "
                "with a frame rate"
            )
        indices = self.indices(total, clip.fps, grid.frames)
        size = grid.exact or self.fitted(height, width, grid.side)
        chosen = clip.frames[indices].permute(0, 3, 1, 2)
        return Shown(resized(chosen, size), tuple(indices), total, clip.fps)

    def fitted(self, height: int, width: int, side: int) -> tuple[int, int]:
        """(height, width) in which a frame is shown: multiples of ``side``, within the bounds.

        A frame within the bounds goes to the nearest multiples of ``side``. One outside is scaled
        to the bound, then rounded down (too large) or up (too small). The rule is qwen-vl-utils'.

        Raises:
            InputError: one side is more than 200 times the other.
        """
        if max(height, width) > MOST_OBLONG * min(height, width):
            raise InputError(
                f"frames of {height} x {width} px: one side is more than {MOST_OBLONG} times the "
                "other, which models do not take"
            )
        sides = [max(side, round(length / side) * side) for length in (height, width)]
        area = sides[0] * sides[1]
        if area > self.max_pixels:
            scale = math.sqrt(height * width / self.max_pixels)
            sides = [max(side, math.floor(one / scale / side) * side) for one in (height, width)]
        elif area < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (height * width))
            sides = [math.ceil(one * scale / side) * side for one in (height, width)]
        return sides[0], sides[1]


def resized(frames: Tensor, size: Sequence[int]) -> Tensor:
    """Frames in another size, bicubic with antialiasing, rounded back to uint8.

    The result is bit-equal to ``torchvision.transforms.functional.resize``, which upstream uses.
    torchvision's newer ``transforms.v2``, which the processors of transformers use, computes in
    uint8 on a CPU and rounds between the two directions: on noise a fifth of the values differ, by
    up to 22 of 255.

    Args:
        frames: uint8 (n, 3, H, W). size: (height, width).
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames.contiguous()
    fine = F.interpolate(frames.float(), size=list(size), mode="bicubic", antialias=True)
    return fine.clamp_(0, 255).round_().to(torch.uint8)
