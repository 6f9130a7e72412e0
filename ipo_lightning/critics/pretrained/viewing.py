"""What a multimodal model sees of a video: which frames, and how large.

Frames are chosen and resized here, once for all models, on uint8 and in the manner of qwen-vl-utils
with which most of them were tuned; their processors only normalise and cut into patches. So a score
depends neither on the release of transformers nor on a decoder.
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
    """What sizes a model's processor takes."""

    side: int = 1
    """Height and width, in pixels, are multiples of it."""
    frames: int = 1
    """The number of frames is a multiple of it."""
    exact: tuple[int, int] | None = None
    """(height, width) that all frames have, for models that see one size only."""


class Shown(NamedTuple):
    """A video as a model is shown it."""

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
    """Frames a second of the video that are shown, evenly over its length, first and last among
    them. More show finer motion and cost as many more tokens."""
    least_frames: Count = 4
    """A shorter video is shown with so many, as far as it has them."""
    most_frames: Count = 768
    """A longer one with so many; equal to ``least_frames``: always so many."""
    min_pixels: Count = 128 * 28 * 28
    """A smaller frame is enlarged to about so many pixels."""
    max_pixels: Count = 448 * 448
    """A larger frame is made smaller, to at most so many."""

    def __post_init__(self) -> None:
        for least, most in (("least_frames", "most_frames"), ("min_pixels", "max_pixels")):
            low, high = getattr(self, least), getattr(self, most)
            if low > high:
                raise InputError(setting=least, value=low, expected=f"give at most {most}={high}")

    @property
    def identity(self) -> str:
        """What an answer depends on of this, in a few characters."""
        settings = [self.fps, self.least_frames, self.most_frames, self.min_pixels, self.max_pixels]
        return f"view-{fingerprint(settings)[:8]}"

    def count(self, total: int, fps: float, multiple: int = 2) -> int:
        """How many of a video's frames are shown.

        As in qwen-vl-utils: the length in seconds times ``fps``, within the bounds, to the nearest
        multiple; halves go to the even one, as Python rounds. The result may fall short of
        ``least_frames`` where the video has too few, and then is no multiple if it has fewer still.

        Args:
            total: frames of the video. fps: its frames a second.
            multiple: what the number must be a multiple of.
        """
        least = math.ceil(self.least_frames / multiple) * multiple
        most = min(self.most_frames, total) // multiple * multiple
        wished = min(max(total / fps * self.fps, least), most)
        return min(max(round(wished / multiple) * multiple, 1), total)

    def indices(self, total: int, fps: float, multiple: int = 2) -> list[int]:
        """Places of the frames that are shown, evenly spaced; see `count`."""
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
            raise InputError(f"a video of {clip.fps} frames a second cannot be shown to a model")
        indices = self.indices(total, clip.fps, grid.frames)
        size = grid.exact or self.fitted(height, width, grid.side)
        chosen = clip.frames[indices].permute(0, 3, 1, 2)
        return Shown(resized(chosen, size), tuple(indices), total, clip.fps)

    def fitted(self, height: int, width: int, side: int) -> tuple[int, int]:
        """The size in which a frame is shown: whole patches, within the bounds, in proportion.

        A frame within the bounds goes to the nearest multiples of ``side``; one outside is scaled
        to the bound, then cut down or up to multiples. This is qwen-vl-utils' rule.

        Raises:
            InputError: one side is more than 200 times the other.
        """
        if max(height, width) > MOST_OBLONG * min(height, width):
            raise InputError(f"frames of {height} x {width} px are too oblong for a model to see")
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

    The bits of ``torchvision.transforms.functional.resize``, which upstream uses. torchvision's
    newer ``transforms.v2``, which the processors of transformers use, computes on uint8 throughout
    on a CPU and cuts off between the two directions: on noise a fifth of the values differ, by up
    to 22 of 255.

    Args:
        frames: uint8 (n, 3, H, W). size: (height, width).
    """
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames.contiguous()
    fine = F.interpolate(frames.float(), size=list(size), mode="bicubic", antialias=True)
    return fine.clamp_(0, 255).round_().to(torch.uint8)
