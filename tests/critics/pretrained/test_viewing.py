"""What a multimodal model sees of a video, against qwen-vl-utils' rules and torchvision's bits."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from torchvision.transforms.v2.functional import resize as resize_v2

from ipo_lightning.critics.pretrained.checkpoint import Processor, collate
from ipo_lightning.critics.pretrained.viewing import Grid, Viewing, resized
from ipo_lightning.errors import InputError
from ipo_lightning.video import Clip
from tests.helpers import tiny_vlm

BICUBIC = {"interpolation": InterpolationMode.BICUBIC, "antialias": True}


@pytest.mark.parametrize(
    ("total", "fps", "count"),
    [
        (49, 8.0, 12),  # 12.25
        (81, 16.0, 10),  # 10.125
        (81, 15.0, 10),  # 10.8, to the nearest even number
        (88, 16.0, 12),  # 11: a half between 10 and 12, to six twos and not to five
        (72, 16.0, 8),  # 9: to four twos and not to five
        (16, 8.0, 4),  # 4
        (8, 8.0, 4),  # 2, raised to the least
        (5, 8.0, 4),
        (3, 8.0, 2),  # it has no four
        (1, 8.0, 1),
        (100_000, 25.0, 768),
    ],
)
def test_as_many_frames_as_qwen_vl_utils_takes(total: int, fps: float, count: int) -> None:
    viewing = Viewing()
    places = viewing.indices(total, fps)
    assert len(places) == viewing.count(total, fps) == count
    assert places[0] == 0 and (count == 1 or places[-1] == total - 1)
    assert places == sorted(set(places))


def test_frames_are_evenly_spaced() -> None:
    assert Viewing().indices(49, 8.0) == [0, 4, 9, 13, 17, 22, 26, 31, 35, 39, 44, 48]
    assert Viewing().indices(6, 6.0) == [0, 2, 3, 5]  # 1.67 and 3.33
    # A half between two frames goes to the even one: 1.5 and 4.5 of 0, 1.5, 3, 4.5, 6.
    fixed = Viewing(least_frames=5, most_frames=5)
    assert fixed.indices(7, 8.0, 1) == [0, 2, 3, 4, 6]


def test_bounds_may_fix_the_number() -> None:
    fixed = Viewing(least_frames=8, most_frames=8)
    assert {fixed.count(total, fps) for total in (8, 16, 99) for fps in (2.0, 8.0, 60.0)} == {8}
    assert Viewing(most_frames=5).count(100, 8.0, 2) == 4, "a multiple within the bounds"
    assert Viewing(least_frames=5).count(100, 100.0, 2) == 6


@pytest.mark.parametrize(
    ("size", "side", "wanted"),
    [
        ((480, 720), 28, (364, 532)),  # 345600 px: by 1/1.312 to 365.8 x 548.7, down to patches
        ((480, 832), 28, (336, 588)),
        ((32, 32), 28, (336, 336)),  # 1024 px: by 9.9 to 316.8, up to patches
        ((448, 448), 28, (448, 448)),
        ((350, 462), 28, (336, 448)),  # 12.5 patches to the even 12, 16.5 to 16
        ((10, 1000), 28, (56, 3192)),
        ((480, 720), 32, (352, 544)),
    ],
)
def test_sizes_are_qwen_vl_utils(size: tuple[int, int], side: int, wanted: tuple[int, int]) -> None:
    assert Viewing().fitted(*size, side) == wanted
    height, width = wanted
    assert height % side == width % side == 0
    assert Viewing().min_pixels <= height * width <= Viewing().max_pixels


def test_a_needle_is_refused() -> None:
    with pytest.raises(InputError, match="10 x 2001 px: one side is more than 200 times"):
        Viewing().fitted(10, 2001, 28)


@pytest.mark.parametrize("size", [(56, 84), (196, 280), (31, 200), (97, 131)])
def test_frames_are_resized_as_torchvision_does(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 3, 97, 131), dtype=torch.uint8, generator=generator)
    ours = resized(frames, size)
    assert ours.dtype == torch.uint8 and ours.shape == (3, 3, *size)
    assert torch.equal(ours, resize(frames, list(size), **BICUBIC))


def test_the_newer_resize_is_another() -> None:
    """Why frames are not left to the processors: theirs depends on the machine's kernels."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (3, 3, 97, 131), dtype=torch.uint8, generator=generator)
    theirs = resize_v2(frames, [56, 84], **BICUBIC)
    apart = (theirs.int() - resized(frames, (56, 84)).int()).abs()
    assert apart.max() <= 32 and (apart > 0).float().mean() < 0.3


def test_a_clip_is_shown() -> None:
    clip = tiny_vlm.clip(0, 16)
    shown = Viewing(**tiny_vlm.SMALL).show(clip, Grid(28, 2))
    assert shown.frames.shape == (4, 3, 56, 84) and shown.frames.dtype == torch.uint8
    assert (shown.indices, shown.total, shown.fps) == ((0, 5, 10, 15), 16, 8.0)
    same = Viewing().show(clip, Grid(exact=(40, 56)))
    assert torch.equal(same.frames[1].permute(1, 2, 0), clip.frames[same.indices[1]])
    with pytest.raises(InputError, match="a video of 0.0 frames a second"):
        Viewing().show(Clip(clip.frames, 0.0), Grid())


def test_identity_is_what_is_shown() -> None:
    others = [Viewing(), Viewing(fps=4), Viewing(least_frames=2), Viewing(most_frames=8),
              Viewing(min_pixels=1000), Viewing(max_pixels=10**6)]  # fmt: skip
    assert len({one.identity for one in others}) == len(others)
    assert Viewing().identity == Viewing(fps=2.0).identity


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": 0}, "fps=0: give a number, above 0"),
        ({"least_frames": 0}, "least_frames=0: give a whole number, at least 1"),
        ({"least_frames": 9, "most_frames": 8}, "least_frames=9: give at most most_frames=8"),
        ({"min_pixels": 10, "max_pixels": 9}, "min_pixels=10: give at most max_pixels=9"),
        ({"min_pixels": 0}, "min_pixels=0: give a whole number, at least 1"),
    ],
)
def test_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Viewing(**settings)


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_processors_take_frames_as_they_are(family: str, tmp_path: Path) -> None:
    """Their pixels are ours, scaled and cut into patches: nothing is resized or dropped again."""
    processor = Processor(str(tiny_vlm.save_model(tmp_path / family, family)))
    shown = Viewing(**tiny_vlm.SMALL).show(tiny_vlm.clip(1, 16), processor.grid)
    row = processor.encode(processor.rendered([None, "?"]), [shown])
    pixels = row["pixel_values_videos"].double()
    mean = torch.tensor(processor.videos.image_mean, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(processor.videos.image_std, dtype=torch.float64).view(1, 3, 1, 1)
    wanted = (shown.frames.double() / 255 - mean) / std
    assert pixels.numel() == wanted.numel()
    found, own = pixels.flatten().sort().values, wanted.flatten().sort().values
    torch.testing.assert_close(found, own, atol=1e-5, rtol=0)


def test_times_are_told_where_a_model_reads_them(tmp_path: Path) -> None:
    """Qwen3-VL reads seconds: of frames 0, 5 and 10, 15 at 8 a second, the middles."""
    processor = Processor(str(tiny_vlm.save_model(tmp_path / "qwen3", "qwen3_vl")))
    shown = Viewing(**tiny_vlm.SMALL).show(tiny_vlm.clip(1, 16), processor.grid)
    ids = processor.encode(processor.rendered([None]), [shown])["input_ids"][0]
    said = processor.tokenizer.decode(ids)
    assert said.index("<0.3 seconds>") < said.index("<1.6 seconds>")
    stamped = re.escape("<|vision_start|>") + r"(<\|video_pad\|>)+" + re.escape("<|vision_end|>")
    user = "<|im_start|>user\n"
    assert re.search(f"{re.escape(user)}<0.3 seconds>{stamped}<1.6 seconds>{stamped}<.im_end", said)
    other = Processor(str(tiny_vlm.save_model(tmp_path / "qwen25", "qwen2_5_vl")))
    shown = Viewing(**tiny_vlm.SMALL).show(tiny_vlm.clip(1, 16), other.grid)
    row = other.encode(other.rendered([None]), [shown])
    assert row["second_per_grid_ts"].tolist() == pytest.approx([1.0]), "two frames at 2 a second"


def test_turns_are_padded_on_one_side() -> None:
    rows = [{"input_ids": torch.arange(length)[None] + 1, "attention_mask": torch.ones(1, length),
             "mm_token_type_ids": torch.full((1, length), 2), "pixels": torch.ones(length, 3)}
            for length in (2, 4)]  # fmt: skip
    left, right = collate(rows, 99, left=True), collate(rows, 99, left=False)
    assert left["input_ids"].tolist() == [[99, 99, 1, 2], [1, 2, 3, 4]]
    assert right["input_ids"].tolist() == [[1, 2, 99, 99], [1, 2, 3, 4]]
    assert left["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert right["mm_token_type_ids"].tolist() == [[2, 2, 0, 0], [2, 2, 2, 2]]
    assert right["pixels"].shape == (6, 3)


def test_a_sound_bound_on_pixels() -> None:
    """Every size of video that is not too oblong ends within the bounds, but for whole patches."""
    viewing, side = Viewing(), 28
    for height in (16, 100, 333, 480, 1080):
        for width in (16, 131, 720, 1920):
            shown = math.prod(viewing.fitted(height, width, side))
            assert shown <= viewing.max_pixels
            assert shown >= viewing.min_pixels * 0.85 or height * width < viewing.min_pixels
