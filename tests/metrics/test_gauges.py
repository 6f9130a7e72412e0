"""Gauges by hand arithmetic, and their independence of the batch."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ipo_lightning.metrics.gauges import (
    GAUGES,
    blank,
    empty,
    exposure,
    flicker,
    flow,
    frozen,
    luminance,
    measure,
    motion,
    saturation,
    sharpness,
)


def grey(*levels: int, size: int = 4) -> Tensor:
    """One video of uniform frames: uint8 (1, T, size, size, 3)."""
    column = torch.tensor(levels, dtype=torch.uint8)
    return column.view(1, -1, 1, 1, 1).expand(1, -1, size, size, 3).contiguous()


def noise(n: int, frames: int = 5) -> Tensor:
    """Different videos of noise: uint8 (N, T, 12, 10, 3)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, frames, 12, 10, 3), generator=generator, dtype=torch.uint8)


def test_motion_by_hand() -> None:
    # |10 - 0| and |4 - 10|: down counts as much as up, and uint8 must not wrap.
    assert motion(grey(0, 10, 4)).item() == 8.0
    assert motion(grey(255, 0)).item() == 255.0


def test_flicker_by_hand() -> None:
    assert flicker(grey(0, 10, 20, 30)).item() == pytest.approx(0.0, abs=1e-4)  # a steady fade
    assert flicker(grey(0, 10, 0, 10)).item() == pytest.approx(20.0, abs=1e-3)
    moved = torch.zeros(1, 3, 4, 4, 3, dtype=torch.uint8)
    for t in range(3):
        moved[0, t, 0, t] = 200  # a spot that moves does not flicker
    assert flicker(moved).item() == pytest.approx(0.0, abs=1e-4)


def texture(height: int, width: int, blur: int) -> Tensor:
    """Noise of one sort everywhere, blurred and wrapped round: float (3, H, W), grey levels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, height, width, generator=generator)
    for _ in range(2):
        padded = F.pad(image, (blur // 2, blur - 1 - blur // 2) * 2, mode="circular")
        image = F.avg_pool2d(padded, blur, 1)
    return (image[0] / image.std() * 40 + 128).clamp(0, 255)


def gliding(right: float, down: float, size: tuple[int, int], blur: int, frames: int = 5) -> Tensor:
    """A camera over a texture, in pixels a frame, exact between pixels: uint8 (1, T, H, W, 3)."""
    height, width = size
    spectrum = torch.fft.rfft2(texture(2 * height, 2 * width, blur))
    phase = (
        torch.fft.fftfreq(2 * height)[:, None] * down + torch.fft.rfftfreq(2 * width)[None] * right
    )
    moved = [
        torch.fft.irfft2(
            spectrum * torch.exp(-2j * torch.pi * phase * t), s=(2 * height, 2 * width)
        )
        for t in range(frames)
    ]
    inner = torch.stack(moved)[..., height // 2 :, width // 2 :][..., :height, :width]
    return inner.permute(0, 2, 3, 1).clamp(0, 255).round().to(torch.uint8)[None]


@pytest.mark.slow
@pytest.mark.parametrize("blur", [3, 6, 12])
@pytest.mark.parametrize("pixels", [0.25, 0.5, 1.0, 2.0, 4.0])
def test_flow_reads_a_known_motion(pixels: float, blur: int) -> None:
    size, wanted = (120, 150), 100 * pixels / 120
    for right, down in ((0.8, 0.6), (-0.6, 0.8)):
        read = flow(gliding(pixels * right, pixels * down, size, blur, frames=3)).item()
        assert read == pytest.approx(wanted, rel=0.05, abs=0.05)


@pytest.mark.slow
def test_flow_does_not_depend_on_the_resolution() -> None:
    small = flow(gliding(1, 0, (120, 180), 4)).item()
    large = flow(gliding(4, 0, (480, 720), 16, frames=3)).item()
    assert large == pytest.approx(small, rel=0.05)


def test_flow_reads_a_small_thing_like_a_camera() -> None:
    for side, pixels in ((10, 2), (20, 1), (40, 4)):  # of a frame 128 pixels high
        video = torch.full((1, 5, 128, 128, 3), 20, dtype=torch.uint8)
        for t in range(5):
            place = slice(40 + pixels * t, 40 + pixels * t + side)
            video[0, t, 40 : 40 + side, place] = 220
        assert flow(video).item() == pytest.approx(100 * pixels / 128, rel=0.5)


def test_flow_of_what_stands_still_is_zero_and_jitter_is_motion() -> None:
    still = gliding(0, 0, (64, 96), 4)
    assert flow(still).item() == 0.0
    assert flow(torch.full((1, 4, 40, 40, 3), 77, dtype=torch.uint8)).item() == 0.0
    there, back = gliding(2, 0, (64, 96), 4, frames=2)[0]
    jitter = torch.stack([there, back] * 3)[None]
    assert flow(jitter).item() == pytest.approx(100 * 2 / 64, rel=0.05)


@pytest.mark.parametrize(("deviation", "most"), [(1, 0.1), (2, 0.2), (5, 0.4)])
def test_flow_takes_grain_for_little_motion(deviation: int, most: float) -> None:
    still = gliding(0, 0, (120, 180), 4).float()
    grain = torch.randn(still.shape, generator=torch.Generator().manual_seed(1)) * deviation
    assert 0 < flow((still + grain).clamp(0, 255).round().to(torch.uint8)).item() < most


def test_flow_half_of_whose_frames_are_repeated_is_halved() -> None:
    video = gliding(1.5, 0, (64, 96), 4, frames=9)
    stuck = torch.cat([video[:, :5], video[:, 4:5].expand(-1, 4, -1, -1, -1)], 1)
    moving = flow(video[:, :5]).item()
    assert flow(stuck).item() == pytest.approx(moving / 2, rel=1e-5)


def test_flow_is_the_same_however_many_pairs_are_measured_together() -> None:
    video = gliding(1, 0.5, (40, 40), 4, frames=20)  # more than FLOW_PAIRS
    pairs = torch.cat([flow(video[:, t : t + 2]) for t in range(19)])
    assert flow(video).item() == pytest.approx(pairs.mean().item(), rel=1e-5)


def test_frozen_by_hand() -> None:
    assert frozen(grey(1, 1, 9, 9, 9)).item() == 0.75
    moved = torch.zeros(1, 2, 100, 100, 3, dtype=torch.uint8)
    moved[0, 0, 5, 5], moved[0, 1, 5, 6] = 255, 255  # one pixel of ten thousand
    assert frozen(moved).item() == 0.0
    dither = noise(1) // 255 + 30  # codecs do not repeat a frame to the bit
    assert frozen(dither).item() == 1.0


def test_empty_counts_frames_that_show_nothing() -> None:
    video = noise(1, frames=4)
    assert empty(video).item() == 0.0
    video[0, 3] = 0
    video[0, 2] = torch.tensor([10, 200, 30], dtype=torch.uint8)  # one colour
    assert empty(video).item() == 0.5
    video[0, 2, 3, 3] = 255
    assert empty(video).item() == 0.25
    assert empty(grey(7, 40, 7)).item() == 1.0  # each frame, though not the clip


def test_exposure_by_hand() -> None:
    assert exposure(grey(0, 100)).item() == pytest.approx(50.0)
    red = torch.zeros(1, 1, 2, 2, 3, dtype=torch.uint8)
    red[..., 0] = 200
    assert exposure(red).item() == pytest.approx(0.299 * 200)


def test_saturation_by_hand() -> None:
    pixel = torch.tensor([200, 50, 120], dtype=torch.uint8)
    video = torch.stack([pixel, torch.full((3,), 90, dtype=torch.uint8)]).view(1, 1, 1, 2, 3)
    assert saturation(video).item() == 75.0  # (150 + 0) / 2
    assert saturation(video.expand(1, 7, 3, 2, 3)).item() == 75.0


def test_sharpness_by_hand() -> None:
    video = torch.zeros(1, 1, 3, 3, 3, dtype=torch.uint8)
    video[0, 0, 1, 1] = 10
    assert sharpness(video).item() == pytest.approx(40.0, rel=1e-5)
    ramp = torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 8, 1).expand(1, 2, 8, 8, 3)
    assert sharpness(ramp).item() == pytest.approx(0.0, abs=1e-4)


def test_blank_needs_neither_space_nor_time() -> None:
    assert blank(grey(7, 7, 7)).item() == 1.0
    assert blank(grey(7, 40, 7)).item() == 0.0  # changes in time
    split = grey(7, 7)
    split[..., :2, :] = 40  # changes in space
    assert blank(split).item() == 0.0
    tinted = grey(128, 128)
    tinted[..., 0] = 250  # one colour everywhere
    assert blank(tinted).item() == 1.0


def test_blank_forgives_rounding_but_not_a_small_object() -> None:
    generator = torch.Generator().manual_seed(0)
    dither = torch.randint(30, 32, (1, 3, 32, 32, 3), generator=generator, dtype=torch.uint8)
    assert blank(dither).item() == 1.0
    dither[:, :, 4:8, 4:8] = 200
    assert blank(dither).item() == 0.0


def test_luminance_of_one_channel_is_itself() -> None:
    assert luminance(torch.tensor([[7]], dtype=torch.uint8)).tolist() == [7.0]


@pytest.mark.parametrize("name", GAUGES)
def test_a_value_does_not_depend_on_the_batch(name: str) -> None:
    videos = noise(4)
    videos[2] = 0  # a neighbour that is blank
    together = GAUGES[name](videos)
    alone = torch.cat([GAUGES[name](video[None]) for video in videos])
    assert together.dtype == torch.float32 and together.shape == (4,)
    assert torch.equal(together, alone)
    assert torch.equal(together.flip(0), GAUGES[name](videos.flip(0)))


@pytest.mark.parametrize("name", GAUGES)
@pytest.mark.parametrize("shape", [(2, 1, 8, 8, 3), (2, 2, 2, 2, 3), (1, 3, 1, 1, 1)])
def test_short_and_small_videos_are_finite(name: str, shape: tuple[int, ...]) -> None:
    assert GAUGES[name](torch.full(shape, 9, dtype=torch.uint8)).isfinite().all()


def test_one_frame_neither_moves_nor_flickers() -> None:
    assert motion(noise(2, frames=1)).tolist() == [0.0, 0.0]
    assert flicker(noise(2, frames=2)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", GAUGES)
def test_no_videos_give_no_values(name: str) -> None:
    assert GAUGES[name](noise(4)[:0]).shape == (0,)


def test_a_view_measures_like_its_copy() -> None:
    videos = noise(2).transpose(2, 3)
    for name, values in measure(videos).items():
        assert torch.equal(values, GAUGES[name](videos.contiguous())), name


@pytest.mark.parametrize(
    "videos", [torch.zeros(2, 3, 4, 4, 3), torch.zeros(3, 4, 4, 3, dtype=torch.uint8)]
)
def test_wrong_input_is_refused(videos: Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, T, H, W, C\)"):
        motion(videos)
