"""How much the videos of a prompt differ."""

from collections.abc import Sequence

import torch
from torch import Tensor


def diversity(videos: Sequence[Tensor]) -> float:
    """Standard deviation over a prompt's videos, root mean square over all values.

    Args:
        videos: two or more of one shape, made from different seeds: uint8 pixels (T, H, W, C),
            which count from 0 to 1, so that the result is at most 0.7; or latents, in their units.
    """
    scale = 255 if videos[0].dtype == torch.uint8 else 1
    stacked = torch.stack([video.float() for video in videos]) / scale
    return float(stacked.var(0, correction=1).mean().sqrt())
