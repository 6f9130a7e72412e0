"""How much the videos of a prompt differ."""

from collections.abc import Sequence

import torch
from torch import Tensor


def diversity(videos: Sequence[Tensor]) -> float:
    """Standard deviation over a prompt's videos, root mean square over all pixels, 0 to about 0.7.

    Args:
        videos: two or more uint8 (T, H, W, C) of one shape, made from different seeds.
    """
    stacked = torch.stack([video.float() for video in videos]) / 255
    return float(stacked.var(0, correction=1).mean().sqrt())
