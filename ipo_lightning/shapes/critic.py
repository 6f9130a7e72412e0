"""The rule critic: what a clip shows, measured from its pixels, against what its prompt asks for.

It finds the shape by contrast with the background, follows its centre and size, and compares each
frame with ideal shapes at that place. It knows nothing of latents, seeds or the renderer's draws.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.errors import InputError
from ipo_lightning.shapes import world
from ipo_lightning.shapes.prompts import COLOURS, MOTIONS, SHAPES, parse
from ipo_lightning.video import Clip

ALIGNMENT = ("colour", "shape", "motion")
QUALITY = ("smooth", "consistent", "clear")
ALIGNMENT_WEIGHT = 0.6
"""Share of the score; the rest is quality."""
MIN_VISIBLE = 0.7
"""Share of frames that must show a shape before a prompt can count as followed."""
MIN_TRAVEL = 0.25
"""Travel, in nominal units, below which no motion counts as followed."""

_CHUNK = 64
# Rows are MOTIONS, columns the change of (x, y, log size) in nominal units.
_DIRECTIONS = torch.tensor([[-1.0, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]])


class Measurements(NamedTuple):
    """The shape in each frame, (N, T) or (N, T, K) float32."""

    visible: Tensor
    """1 where something of a plausible size stands out, else 0."""
    x: Tensor
    y: Tensor
    radius: Tensor
    """Of a disc of the same area, in pixels."""
    colour: Tensor
    """(N, T, 3) in [0, 1]."""
    overlap: Tensor
    """(N, T, 3): intersection over union with an ideal shape at that place, in SHAPES' order."""


class Motion(NamedTuple):
    """The best constant-velocity fit of (x, y, log size), in nominal units."""

    change: Tensor
    """(N, 3): from the first frame to the last."""
    residual: Tensor
    """(N,): root mean square distance from the fit."""


def check_frames(frames: Tensor) -> None:
    """Refuse anything but uint8 (N, T, 32, 32, 3) with at least three frames."""
    shape = tuple(frames.shape)
    if len(shape) != 5 or shape[1] < 3 or shape[2:] != (world.SIZE, world.SIZE, 3):
        raise InputError(
            f"shapes clips are (N, T >= 3, {world.SIZE}, {world.SIZE}, 3), not {shape}"
        )
    if frames.dtype != torch.uint8:
        raise InputError(f"shapes clips are uint8, not {frames.dtype}")


def silhouette(pixels: Tensor) -> Tensor:
    """Soft mask of what stands out from the background, in [0, 1]: (N, T, H, W, C) -> (N, T, H, W).

    Relative to each frame's own contrast, so that brightness does not count as size.
    """
    background = pixels.flatten(1, 3).median(dim=1).values[:, None, None, None]
    contrast = (pixels - background).abs().amax(-1)
    strongest = contrast.flatten(2).quantile(0.985, dim=-1).clamp_min(0.15)
    return ((contrast / strongest[..., None, None] - 0.25) / 0.5).clamp(0, 1)


def measure(frames: Tensor) -> Measurements:
    """Measurements of uint8 (N, T, H, W, C) frames."""
    check_frames(frames)
    pixels = frames.float() / 255
    mask = silhouette(pixels)
    area = mask.sum((-1, -2))
    some = area.clamp_min(1)
    centres = torch.arange(world.SIZE, device=frames.device) + 0.5
    x = (mask.sum(-2) * centres).sum(-1) / some
    y = (mask.sum(-1) * centres).sum(-1) / some
    radius = (some / math.pi).sqrt()
    core = mask.square()[..., None]
    colour = (pixels * core).sum((-2, -3)) / core.sum((-2, -3)).clamp_min(1)
    ideals = [world.coverage(shape, x, y, radius) for shape in SHAPES]
    overlap = [
        torch.minimum(mask, ideal).sum((-1, -2))
        / torch.maximum(mask, ideal).sum((-1, -2)).clamp_min(1)
        for ideal in ideals
    ]
    visible = ((area > 15) & (area < 450)).float()
    return Measurements(visible, x, y, radius, colour, torch.stack(overlap, -1))


def fit_motion(seen: Measurements) -> Motion:
    """Least-squares straight line through the track of the shape."""
    units = (world.NOMINAL_TRAVEL, world.NOMINAL_TRAVEL, world.NOMINAL_GROWTH)
    coordinates = (seen.x, seen.y, seen.radius.log())
    track = torch.stack([c / unit for c, unit in zip(coordinates, units, strict=True)], -1)
    track = track - track.mean(1, keepdim=True)
    num_frames = track.shape[1]
    time = (torch.arange(num_frames, device=track.device) - (num_frames - 1) / 2)[:, None]
    slope = (track * time).sum(1) / time.square().sum()
    rest = track - slope[:, None] * time
    return Motion(slope * (num_frames - 1), rest.square().sum(-1).mean(1).sqrt())


def travel(frames: Tensor) -> Tensor:
    """Motion travelled, (N,) float32: 1 is the nominal 9 px, or 0.8 of log size."""
    return fit_motion(measure(frames)).change.norm(dim=-1)


def _alignment(seen: Measurements, motion: Motion) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of colours (N, T, 6), shapes (N, T, 3) and motions (N, 6)."""
    palette = torch.tensor([world.PALETTE[colour] for colour in COLOURS])
    palette = palette / palette.amax(-1, keepdim=True)  # hue only: brightness is not colour
    hue = seen.colour / seen.colour.amax(-1, keepdim=True).clamp_min(0.05)
    colours = (-(hue[:, :, None] - palette).square().sum(-1) / 0.08).softmax(-1)
    shapes = (seen.overlap / 0.05).softmax(-1)
    distance = (motion.change[:, None] - _DIRECTIONS).square().sum(-1)
    return colours, shapes, (-distance / 0.35).softmax(-1)


def _smooth(motion: Motion) -> Tensor:
    """(N,) in [0, 1]: deviation from constant velocity as a share of the travel.

    Slowing a clip down scales both alike, so it gains nothing; travel beyond the nominal earns
    nothing either, and a still clip is not smooth.
    """
    go = motion.change.norm(dim=-1)
    relative = motion.residual / go.clamp(0.05, 1.0)
    return (-(relative - 0.03).clamp_min(0) / 0.12).exp() * (go / 0.05).clamp(0, 1)


def _wanted(prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the colours, shapes and motions that prompts ask for, three (N,) int64."""
    asked = [parse(prompt) for prompt in prompts]
    return (
        torch.tensor([COLOURS.index(a.colour) for a in asked]),
        torch.tensor([SHAPES.index(a.shape) for a in asked]),
        torch.tensor([MOTIONS.index(a.motion) for a in asked]),
    )


def dimensions(frames: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """The named parts of the judgement, each (N,) float32 in [0, 1].

    ``follow`` is 1 where colour, shape and motion are all most like what was asked for, else 0.
    """
    seen = measure(frames)
    motion = fit_motion(seen)
    colours, shapes, motions = _alignment(seen, motion)
    colour, shape, direction = _wanted(prompts)
    row = torch.arange(len(prompts))
    shown = seen.visible.mean(1)
    still = (-motion.change.square().sum(-1) / 0.08).exp()
    colour_steps = seen.colour.diff(dim=1).norm(dim=-1).mean(1)
    follow = (colours.mean(1).argmax(-1) == colour) & (shapes.mean(1).argmax(-1) == shape)
    follow &= (motions.argmax(-1) == direction) & (motion.change.norm(dim=-1) > MIN_TRAVEL)
    follow &= shown > MIN_VISIBLE
    return {
        "colour": (colours[row, :, colour] * seen.visible).mean(1),
        "shape": (shapes[row, :, shape] * seen.visible).mean(1),
        "motion": motions[row, direction] * (1 - still) * shown,
        "smooth": _smooth(motion) * shown,
        "consistent": (-(colour_steps - 0.03).clamp_min(0) / 0.15).exp() * shown,
        "clear": (((seen.overlap.amax(-1) - 0.55) / 0.35).clamp(0, 1) * seen.visible).mean(1),
        "follow": follow.float(),
    }


def overall(dims: dict[str, Tensor]) -> Tensor:
    """0.6 alignment + 0.4 quality, (N,) in [0, 1]."""
    alignment = sum(dims[name] for name in ALIGNMENT) / len(ALIGNMENT)
    quality = sum(dims[name] for name in QUALITY) / len(QUALITY)
    return torch.as_tensor(ALIGNMENT_WEIGHT * alignment + (1 - ALIGNMENT_WEIGHT) * quality)


def stack_frames(clips: Sequence[Clip], prompts: Sequence[str]) -> Tensor:
    """The clips' frames as one (N, T, H, W, C) batch; refuses unequal shapes and counts."""
    if len(clips) != len(prompts):
        raise InputError(f"{len(clips)} clips cannot be rated against {len(prompts)} prompts")
    shapes = {tuple(clip.frames.shape) for clip in clips}
    if len(shapes) > 1:
        raise InputError(f"clips of one call must have one shape, not {sorted(shapes)}")
    return torch.stack([clip.frames.cpu() for clip in clips])


def to_ratings(scores: Tensor, dims: dict[str, Tensor]) -> list[Rating]:
    """Columns (N,) -> one rating a clip."""
    columns = {name: values.tolist() for name, values in dims.items()}
    return [
        Rating(score, {name: values[row] for name, values in columns.items()})
        for row, score in enumerate(scores.tolist())
    ]


class ShapesCritic:
    """Rates by rules; deterministic, without weights, below a millisecond a clip."""

    identity = "shapes-rules@1"

    def cost(self, video: Watched) -> Cost:
        """Nothing of a device, see `cost_of`."""
        return Cost("rules", "none")

    def load(self, device: str) -> None:
        """Nothing to load: the rules run on the CPU whatever the device."""

    def release(self) -> None:
        """Nothing to give back."""

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip: 0.6 alignment + 0.4 quality, in [0, 1]."""
        ratings: list[Rating] = []
        for first in range(0, len(clips), _CHUNK):
            part = slice(first, first + _CHUNK)
            dims = dimensions(stack_frames(clips[part], prompts[part]), prompts[part])
            ratings += to_ratings(overall(dims), dims)
        return ratings
