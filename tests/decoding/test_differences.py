"""Properties of files that readers disagree about, each tried on a file that has it."""

import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from ipo_lightning import video
from ipo_lightning.audit.asking import Shelf
from ipo_lightning.decoding.differences import content_name, differences, sha256_of
from ipo_lightning.storage.store import file_sha256
from ipo_lightning.video import (
    Clip,
    frames_with_decord,
    frames_with_pyav,
    read_frames,
    read_timeline,
    read_video,
    write_video,
)
from tests.helpers import footage
from tests.helpers.footage import edited, encode, gradient, turned

ROTATION, EDITS, PIXELS = "a rotation or mirroring", "an edit list that cuts", "its pixel format"
CONTAINER, CODEC, HEIGHT = "its container", "its codec", "an odd height"
RATE = "a frame rate other than its header's"
B_FRAMES = {"bf": "2", "g": "6"}
UNEVEN = [0, 125, 250, 300, 350, 500, 900, 1000, 1010, 1500, 1700, 2000]

Make = Callable[[Path], Path]

COMMON: dict[str, tuple[str, Make]] = {
    "H.264": ("mp4", lambda p: encode(p, options=B_FRAMES)),
    "of a run, for people": ("mp4", lambda p: _of_a_run(p, lossless=False)),
    "of a run, every pixel": ("mp4", lambda p: _of_a_run(p, lossless=True)),
    "Matroska": ("mkv", encode),
    "QuickTime": ("mov", encode),
    "AVI": ("avi", lambda p: encode(p, codec="mpeg4")),
    "AVI with B-frames": ("avi", lambda p: encode(p, options=B_FRAMES)),
    "VP9": ("webm", lambda p: encode(p, codec="libvpx-vp9")),
    "VP8": ("webm", lambda p: encode(p, codec="libvpx")),
    "VP9 with alpha": ("webm", lambda p: encode(p, codec="libvpx-vp9", pixels="yuva420p")),
    "4:2:2": ("mp4", lambda p: encode(p, pixels="yuv422p")),
    "4:4:4": ("mp4", lambda p: encode(p, pixels="yuv444p", frames=gradient(6, 47, 63))),
    "full range": ("mp4", lambda p: encode(p, pixels="yuvj420p")),
    "colours of HD": ("mp4", lambda p: encode(p, colorspace=1)),
    "colours of UHD": ("mp4", lambda p: encode(p, colorspace=9, color_trc=16)),
    "odd width": ("avi", lambda p: encode(p, codec="mpeg4", frames=gradient(6, 48, 63))),
    "pixels that are not square": ("mp4", lambda p: encode(p, sample_aspect_ratio=Fraction(4, 3))),
    "fragments": ("mp4", lambda p: encode(p, container={"movflags": "frag_every_frame"})),
    "no edit list": ("mp4", lambda p: encode(p, options=B_FRAMES, container={"use_editlist": "0"})),
    "an edit list of the whole": ("mp4", lambda p: edited(encode(p, options=B_FRAMES), (1500, 0))),
    "a cover": ("mp4", lambda p: footage.two_streams(p, picture=True)),
    "a frame": ("mp4", lambda p: encode(p, frames=gradient(1))),
}
"""Files that all readers read alike: their ending, and who makes them."""
ODD: dict[str, tuple[str, Make, set[str]]] = {
    "turned clockwise": ("mp4", lambda p: turned(encode(p), (0, 1, -1, 0)), {ROTATION}),
    "upside down": ("mp4", lambda p: turned(encode(p), (-1, 0, 0, -1)), {ROTATION}),
    "mirrored": ("mp4", lambda p: turned(encode(p), (-1, 0, 0, 1)), {ROTATION}),
    "mirrored and turned": ("mp4", lambda p: turned(encode(p), (0, 1, 1, 0)), {ROTATION}),
    "the tag rotate": ("mkv", lambda p: encode(p, metadata={"rotate": "90"}), {ROTATION}),
    "10 bits": ("mp4", lambda p: encode(p, pixels="yuv420p10le"), {PIXELS}),
    "10 bits of 4:2:2": ("mp4", lambda p: encode(p, pixels="yuv422p10le"), {PIXELS}),
    "10 bits of 4:4:4": ("mp4", lambda p: encode(p, pixels="yuv444p10le"), {PIXELS}),
    "4:4:0": ("webm", lambda p: encode(p, codec="libvpx-vp9", pixels="yuv440p"), {PIXELS}),
    "16 bits": ("mkv", lambda p: encode(p, codec="ffv1", pixels="yuv420p16le"), {PIXELS, CODEC}),
    "alpha": ("mov", lambda p: encode(p, codec="qtrle", pixels="argb"), {PIXELS, CODEC}),
    "ProRes": ("mov", lambda p: encode(p, codec="prores_ks", pixels="yuv444p10le"),
               {PIXELS, CODEC}),
    "odd height, VP9": ("webm", lambda p: encode(p, codec="libvpx-vp9",
                                                 frames=gradient(6, 47, 64)), {HEIGHT}),
    "odd height, 4:2:2": ("mp4", lambda p: encode(p, pixels="yuv422p",
                                                  frames=gradient(6, 47, 64)), {HEIGHT}),
    "odd height, MPEG-4": ("avi", lambda p: encode(p, codec="mpeg4", frames=gradient(6, 47, 63)),
                           {HEIGHT}),
    "interlaced": ("mp4", lambda p: encode(p, options={"x264-params": "tff=1"}), {"interlacing"}),
    "cut at its end": ("mp4", lambda p: edited(encode(p, options=B_FRAMES), (750, 0)), {EDITS}),
    "cut in a group": ("mp4", lambda p: edited(encode(p, options=B_FRAMES), (750, 3)), {EDITS}),
    "cut and joined": ("mp4", lambda p: edited(encode(p, options=B_FRAMES), (250, 0), (500, 8)),
                       {EDITS, RATE}),
    "in another order": ("mp4", lambda p: edited(encode(p, options=B_FRAMES), (500, 8), (500, 0)),
                         {EDITS}),
    "no first key frame": ("mp4", lambda p: encode(p, options=B_FRAMES, dropped=2),
                           {"no key frame at its beginning"}),
    "no first key frame, mkv": ("mkv", lambda p: encode(p, options=B_FRAMES, dropped=1),
                                {"no key frame at its beginning"}),
    "two streams": ("mp4", footage.two_streams, {"several video streams"}),
    "a transport stream": ("ts", encode, {CONTAINER}),
    "Flash": ("flv", encode, {CONTAINER}),
    "variable rate": ("mp4", lambda p: encode(p, times=UNEVEN), {RATE}),
    "variable rate, mkv": ("mkv", lambda p: encode(p, times=UNEVEN), {RATE}),
    "variable rate, webm": ("webm", lambda p: encode(p, codec="libvpx-vp9", times=UNEVEN), {RATE}),
}  # fmt: skip
"""Files that readers disagree about: their ending, who makes them, and by which properties."""


def _of_a_run(path: Path, lossless: bool) -> Path:
    write_video(path, Clip(torch.from_numpy(gradient(9, 33, 31)), 15.9), lossless)
    return path


def made(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    ending, make, *_ = COMMON.get(name) or ODD[name]
    return make(folder / f"a.{ending}")


@pytest.mark.slow
@pytest.mark.skipif(video.decord is None, reason="no decord wheel")
@pytest.mark.parametrize("name", COMMON)
def test_readers_agree_on_common_files(name: str, tmp_path: Path) -> None:
    path = made(tmp_path, name)
    assert differences(path) == []
    assert content_name(path) == file_sha256(path), "what was made of them before counts on"
    timeline = read_timeline(path)
    assert timeline.alike
    everything = range(len(timeline.times))
    one = torch.stack(list(frames_with_pyav(path, timeline, everything)))
    assert torch.equal(one, read_video(path).frames)
    if one.shape[2] > 32:  # decord refuses frames of some widths
        other = torch.stack(list(frames_with_decord(path, timeline, everything)))
        assert torch.equal(one, other)
        rate = video.decord.VideoReader(str(path)).get_avg_fps()
        assert read_video(path).fps == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("name", ODD)
def test_odd_files_are_known_and_read_by_pyav_alone(name: str, tmp_path: Path) -> None:
    path = made(tmp_path, name)
    assert set(differences(path)) == ODD[name][2]
    assert content_name(path) == f"{file_sha256(path)}-reader2"
    assert sha256_of(content_name(path)) == file_sha256(path)
    timeline = read_timeline(path)
    assert not timeline.alike


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMMON, *ODD])
@pytest.mark.parametrize("decord", [True, False])
def test_a_critic_sees_what_the_importer_sees(
    name: str, decord: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path, name)
    whole = read_video(path)
    if not decord:
        monkeypatch.setattr(video, "decord", None)
    timeline = read_timeline(path)
    chosen = torch.stack(list(read_frames(path, timeline, range(len(timeline.times)))))
    assert torch.equal(chosen, whole.frames)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("turned clockwise", lambda f: np.rot90(f, -1, (1, 2))),
        ("upside down", lambda f: np.rot90(f, 2, (1, 2))),
        ("mirrored", lambda f: f[:, :, ::-1]),
        ("mirrored and turned", lambda f: f.swapaxes(1, 2)),
        ("the tag rotate", lambda f: np.rot90(f, -1, (1, 2))),
    ],
)
def test_frames_stand_upright(
    name: str, shown: Callable[[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    plain = read_video(encode(tmp_path / "plain.mp4")).frames.numpy()
    path = made(tmp_path, name)
    assert np.array_equal(read_video(path).frames.numpy(), shown(plain))


@pytest.mark.parametrize("name", [name for name in ODD if name.startswith("variable rate")])
def test_a_variable_rate_is_counted_by_time_stamps(name: str, tmp_path: Path) -> None:
    assert read_video(made(tmp_path, name)).fps == 5.5  # 11 intervals in 2 s


@pytest.mark.parametrize(
    ("name", "shown"),
    [("cut at its end", range(6)), ("cut in a group", range(3, 9)),
     ("cut and joined", [0, 1, 8, 9, 10, 11]),
     ("in another order", [8, 9, 10, 11, 0, 1, 2, 3])],
)  # fmt: skip
def test_edit_lists_are_followed(name: str, shown: range, tmp_path: Path) -> None:
    whole = read_video(encode(tmp_path / "whole.mp4", options=B_FRAMES)).frames
    cut = read_video(made(tmp_path, name)).frames
    assert torch.equal(cut, whole[list(shown)])


@pytest.mark.parametrize("picture", [True, False])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_of_several_streams_the_first_video_is_shown(
    picture: bool, ending: str, tmp_path: Path
) -> None:
    path = footage.two_streams(tmp_path / f"a.{ending}", picture)
    assert read_video(path).frames.shape == ((12, 64, 96, 3) if picture else (12, 48, 64, 3))


def test_a_copy_by_another_name_has_the_same_name(tmp_path: Path) -> None:
    path = made(tmp_path, "mirrored")
    shutil.copy(path, tmp_path / "b.mov")
    assert content_name(tmp_path / "b.mov") == content_name(path)


def test_an_audit_does_not_take_verdicts_on_a_video_lying_down(tmp_path: Path) -> None:
    plain, rotated = encode(tmp_path / "a.mp4"), made(tmp_path / "b", "turned clockwise")
    shelf = Shelf(tmp_path / "store")
    names = shelf.place([plain, rotated])
    assert names == {plain: file_sha256(plain), rotated: f"{file_sha256(rotated)}-reader2"}
    assert shelf.path("videos", names[rotated], ".mp4") == rotated
    assert Shelf(tmp_path / "store").place([rotated]) == {rotated: names[rotated]}
