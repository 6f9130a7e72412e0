"""What VBench computes of frames, features and flow, as functions of tensors.

Frames are float (T, 3, H, W), 0 to 255, unless said otherwise. Constants and formulas are those of
the package ``vbench`` 0.1.5; tests/vbench compares the two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels that DINO was trained with."""
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""The same of CLIP."""
IMAGE_LIMIT = 512
"""Pixels of a frame's longer side above which imaging quality shrinks it."""
FLOW_FPS = 8
"""Frames a second between which dynamic degree looks for motion, about."""
MOVING_SHARE = 0.05
"""Share of a frame's places, those that move most, whose mean speed counts."""
FLOW_GRID = 8
"""RAFT takes frames whose sides are multiples of this."""


def resized(frames: Tensor, side: int, mode: str) -> Tensor:
    """Frames with ``side`` pixels on the shorter side, without antialiasing and without clipping.

    The longer side is rounded down, as torchvision's ``Resize`` does it.
    """
    height, width = frames.shape[-2:]
    short, long = sorted((height, width))
    if short == side:
        return frames
    other = side * long // short
    size = (side, other) if height <= width else (other, side)
    return F.interpolate(frames, size, mode=mode, align_corners=False)


def centred(frames: Tensor, side: int) -> Tensor:
    """The square of ``side`` pixels in the middle of each frame."""
    top, left = (round((length - side) / 2) for length in frames.shape[-2:])
    return frames[..., top : top + side, left : left + side]


def normalised(frames: Tensor, statistics: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Frames in the units of a network: from 0 to 1, minus the mean, by the standard deviation."""
    mean, deviation = (frames.new_tensor(values)[:, None, None] for values in statistics)
    return (frames / 255 - mean) / deviation


def for_dino(frames: Tensor, side: int) -> Tensor:
    """Frames as VBench gives them to DINO: the whole picture, whatever its shape."""
    return normalised(resized(frames, side, "bilinear"), IMAGENET)


def for_clip(frames: Tensor, side: int) -> Tensor:
    """Frames as VBench gives them to CLIP: the square in their middle."""
    return normalised(centred(resized(frames, side, "bicubic"), side), OPENAI)


def for_musiq(frames: Tensor) -> Tensor:
    """Frames as VBench gives them to MUSIQ: from 0 to 1, at most `IMAGE_LIMIT` pixels a side."""
    height, width = frames.shape[-2:]
    if max(height, width) > IMAGE_LIMIT:
        factor = IMAGE_LIMIT / max(height, width)
        size = int(factor * height), int(factor * width)
        frames = F.interpolate(frames, size, mode="bilinear", align_corners=False)
    return frames / 255


def dino_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """DINO's position embeddings (1, 1 + S*S, D) for a grid of patches: (1, 1 + rows*columns, D).

    DINO's own code adds a tenth of a patch before it divides the sizes, which moves the grid; the
    embeddings of transformers' ViT are interpolated without it.
    """
    own, grid = positions[:, :1], positions[:, 1:]
    side = round(grid.shape[1] ** 0.5)
    if (rows, columns) == (side, side):
        return positions
    square = grid.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    factors = (rows + 0.1) / side, (columns + 0.1) / side
    moved = F.interpolate(square, scale_factor=factors, mode="bicubic")
    return torch.cat([own, moved.flatten(2).transpose(1, 2)], 1)


def consistency(features: Tensor) -> Tensor:
    """How much frames 2 to T of a video resemble its first frame and the one before, (T - 1,).

    ``features`` (T, D) of its frames; each value is the mean of two cosines, none below 0.
    """
    before = F.cosine_similarity(features[:-1], features[1:]).clamp_min(0)
    first = F.cosine_similarity(features[:1], features[1:]).clamp_min(0)
    return (before + first) / 2


def at_flow_rate(frames: Tensor, fps: float) -> Tensor:
    """Every n-th of (T, ...) frames, so that about `FLOW_FPS` a second are left."""
    return frames[:: max(1, round(fps / FLOW_FPS))]


def padded(frames: Tensor) -> Tensor:
    """Frames whose edges are repeated until their sides are multiples of `FLOW_GRID`."""
    down, right = (-length % FLOW_GRID for length in frames.shape[-2:])
    return F.pad(frames, (right // 2, right - right // 2, down // 2, down - down // 2), "replicate")


def top_speed(flow: Tensor) -> Tensor:
    """Mean length in pixels of the longest `MOVING_SHARE` of each flow's arrows: (P, 2, H, W) to
    (P,)."""
    lengths = flow.norm(dim=1).flatten(1)
    return lengths.topk(int(lengths.shape[1] * MOVING_SHARE), dim=1).values.mean(1)


def is_dynamic(speeds: Tensor, height: int, width: int) -> bool:
    """Whether a video moves: whether enough pairs of its frames do.

    Args:
        speeds: (T - 1,) of the pairs of T frames, see `top_speed`.
        height, width: of a frame, in pixels.
    """
    needed = round(4 * (len(speeds) + 1) / 16)
    moving = int((speeds > 6.0 * min(height, width) / 256).sum())
    return len(speeds) > 0 and moving >= needed
