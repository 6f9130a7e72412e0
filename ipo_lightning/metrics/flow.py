"""Optical flow without weights: where the places of a frame have gone in the next, in pixels.

Lucas and Kanade's least squares in windows, on a pyramid from coarse to fine: at each level the
next frame is moved back by what is known so far, and the rest of the motion is read off the
difference. Where a frame is flat, it goes with what moves nearby. Nothing is random; no pair of
frames depends on another.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 8
"""Side of a window, in pixels of its level; all of it is taken to move alike."""
STRIDE = 4
"""From one window to the next: a place of the answer."""
COARSEST = 16
"""Pixels that the shorter side of the coarsest level has at least: a motion of a quarter of
a window there is still found, 8 pixels of a frame 128 pixels high."""
FLAT = 4.0
"""Mean squared gradient, in grey levels a pixel, below which a window counts as flat: what changes
there is taken for noise rather than for motion."""
LONGEST_STEP = 4.0
"""Pixels of its level that a step may go: beyond half a window the least squares mean nothing."""
ROUNDING = 1 / 16
"""Grey levels; a smaller difference is that of the resampling, so that stillness has none."""
STEPS = 2
"""Steps at each level but the finest, which takes one: what is left for it is small."""


def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """Motion from ``first`` to ``second``, right and down, in pixels.

    Args:
        first, second: (P, 1, H, W) float, grey levels from 0 to 255, H and W at least `WINDOW`.

    Returns:
        (P, 2, h, w), a place for each window of the finest level. Two equal frames give exactly 0.
    """
    levels = [(first, second)]
    while min(levels[-1][0].shape[-2:]) // 2 >= COARSEST:
        levels.append((F.avg_pool2d(levels[-1][0], 2), F.avg_pool2d(levels[-1][1], 2)))
    flow = first.new_zeros(len(first), 2, 1, 1)
    for first, second in reversed(levels):
        size = [(side - WINDOW) // STRIDE + 1 for side in first.shape[-2:]]
        flow = _resized(flow * 2, size)  # a pixel of the level above is two of this one
        flow = _refined(first, second, flow, 1 if first is levels[0][0] else STEPS)
    return flow


def _refined(first: Tensor, second: Tensor, flow: Tensor, steps: int) -> Tensor:
    """``flow`` (P, 2, h, w) with what a level (P, 1, H, W) adds to it."""
    height, width = first.shape[-2:]
    gradients = _gradients(first)
    inverse = _inverse_tensors(gradients)
    unit = first.new_tensor([2 / width, 2 / height])  # a pixel, in the places of grid_sample
    for _ in range(steps):
        away = _resized(flow, (height, width)).permute(0, 2, 3, 1) * unit
        moved = F.grid_sample(
            second, _places(height, width, str(first.device)) + away,
            padding_mode="border", align_corners=False,
        )  # fmt: skip
        rest = F.hardshrink(first - moved, ROUNDING)
        slope = _windows(gradients * rest)
        step = (inverse * slope[:, None]).sum(2)
        flow = flow + step.clamp(-LONGEST_STEP, LONGEST_STEP)
    return flow


def _gradients(image: Tensor) -> Tensor:
    """Central differences of (P, 1, H, W) along x and y: (P, 2, H, W)."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    along_x = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    along_y = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.cat([along_x, along_y], 1) / 2


def _inverse_tensors(gradients: Tensor) -> Tensor:
    """Inverses of the windows' structure tensors, `FLAT` added on the diagonal: (P, 2, 2, h, w)."""
    products = torch.cat([gradients.square(), gradients[:, :1] * gradients[:, 1:]], 1)
    xx, yy, xy = _windows(products).split(1, 1)
    xx, yy = xx + FLAT, yy + FLAT
    rows = torch.cat([yy, -xy], 1), torch.cat([-xy, xx], 1)
    return torch.stack(rows, 1) / (xx * yy - xy.square())[:, None]


def _windows(values: Tensor) -> Tensor:
    """Means over windows: (P, K, H, W) -> (P, K, h, w)."""
    return F.avg_pool2d(values, WINDOW, STRIDE)


def _resized(flow: Tensor, size: "list[int] | tuple[int, int]") -> Tensor:
    return F.interpolate(flow, size, mode="bilinear", align_corners=False)


@lru_cache(maxsize=8)
def _places(height: int, width: int, device: str) -> Tensor:
    """The places of the pixels themselves, as grid_sample counts them: (1, H, W, 2)."""
    same = torch.eye(2, 3, device=device)[None]
    return F.affine_grid(same, [1, 1, height, width], align_corners=False)
