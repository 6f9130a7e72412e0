"""Model-free gauges: numbers about the pixels alone, so that no critic can be pleased in secret.

Each gauge maps uint8 videos (N, T, H, W, C) to float32 (N,). A video's value depends on no other
video, and memory stays at a few copies of one video however large N is. Luminance is Rec. 601
(0.299 R + 0.587 G + 0.114 B), in grey levels from 0 to 255; one channel is its own luminance.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import reduce, wraps

import torch
from torch import Tensor

from ipo_lightning.metrics.flow import WINDOW, optical_flow

BLANK_DEVIATION = 1.0  # grey levels; rounding and codecs leave less than this in a constant video
FROZEN_CHANGE = 0.5  # grey levels; a repeated frame changes by less, root mean square
FLOW_HEIGHT = 128  # px, about: frames are shrunk by a whole factor before their flow is measured
PART = 1 << 20  # bytes of a video that are looked at together, one frame at least
FLOW_PAIRS = 16  # frames whose flow is measured together

Gauge = Callable[[Tensor], Tensor]


def each_video(measure: Callable[[Tensor], Tensor]) -> Gauge:
    """Lift a measure of one video, uint8 (T, H, W, C) -> scalar, to a batch of them.

    One at a time on purpose: it bounds memory and makes a value independent of the batch.
    """

    @wraps(measure)
    def gauge(videos: Tensor) -> Tensor:
        if videos.dtype != torch.uint8 or videos.ndim != 5 or 0 in videos.shape[1:]:
            shape = tuple(videos.shape)
            raise ValueError(f"videos must be uint8 (N, T, H, W, C), got {videos.dtype} {shape}")
        # Contiguous, since sums of floats follow the order in memory.
        values = [measure(video.contiguous()).to(torch.float32) for video in videos]
        return torch.stack(values) if values else videos.new_zeros(0, dtype=torch.float32)

    return gauge


def luminance(frames: Tensor) -> Tensor:
    """Rec. 601 luminance of (..., C) with C in {1, 3}, float32 (...), 0 to 255."""
    if frames.shape[-1] == 1:
        return frames[..., 0].float()
    red, green, blue = frames.float().unbind(-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


@each_video
def motion(video: Tensor) -> Tensor:
    """Mean absolute change between neighbouring frames, grey levels; 0 for a single frame."""
    if len(video) < 2:
        return torch.zeros((), device=video.device)
    return torch.cat([span(before, after) for before, after in neighbours(video)]).mean()


@each_video
def flow(video: Tensor) -> Tensor:
    """How fast what moves moves: percent of the frame's height from one frame to the next.

    The mean over neighbouring frames of their optical flow's mean length, in which each place
    counts by its own length: a small thing that moves before a still background reads like a camera
    that moves as fast. A still video is exactly 0; noise and jitter are motion. Frames are shrunk
    to a height of about 128 px first; 0 for a single frame, or one too small for a window. A
    uniform motion of a textured frame by up to 4 percent is read to within 5 % of itself, or 0.05,
    that of a small thing to within half of itself; what is faster than 6 percent falls short.
    """
    grey = shrunk(video)
    if len(grey) < 2 or min(grey.shape[-2:]) < WINDOW:
        return torch.zeros((), device=video.device)
    pairs = zip(grey[:-1].split(FLOW_PAIRS), grey[1:].split(FLOW_PAIRS), strict=True)
    length = torch.cat([optical_flow(*pair).norm(dim=1).flatten(1) for pair in pairs])
    speed = length.square().sum(1) / length.sum(1).clamp_min(torch.finfo(length.dtype).tiny)
    return 100 * speed.mean() / grey.shape[-2]


@each_video
def frozen(video: Tensor) -> Tensor:
    """Share of neighbouring frames that are the same, in [0, 1]; 0 for a single frame.

    The same: the root mean square of all channels' changes is below half a grey level.
    """
    if len(video) < 2:
        return torch.zeros((), device=video.device)
    pairs = neighbours(video)
    squares = [absolute(a, b).flatten(1).float().square().mean(1) for a, b in pairs]
    return (torch.cat(squares) < FROZEN_CHANGE**2).float().mean()


@each_video
def flicker(video: Tensor) -> Tensor:
    """Mean absolute second difference over time of the frames' mean luminance, grey levels.

    A steady fade has none, a lamp that goes on and off has much; 0 below three frames.
    """
    if len(video) < 3:
        return torch.zeros((), device=video.device)
    return frame_luminance(video).diff(n=2).abs().mean()


@each_video
def exposure(video: Tensor) -> Tensor:
    """Mean luminance, 0 (black) to 255 (white)."""
    return frame_luminance(video).mean()


@each_video
def saturation(video: Tensor) -> Tensor:
    """Mean over pixels of the largest channel minus the smallest, 0 (grey) to 255."""
    return torch.cat([span(*extremes(part)) for part in parts(video)]).mean()


@each_video
def sharpness(video: Tensor) -> Tensor:
    """Mean absolute four-neighbour Laplacian of the luminance, grey levels; blur lowers it.

    Over inner pixels; 0 where a frame has none.
    """
    if min(video.shape[1:3]) < 3:
        return torch.zeros((), device=video.device)
    frames = [laplacian(luminance(part)).abs().flatten(1).mean(1) for part in parts(video)]
    return torch.cat(frames).mean()


@each_video
def blank(video: Tensor) -> Tensor:
    """1 where a video shows nothing, else 0.

    Nothing: every channel deviates by less than one grey level (root mean
    square) from its mean over space and time: a black, white or single-coloured clip, which
    is also what a decoder makes of broken latents.
    """
    means, squares = channel_means(video).mean(0), channel_squares(video).mean(0)
    return (squares - means.square() < BLANK_DEVIATION**2).all().float()


@each_video
def empty(video: Tensor) -> Tensor:
    """Share of the frames that show nothing, in [0, 1]: each channel deviates in them by less
    than one grey level from its mean over the frame, as in a clip that breaks off into black."""
    variance = channel_squares(video) - channel_means(video).square()
    return (variance < BLANK_DEVIATION**2).all(1).float().mean()


def frame_luminance(video: Tensor) -> Tensor:
    """Mean luminance of each frame of (T, H, W, C), float32 (T,)."""
    return luminance(channel_means(video))  # luminance is linear: the channels' means suffice


def parts(video: Tensor) -> Iterator[Tensor]:
    """(T, H, W, C) in pieces of a few frames, so that memory is bounded however long it is."""
    return iter(video.split(max(1, PART // video[0].numel())))


def neighbours(video: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a video, each with the frames that follow its own."""
    return zip(parts(video[:-1]), parts(video[1:]), strict=True)


def channel_means(video: Tensor) -> Tensor:
    """Mean of each channel of each frame of (T, H, W, C), float64 (T, C), from exact sums."""
    columns = [part.sum(1, dtype=torch.int32) for part in parts(video)]
    return torch.cat(columns).sum(1).double() / (video.shape[1] * video.shape[2])


def channel_squares(video: Tensor) -> Tensor:
    """Mean square of each channel of each frame of (T, H, W, C), float64 (T, C), exact sums."""
    columns = [part.int().square().sum(1, dtype=torch.int32) for part in parts(video)]
    return torch.cat(columns).sum(1).double() / (video.shape[1] * video.shape[2])


def absolute(first: Tensor, second: Tensor) -> Tensor:
    """Absolute difference of two uint8 tensors, which does not wrap."""
    return torch.maximum(first, second) - torch.minimum(first, second)


def span(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference of uint8 (T, ...) by frame, (T,); exact until the division."""
    difference = absolute(first, second).flatten(1)
    return difference.sum(1, dtype=torch.int64) / difference.shape[1]


def extremes(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest channel of each pixel of (..., C); unbound, since C is tiny."""
    channels = frames.unbind(-1)
    return reduce(torch.minimum, channels), reduce(torch.maximum, channels)


def shrunk(video: Tensor) -> Tensor:
    """Luminance of (T, H, W, C), (T, 1, h, w), shrunk by a whole factor to about `FLOW_HEIGHT`.

    The mean over each square of pixels, from exact sums; rows and columns that fill none are left
    out.
    """
    factor = max(1, round(video.shape[1] / FLOW_HEIGHT))
    if factor == 1:
        return torch.cat([luminance(part) for part in parts(video)])[:, None]
    height, width = (side // factor * factor for side in video.shape[1:3])
    sums = []
    for part in parts(video[:, :height, :width]):
        rows = reduce(torch.add, (part[:, row::factor].int() for row in range(factor)))
        sums.append(rows.unflatten(2, (-1, factor)).sum(3))
    return luminance(torch.cat(sums))[:, None] / factor**2


def laplacian(images: Tensor) -> Tensor:
    """Four-neighbour Laplacian of (T, H, W), on its inner (T, H - 2, W - 2) pixels."""
    rows, columns = images[:, :, 1:-1], images[:, 1:-1]
    around = rows[:, :-2] + rows[:, 2:] + columns[..., :-2] + columns[..., 2:]
    return around - 4 * columns[..., 1:-1]


GAUGES: Mapping[str, Gauge] = {
    "motion": motion,
    "flow": flow,
    "frozen": frozen,
    "flicker": flicker,
    "exposure": exposure,
    "saturation": saturation,
    "sharpness": sharpness,
    "blank": blank,
    "empty": empty,
}


def measure(videos: Tensor) -> dict[str, Tensor]:
    """Every gauge of :data:`GAUGES` on uint8 (N, T, H, W, C): name -> float32 (N,)."""
    return {name: gauge(videos) for name, gauge in GAUGES.items()}
