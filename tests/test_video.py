"""Video files and pictures: exact, deterministic, atomic, and errors that name the file."""

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from callbacks.videos import Picture, VideoLogger, to_mlflow
from ipo_lightning import video
from ipo_lightning.errors import InputError
from ipo_lightning.storage import store
from ipo_lightning.storage.store import Store, write_jsonl
from ipo_lightning.video import (
    Clip,
    animation,
    contact_sheet,
    encode_video,
    fitting_scale,
    frames_with_decord,
    gif,
    pad_to_even,
    read_timeline,
    read_video,
    spread,
    write_video,
)


def read_with_decord(path: Path) -> Clip:
    timeline = read_timeline(path)
    frames = list(frames_with_decord(path, timeline, range(len(timeline.times))))
    return Clip(torch.stack(frames), read_video(path).fps)


READERS = {
    "pyav": read_video,
    "decord": pytest.param(
        read_with_decord, marks=pytest.mark.skipif(video.decord is None, reason="no decord wheel")
    ),
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    """The hardest video to keep: uint8 noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def smooth(height: int = 48, width: int = 64, frames: int = 9) -> Tensor:
    """A moving gradient, which a lossy codec keeps well: uint8 (T, H, W, 3)."""
    t, y, x = torch.meshgrid(
        torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij"
    )
    return torch.stack([x + 4 * t, 3 * y, x + y], dim=-1).clamp(0, 255).to(torch.uint8)


# --- Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", list(READERS.values()), ids=list(READERS))
@pytest.mark.parametrize("shape", [(9, 32, 32, 3), (1, 32, 32, 3), (5, 33, 31, 3), (49, 30, 46, 3)])
def test_lossless_round_trip_is_bit_exact(
    read: object, shape: tuple[int, ...], tmp_path: Path
) -> None:
    clip = Clip(noise(*shape), 8.0)
    write_video(tmp_path / "a.mp4", clip, lossless=True)
    back = read(tmp_path / "a.mp4")  # type: ignore[operator]
    assert back.frames.dtype == torch.uint8
    assert torch.equal(back.frames, clip.frames)
    assert back.fps == 8.0


@pytest.mark.skipif(video.decord is None, reason="no decord wheel")
def test_both_readers_agree_on_a_lossy_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", Clip(smooth(), 8.0))
    one, other = (read(tmp_path / "a.mp4") for read in (read_with_decord, read_video))
    assert torch.equal(one.frames, other.frames)
    assert one.fps == other.fps
    assert (one.frames.int() - smooth().int()).abs().float().mean() < 4


@pytest.mark.parametrize("width", [1, 8, 16, 24])
def test_frames_that_decord_refuses_are_read_all_the_same(width: int, tmp_path: Path) -> None:
    frames = noise(3, width, width, 3)
    write_video(tmp_path / "a.mp4", Clip(frames, 8.0), lossless=True)
    assert torch.equal(read_video(tmp_path / "a.mp4").frames, frames)


def test_reads_without_decord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4", Clip(smooth(), 8.0), lossless=True)
    monkeypatch.setattr(video, "decord", None)
    assert torch.equal(read_video(tmp_path / "a.mp4").frames, smooth())


def test_odd_sizes_gain_an_edge_when_lossy(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", Clip(smooth(33, 47), 8.0))
    assert read_video(tmp_path / "a.mp4").frames.shape == (9, 34, 48, 3)
    frames = noise(2, 3, 5, 3)
    padded = pad_to_even(frames)
    assert torch.equal(padded[:, :3, :5], frames)
    assert torch.equal(padded[:, 3, :5], frames[:, 2])
    assert torch.equal(padded[:, :3, 5], frames[:, :, 4])


@pytest.mark.parametrize("lossless", [True, False])
def test_equal_clips_give_equal_bytes(lossless: bool) -> None:
    # Sizes that are no multiple of 16 and noise: where x264's macroblock tree was seen to differ.
    clips = [Clip(noise(6, h, w, 3, seed=h), 8.0) for h, w in ((26, 33), (21, 31), (36, 16))]
    first = [encode_video(clip, lossless) for clip in clips]
    for _ in range(5):
        assert [encode_video(clip, lossless) for clip in clips] == first


@pytest.mark.parametrize("fps", [6.0, 8.0, 15.9, 24000 / 1001])
def test_frame_rate_survives(fps: float, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", Clip(smooth(), fps))
    assert read_video(tmp_path / "a.mp4").fps == pytest.approx(fps, rel=1e-3)


def test_a_failed_write_leaves_the_old_file_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, Clip(smooth(), 8.0))
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(store.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_video(path, Clip(noise(3, 32, 32, 3), 8.0))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.mp4: no such file"):
        read_video(tmp_path / "none.mp4")


@pytest.mark.parametrize("content", ["junk", "truncated", "empty"])
def test_a_corrupt_file_is_named(content: str, tmp_path: Path) -> None:
    whole = encode_video(Clip(noise(9, 32, 32, 3), 8.0), lossless=True)
    damaged = {"junk": b"junk" * 99, "truncated": whole[: len(whole) // 2], "empty": b""}[content]
    (tmp_path / "bad.mp4").write_bytes(damaged)
    with pytest.raises(InputError, match=r"bad\.mp4: cannot be decoded"):
        read_video(tmp_path / "bad.mp4")


@pytest.mark.parametrize(
    "frames",
    [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
     torch.zeros(0, 8, 8, 3, dtype=torch.uint8)],
)  # fmt: skip
def test_wrong_frames_are_refused(frames: Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_video(Clip(frames, 8.0))


# --- Pictures ------------------------------------------------------------------------------------


def test_spread_keeps_both_ends() -> None:
    assert spread(5, 9) == [0, 1, 2, 3, 4]
    assert spread(49, 9) == [0, 6, 12, 18, 24, 30, 36, 42, 48]
    assert spread(1, 9) == [0]
    assert spread(9, 1) == [0]
    assert spread(0, 4) == []


def test_scale_reaches_96_px() -> None:
    assert [fitting_scale(h) for h in (32, 40, 96, 480)] == [3, 3, 1, 1]


def test_contact_sheet_places_frames_and_rows() -> None:
    one, other = noise(9, 32, 32, 3), noise(49, 32, 32, 3, seed=1)
    sheet = contact_sheet([one, other])
    assert sheet.size == (9 * 96 + 8 * 4 + 16, 2 * 96 + 3 * 8)
    pixels = torch.from_numpy(np.array(sheet))
    tile = pixels[8 + 96 + 8 :, 8 + 100 :][:96, :96]  # second row, second frame
    assert torch.equal(tile[::3, ::3], other[6])
    assert torch.equal(tile[1::3, 2::3], other[6])


def test_contact_sheet_cuts_long_captions() -> None:
    plain = contact_sheet([noise(2, 32, 32, 3)])
    sheet = contact_sheet([noise(2, 32, 32, 3)], ["a very long prompt " * 20])
    assert sheet.width == plain.width
    assert sheet.height == plain.height + 20


def test_contact_sheet_needs_a_video() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


def test_animation_is_exact_for_small_videos_and_loops() -> None:
    frames = noise(5, 32, 32, 3)
    picture = Image.open(io.BytesIO(animation(frames, 8.0)))
    assert (picture.n_frames, picture.size, picture.info["loop"]) == (5, (96, 96), 0)
    picture.seek(3)
    shown = torch.from_numpy(np.array(picture.convert("RGB")))
    assert torch.equal(shown[1::3, 1::3], frames[3])
    assert animation(frames, 8.0) == animation(frames, 8.0)
    still = Image.open(io.BytesIO(animation(frames[:1], 8.0, scale=1)))
    assert torch.equal(torch.from_numpy(np.array(still.convert("RGB"))), frames[0])


def test_gif_has_every_frame() -> None:
    picture = Image.open(io.BytesIO(gif(smooth(), 8.0, scale=1)))
    assert (picture.format, picture.n_frames, picture.size) == ("GIF", 9, (64, 48))


def test_gif_of_a_still_video() -> None:
    picture = Image.open(io.BytesIO(gif(torch.zeros(9, 32, 32, 3, dtype=torch.uint8), 8.0)))
    assert picture.size == (96, 96)


# --- TensorBoard ---------------------------------------------------------------------------------


def write_evaluation(root: Path, round_number: int, prompts: int) -> Path:
    """The evaluation of a round, two videos a prompt, in a run with the store beside it."""
    names = [
        [
            Store(root / "store").put_blob(
                "videos", encode_video(Clip(smooth(32, 32) + round_number + i + c, 8.0)), ".mp4"
            )
            for c in range(2)
        ]
        for i in range(prompts)
    ]
    rows = [
        {"prompt_index": i, "candidate": c, "prompt": f"prompt {i}", "video": names[i][c]}
        for i in range(prompts)
        for c in range(2)
    ]
    folder = root / "run" / f"round_{round_number}"
    write_jsonl(folder / "evaluation.jsonl", rows)
    return folder


def logged(root: Path, round_dir: Path, callback: VideoLogger) -> dict[str, Image.Image]:
    """What the callback writes of one round: tag -> picture."""
    logger = TensorBoardLogger(str(root), name="log")
    trainer = L.Trainer(
        accelerator="cpu", logger=logger, enable_progress_bar=False, enable_model_summary=False
    )
    callback.on_round_end(trainer, int(round_dir.name[6:]), round_dir)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return {
        tag: Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string))
        for tag in events.Tags()["images"]
    }


def test_video_logger_writes_moving_pictures_and_a_sheet(tmp_path: Path) -> None:
    write_evaluation(tmp_path, 0, 5)
    pictures = logged(tmp_path, write_evaluation(tmp_path, 1, 5), VideoLogger(n=3))
    assert set(pictures) == {
        "videos/0: prompt 0",
        "videos/1: prompt 2",
        "videos/2: prompt 4",
        "videos/base and policy",
    }
    moving, sheet = pictures["videos/0: prompt 0"], pictures["videos/base and policy"]
    assert (moving.format, moving.n_frames, moving.size) == ("GIF", 9, (96, 96))
    assert (sheet.format, sheet.height) == ("PNG", 6 * (96 + 20 + 8) + 8)  # base and round 1


def test_video_logger_shows_the_base_once_in_round_0(tmp_path: Path) -> None:
    pictures = logged(tmp_path, write_evaluation(tmp_path, 0, 2), VideoLogger())
    assert pictures["videos/base and policy"].height == 2 * (96 + 20 + 8) + 8


def test_video_logger_does_without_missing_videos(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path, 1, 2)
    assert logged(tmp_path, folder, VideoLogger(videos=lambda name: tmp_path / name)) == {}
    (folder / "evaluation.jsonl").unlink()
    assert logged(tmp_path, folder, VideoLogger()) == {}


class Taker(DummyLogger):
    """Has what Weights & Biases' logger has for videos."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[str, bytes, int]] = []

    def log_video(self, key: str, videos: list[Any], step: int, **more: list[str]) -> None:
        """Every setting is a list, one for each video."""
        assert {len(one) for one in more.values()} == {len(videos)}
        assert more["format"] == ["gif"]
        self.taken.append((key, videos[0].read(), step))

    def log_image(self, key: str, images: list[Image.Image], step: int) -> None:
        """Pictures of PIL."""
        self.taken.append((key, images[0].tobytes()[:1], step))


def test_videos_go_to_every_logger_that_takes_them(tmp_path: Path) -> None:
    """And one sentence says which does not, once."""
    taker = Taker()
    csv = CSVLogger(str(tmp_path))
    trainer = L.Trainer(
        accelerator="cpu", logger=[taker, csv], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    callback, folder = VideoLogger(n=2), write_evaluation(tmp_path, 1, 3)
    with pytest.warns(UserWarning, match="CSVLogger takes no videos") as warned:
        callback.on_round_end(trainer, 1, folder)
        callback.on_round_end(trainer, 1, folder)
    assert len(warned) == 1
    assert [key for key, _, _ in taker.taken[:3]] == ["videos/0", "videos/1",
                                                      "videos/base and policy"]  # fmt: skip
    assert taker.taken[0][1].startswith(b"GIF8")


def test_mlflow_gets_videos_as_artifacts() -> None:
    kept: dict[str, bytes] = {}

    def log_artifacts(run_id: str, folder: str, place: str) -> None:
        kept.update({f"{run_id}/{place}/{one.name}": one.read_bytes()
                     for one in Path(folder).iterdir()})  # fmt: skip

    logger = SimpleNamespace(run_id="run", experiment=SimpleNamespace(log_artifacts=log_artifacts))
    pictures = [Picture("videos/0: a", b"GIF8", "gif", (1, 1)), Picture("b", b"png", "png", (1, 1))]
    to_mlflow(cast(MLFlowLogger, logger), pictures, 7)
    assert kept == {"run/videos/step_7/0.gif": b"GIF8", "run/videos/step_7/1.png": b"png"}


def test_video_logger_does_without_loggers(tmp_path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    VideoLogger().on_round_end(trainer, 1, write_evaluation(tmp_path, 1, 1))
    with pytest.raises(InputError, match=r"n=0"):
        VideoLogger(n=0)
