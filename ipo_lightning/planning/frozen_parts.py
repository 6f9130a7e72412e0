"""What the text encoder and the VAE cost, on fake tensors; with their own weights."""

import torch

from ipo_lightning.planning.costs import Forward, extrapolated
from ipo_lightning.planning.tracing import weightless
from ipo_lightning.policy import Policy

SHORT_VIDEOS = (17, 25)
"""Frames of the videos whose decoding stands for a longer one's; both of an even number of latent
frames beyond the first."""
TILES_OVERLAP = 1.5
"""Operations of a VAE's overlapping tiles to those of the whole video; 1.4 to 1.65 in diffusers."""
GRID = 16
"""Pixels of which a video's height and width are multiples; tiles are rounded up to them."""
CPU = torch.device("cpu")


def embedding_cost(policy: Policy) -> tuple[Forward, tuple[int, ...]]:
    """The cost of encoding a prompt, and the shape (L, D) of its embedding."""
    policy = policy.outline()
    with weightless() as tracer:
        policy.embed(["a"], CPU)  # the encoder is made here, which takes more than it keeps
        tracer.restart()
        resident, before = tracer.held, tracer.flops
        text = policy.embed(["a"], CPU)
        peak = tracer.next_phase()
    work = Forward(resident + peak.held, 0, tracer.flops - before)
    return work, tuple(text.shape[1:])


def encoding_cost(policy: Policy) -> Forward:
    """The cost of encoding a real clip to latents."""
    policy = policy.outline()
    with weightless() as tracer:
        policy.encode(torch.empty(1, *policy.size, 3, dtype=torch.uint8))
        peak = tracer.next_phase()
    return Forward(peak.held, 0, tracer.flops)


def decoding_cost(policy: Policy, count: int) -> Forward:
    """The cost of decoding videos together, ``count`` of them; operations are of one video.

    With tiling one tile is decoded here, and the video that the tiles are put together to is added,
    twice: joined and in parts.
    """
    frames, height, width = policy.size
    tile = policy.tile
    if tile is None or (tile[0] >= height and tile[1] >= width):
        return _of_any_length(policy, count, frames, height, width)
    tile_height, tile_width = min(_on_grid(tile[0]), height), min(_on_grid(tile[1]), width)
    one = _of_any_length(policy, count, frames, tile_height, tile_width)
    joined = 2 * count * frames * 3 * 4 * height * width
    times = TILES_OVERLAP * height * width / (tile_height * tile_width)
    return Forward(one.held + joined, 0, round(one.flops * times))


def _on_grid(pixels: int) -> int:
    return -(-pixels // GRID) * GRID


def _of_any_length(policy: Policy, count: int, frames: int, height: int, width: int) -> Forward:
    """Long videos from short ones: a VAE decodes a few frames at a time, all at the same cost."""
    few, more = (length + (frames - 1) % 8 for length in SHORT_VIDEOS)
    if frames <= more:
        return Forward(*decoded(policy, count, frames, height, width))
    short, longer = (decoded(policy, count, length, height, width) for length in (few, more))
    return Forward(*extrapolated(short, longer, (frames - more) / (more - few)))


def decoded(
    policy: Policy, count: int, frames: int, height: int, width: int
) -> tuple[int, int, int]:
    """A `Forward` of decoding videos of this size without tiles; operations are of one video."""
    policy = policy.outline(size=(frames, height, width))
    with weightless() as tracer:
        policy.decode(torch.empty(count, *policy.latent_shape))
        peak = tracer.next_phase()
    return peak.held, 0, tracer.flops // count
