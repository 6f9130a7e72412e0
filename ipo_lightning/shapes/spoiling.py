"""Generic ways to spoil clips, by known strengths: the school of a trained critic's encoder.

None of them knows of this world's words, of the rules or of a policy: shapes that melt, frames
shaken, blurred or darkened, colours that drift, noise, and clips joined or laid over each other,
whose captions are then each true of a share of what is seen.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ipo_lightning.shapes.build import melt

CORRUPTIONS = ("shake", "flicker", "drift", "blur", "noise", "melt", "join", "overlay")

_SPOILT, _JOINED, _OVERLAID = 0.3, 0.3, 0.2
"""Chances: of each of the first six, and of being joined with or overlaid by another clip."""


class Spoilt(NamedTuple):
    """Clips after corruptions."""

    pixels: Tensor
    """(N, C, T, H, W), about [-1, 1]: noise may leave it."""
    held: Tensor
    """(N, K): how much each word is true of the clip, in [0, 1]."""
    strengths: Tensor
    """(N, 8) in [0, 1], in `CORRUPTIONS`' order."""


def spoil(pixels: Tensor, held: Tensor, draws: torch.Generator, often: float = 1.0) -> Spoilt:
    """Some of the clips mixed with others of the batch, then each spoilt in up to six ways.

    Partners are a permutation: in one case of N a clip is its own, and stays what it is.

    Args:
        pixels: (N, C, T, H, W) in [-1, 1]. held: (N, K), which words its caption holds.
        often: factor on the chances of all corruptions, in [0, 1].
    """
    share, joined, overlaid = _shares(len(pixels), pixels.shape[2], draws, often)
    partner = torch.randperm(len(pixels), generator=draws)
    way = share[:, None, :, None, None]
    pixels = pixels.lerp(pixels[partner], way)
    mean = share.mean(1, keepdim=True)
    held = held.lerp(held[partner], mean)
    mixed = 2 * torch.minimum(mean, 1 - mean) * torch.stack([joined, overlaid], 1)
    pixels, strengths = _corrupt(pixels, draws, often)
    return Spoilt(pixels, held, torch.cat([strengths, mixed], 1))


def _shares(
    count: int, num_frames: int, draws: torch.Generator, often: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, T): how much of each frame is the partner's; and whether clips are joined, overlaid.

    A join goes over from one clip to the other somewhere, within one to four frames; an overlay
    holds up to half of the other throughout.
    """
    chance = torch.rand(count, 1, generator=draws)
    joined = chance < often * _JOINED
    overlaid = (chance < often * (_JOINED + _OVERLAID)) & ~joined
    turn = torch.randint(1, num_frames, (count, 1), generator=draws)
    frames_long = 1 + 3 * torch.rand(count, 1, generator=draws)
    after = ((torch.arange(num_frames) - turn + 0.5) / frames_long + 0.5).clamp(0, 1)
    late = torch.rand(count, 1, generator=draws) < 0.5
    even = torch.rand(count, 1, generator=draws) / 2
    share = torch.where(late, after, 1 - after) * joined + even * overlaid
    return share, joined[:, 0], overlaid[:, 0]


def _corrupt(pixels: Tensor, draws: torch.Generator, often: float) -> tuple[Tensor, Tensor]:
    """Clips, spoilt, and how much: (N, 6) strengths, in the order of the first `CORRUPTIONS`.

    Shapes that melt, frames shaken by up to a few pixels, brightness that flickers, colours that
    drift to others, blur, noise.
    """
    count, num_frames = pixels.shape[0], pixels.shape[2]
    strengths = torch.rand(count, 6, generator=draws)
    strengths *= torch.rand(count, 6, generator=draws) < often * _SPOILT
    shake, flicker, drift, blur, noise = strengths.T[:5, :, None, None, None, None]
    frames = melt(pixels, strengths[:, 5], draws).transpose(1, 2).flatten(0, 1)
    moves = torch.eye(2, 3).repeat(len(frames), 1, 1)
    shift = torch.randn(count, num_frames, 2, generator=draws) * shake[..., 0, 0] / 8
    moves[:, :, 2] = shift.flatten(0, 1)
    grid = F.affine_grid(moves, list(frames.shape), align_corners=False)
    frames = F.grid_sample(frames, grid, padding_mode="border", align_corners=False)
    frames = frames.lerp(_blurred(frames), blur[:, 0].repeat_interleave(num_frames, 0))
    spoilt = (frames.unflatten(0, (count, num_frames)).transpose(1, 2) + 1) / 2
    dark = torch.rand(count, 1, num_frames, 1, 1, generator=draws)
    spoilt = spoilt * (1 - 0.7 * flicker * dark)
    way = drift * torch.linspace(0, 1, num_frames)[:, None, None]
    spoilt = spoilt.lerp(spoilt.roll(1, 1), way)
    spoilt = spoilt + 0.15 * noise * torch.randn(spoilt.shape, generator=draws)
    return spoilt * 2 - 1, strengths


def _blurred(frames: Tensor) -> Tensor:
    """Frames (N, C, H, W) after two means over 3 x 3 pixels.

    All planes are channels of one image, innermost in memory: to the bit what a batch of images
    gives, in a third of the time.
    """
    planes = frames.reshape(1, -1, *frames.shape[2:]).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        planes = F.avg_pool2d(planes, 3, 1, 1, count_include_pad=False)
    return planes.contiguous().view_as(frames)
