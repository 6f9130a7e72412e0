"""Real clips: found in any list, cut to size, encoded once, counted where they are of no use."""

import csv
import hashlib
import json
import shutil
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor

from data import real
from data.real import RealVideos, choose_frames, fit, read_clip
from ipo_lightning import video
from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.draws.encoding import LeftOut, RealData, RealSource
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.shapes import clips as shapes_clips
from ipo_lightning.shapes.clips import ShapesClips
from ipo_lightning.shapes.prompts import parse, prompts, split_of
from ipo_lightning.storage.store import Store, fingerprint
from ipo_lightning.video import (
    Clip,
    encode_video,
    frames_with_decord,
    frames_with_pyav,
    read_frames,
    read_timeline,
    write_video,
)
from tests.helpers import tiny

CPU = torch.device("cpu")
SIZE = (tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH)
NEEDS_DECORD = pytest.mark.skipif(video.decord is None, reason="no decord wheel")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("pipeline"))


class Counting(CogVideoX):
    """Counts what is encoded."""

    encoded = 0

    def encode(self, frames: Tensor) -> Tensor:
        self.encoded += len(frames)
        return super().encode(frames)


@pytest.fixture
def policy(folder: Path) -> Counting:
    return Counting(str(folder))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def grey(levels: list[int], height: int = 16, width: int = 24) -> Tensor:
    """Plain frames of these grey levels, uint8 (T, H, W, 3)."""
    column = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None]
    return column.expand(-1, height, width, 3).contiguous()


def clip_file(
    path: Path, count: int = 9, fps: float = 8.0, first: int = 0, caption: str | None = None
) -> Path:
    """A lossless clip whose frame k has grey level first + k, with its caption beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, Clip(grey([first + k for k in range(count)]), fps), lossless=True)
    path.with_suffix(".txt").write_text(caption or f"a {path.stem} clip\n")
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips, one of them in a subfolder."""
    root = tmp_path / "clips"
    clip_file(root / "b.mp4", first=20)
    clip_file(root / "a.mp4", first=10)
    clip_file(root / "sub/c.mp4", first=30)
    return root


def prepare(
    source: RealSource, policy: CogVideoX, store: Store, workers: Workers | None = None
) -> RealData:
    return source.prepare(policy, store, workers or Workers(), CPU)


# --- Lists ---------------------------------------------------------------------------------------


def csv_list(root: Path, rows: list[dict[str, str]]) -> Path:
    with open(root / "list.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root / "list.csv"


def jsonl_list(root: Path, rows: list[dict[str, str]]) -> Path:
    (root / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return root / "list.jsonl"


def parquet_list(root: Path, rows: list[dict[str, str]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    pytest.importorskip("pyarrow.parquet").write_table(table, root / "list.parquet")
    return root / "list.parquet"


LISTS: dict[str, Callable[[Path, list[dict[str, str]]], Path]] = {
    "csv": csv_list,
    "jsonl": jsonl_list,
    "parquet": parquet_list,
}
ROWS = [("a.mp4", "a a clip"), ("b.mp4", "a b clip"), ("sub/c.mp4", "a c clip")]


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_gives_what_the_folder_gives(
    kind: str, clips: Path, policy: Counting, store: Store
) -> None:
    of_folder = prepare(RealVideos(str(clips)), policy, store)
    assert [Path(row.file).relative_to(clips).as_posix() for row in of_folder.rows] == [
        name for name, _ in ROWS
    ]
    assert [row.caption for row in of_folder.rows] == [caption for _, caption in ROWS]
    rows = [{"where": name, "what": text, "more": "1"} for name, text in ROWS]
    source = RealVideos(str(LISTS[kind](clips, rows)), video="where", caption="what")
    assert prepare(source, policy, store) == of_folder
    assert policy.encoded == 3


def test_a_list_keeps_its_order_and_takes_absolute_paths(clips: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link.MP4").symlink_to(clips / "a.mp4")
    rows = [{"video": str(clips / "b.mp4"), "caption": 'a "b", \n clip'},
            {"video": "link.MP4", "caption": "a"}]  # fmt: skip
    listed = RealVideos(str(csv_list(elsewhere, rows))).clips
    assert listed == [(clips / "b.mp4", 'a "b", clip'), (elsewhere / "link.MP4", "a")]


@pytest.mark.parametrize(
    ("written", "there"),
    [("a  b.mp4", "a  b.mp4"), (" a.mp4 ", "a.mp4"), (r"sub\c.mp4", "sub/c.mp4"),
     ("sub%2Fc.mp4", "sub/c.mp4"), ("a%20b.mp4", "a b.mp4"), ("e\u0301.mp4", "\u00e9.mp4"),
     ("\u00e9.mp4", "e\u0301.mp4"), ("./sub/../a.mp4", "a.mp4")],
)  # fmt: skip
def test_a_list_may_be_written_on_another_system(written: str, there: str, tmp_path: Path) -> None:
    clip_file(tmp_path / "clips" / there)
    (tmp_path / "clips/sub").mkdir(exist_ok=True)
    rows = [{"video": written, "caption": "e\u0301te\u0301 \u2028 a\u00a0dog"}]
    (clip,) = RealVideos(str(jsonl_list(tmp_path / "clips", rows))).clips
    assert clip.video.samefile(tmp_path / "clips" / there)
    assert clip.caption == "\u00e9t\u00e9 a dog"


def test_a_folder_is_searched_through_links_and_without_hidden_files(clips: Path) -> None:
    shutil.copy(clips / "a.mp4", clips / "._a.mp4")
    (clips / ".cache").mkdir()
    shutil.copy(clips / "a.mp4", clips / ".cache/x.mp4")
    (clips / "notes.md").write_text("about the clips")
    (clips / "sub/circle").symlink_to(clips)
    other = clip_file(clips.parent / "other/z.gif")  # an mp4 by another name, like so many
    (clips / "linked").symlink_to(other.parent)
    found = [one.video.relative_to(clips).as_posix() for one in RealVideos(str(clips)).clips]
    assert found == ["a.mp4", "b.mp4", "linked/z.gif", "sub/c.mp4"]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


WRONG = {
    "a.csv: no column": ("video,text\na.mp4,hello\n", r"a\.csv:2: no column 'caption' among"),
    "b.csv: no rows": ("video,caption\n", r"b\.csv: the list has no rows"),
    "c.csv: no file": ("video,caption\nnone.mp4,x\n", r"c\.csv:2: there is no file .*none\.mp4"),
    "c.csv: too long": (f"video,caption\n{'x' * 300}.mp4,x\n", r"c\.csv:2: there is no file"),
    "d.csv: no caption": ("video,caption\na.mp4, \n", r"d\.csv:2: 'caption' must be a text"),
    "e.csv: short row": ("video,caption\na.mp4\n", r"e\.csv:2: 'caption' must be a text, got None"),
    "f.csv: ending": ("video,caption\na.txt,x\n", r"f\.csv:2: 'a\.txt' is none of \.avi"),
    "g.csv: quotes": ('video,caption\na.mp4,"x\n', r"g\.csv cannot be read"),
    "h.jsonl: no JSON": ("video: a.mp4\n", r"h\.jsonl:1: not JSON"),
    "i.jsonl: no object": ("[1]\n", r"i\.jsonl:1: expected an object"),
    "j.jsonl: number": ('{"video": "a.mp4", "caption": 3}\n', r"j\.jsonl:1: 'caption' must be"),
    "k.jsonl: no column": ('\n{"file": "a.mp4"}\n', r"k\.jsonl:2: no column 'video' among file"),
    "l.xlsx: ending": ("x", r"l\.xlsx: give a folder, or a list: \.csv"),
    "m.mp4: one clip": ("x", r"m\.mp4: give a folder, or a list: \.csv"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_list_is_refused(case: str, clips: Path) -> None:
    text, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        RealVideos(write(clips / case.split(":")[0], text))


def test_a_list_that_is_no_text_is_refused(clips: Path) -> None:
    (clips / "a.csv").write_bytes(b"video,caption\na.mp4,\xff\xfe\n")
    with pytest.raises(InputError, match=r"a\.csv cannot be read: .*utf-8"):
        RealVideos(str(clips / "a.csv"))
    (clips / "a.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8"):
        RealVideos(str(clips))


def test_a_folder_without_clips_or_captions_is_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: there is no such folder or file"):
        RealVideos(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no \.avi.* in this folder"):
        RealVideos(str(tmp_path / "empty"))
    (clips / "b.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"b\.txt must be a text"):
        RealVideos(str(clips))
    (clips / "b.txt").unlink()
    with pytest.raises(InputError, match=r"b\.mp4: no caption; write it to b\.txt .*1 of 3"):
        RealVideos(str(clips))


def test_parquet_says_what_it_needs(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "pyarrow.parquet", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"list\.parquet: parquet needs .* pip install pyarrow"):
        RealVideos(write(clips / "list.parquet", "x"))


def test_a_damaged_parquet_is_refused(clips: Path) -> None:
    pytest.importorskip("pyarrow.parquet")
    with pytest.raises(InputError, match=r"list\.parquet is no parquet file"):
        RealVideos(write(clips / "list.parquet", "x"))


# --- Time ----------------------------------------------------------------------------------------


def levels(frames: Tensor | LeftOut) -> list[int]:
    """The grey level of each frame."""
    assert isinstance(frames, Tensor) and frames.dtype == torch.uint8
    return [int(level) for level in frames[:, 0, 0, 0]]


def evenly(count: int, fps: int) -> list[Fraction]:
    return [Fraction(k, fps) for k in range(count)]


@pytest.mark.parametrize(
    ("count", "fps", "expected"),
    [
        (9, 8, range(9)),
        (13, 8, range(2, 11)),  # the middle
        (17, 16, range(0, 17, 2)),  # every second frame
        (40, 16, range(11, 28, 2)),
        (25, 24, range(0, 25, 3)),
        (32, 30, [0, 4, 7, 11, 15, 19, 22, 26, 30]),  # 3.75 frames apart, the nearest
    ],
)
def test_frames_are_taken_from_the_middle_at_the_rate_of_the_policy(
    count: int, fps: int, expected: range, tmp_path: Path
) -> None:
    path = clip_file(tmp_path / "a.mp4", count, fps)
    frames = read_clip(path, SIZE, 8.0)
    assert isinstance(frames, Tensor) and frames.shape == (9, 16, 24, 3)
    assert levels(frames) == list(expected)


def test_times_count_and_not_places() -> None:
    times = [*evenly(9, 8), *(1 + Fraction(k, 32) for k in range(1, 33))]  # then four times as fast
    assert choose_frames(times, 17, 8) == [*range(9), *range(12, 41, 4)]
    shifted = [time + 7 for time in times]  # a file whose times do not begin at 0
    assert choose_frames(shifted, 17, 8) == choose_frames(times, 17, 8)


def test_of_two_equally_near_frames_the_earlier_is_taken() -> None:
    assert choose_frames(evenly(7, 24), 5, 16) == [0, 1, 3, 4, 6]
    assert choose_frames(evenly(1, 8), 1, 8) == [0]


@pytest.mark.parametrize(
    ("count", "fps", "reason"),
    [
        (8, 8, "too short"),
        (1, 8, "too short"),
        (16, 16, "too short"),
        (50, 7, "too few frames a second"),
        (8, 7, "too few frames a second"),
    ],
)
def test_short_and_slow_videos_are_not_stretched(count: int, fps: int, reason: str) -> None:
    assert choose_frames(evenly(count, fps), 9, 8) == LeftOut(reason)


def test_the_last_frame_stands_for_half_a_frame_after_it() -> None:
    assert choose_frames(evenly(13, 25), 5, 8) == [0, 3, 6, 9, 12]  # the last moment is 12.5
    assert choose_frames(evenly(12, 25), 5, 8) == LeftOut("too short")


def test_a_rate_of_television_passes_for_the_round_one() -> None:
    times = [Fraction(1001 * k, 24000) for k in range(60)]
    assert choose_frames(times, 49, 24) == list(range(5, 54))


# --- Space ---------------------------------------------------------------------------------------


def test_a_frame_of_the_right_size_is_kept() -> None:
    frame = torch.randint(0, 256, (16, 24, 3), dtype=torch.uint8)
    assert torch.equal(fit(frame, 16, 24), frame)


def test_the_crop_is_the_centre() -> None:
    stripes = torch.arange(44, dtype=torch.uint8)[None, :, None].expand(16, -1, 3)
    assert fit(stripes, 16, 24)[0, :, 0].tolist() == list(range(10, 34))
    portrait = stripes.transpose(0, 1)  # 44 x 16 -> 66 x 24, of which rows 25 to 40
    frame = fit(portrait, 16, 24)
    assert frame.shape == (16, 24, 3)
    middle = frame[:, 0, 0].float()
    torch.testing.assert_close(middle, (torch.arange(25, 41) + 0.5) / 1.5 - 0.5, rtol=0, atol=0.51)


@pytest.mark.parametrize("shape", [(17, 31), (480, 720), (5, 7), (719, 405), (16, 25), (100, 24)])
def test_any_size_covers_the_target(shape: tuple[int, int]) -> None:
    frame = torch.full((*shape, 3), 200, dtype=torch.uint8)
    assert torch.equal(fit(frame, 16, 24), torch.full((16, 24, 3), 200, dtype=torch.uint8))


def test_shrinking_does_not_alias() -> None:
    """A pixel-wide chequerboard becomes grey, and an edge does not leave the range of uint8."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    board = ((x + y) % 2 * 255).to(torch.uint8)[..., None].expand(-1, -1, 3)
    inside = fit(board, 16, 24)[2:-2, 2:-2].int()
    assert (inside - 128).abs().max() < 6
    edge = torch.where(x < 48, 0, 255).to(torch.uint8)[..., None].expand(-1, -1, 3)
    row = fit(edge, 16, 24)[0, :, 0]
    assert (row[0], row[-1]) == (0, 255)
    assert torch.equal(row, row.sort().values)


# --- Files ---------------------------------------------------------------------------------------


def turned(content: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An mp4 with a display matrix, as telephones write them."""
    a, b, c, d = (65536 * value for value in matrix)
    place = content.index(b"tkhd") + 44
    return (
        content[:place]
        + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        + content[place + 36 :]
    )


@pytest.mark.parametrize("reader", ["decord", "pyav"])
@pytest.mark.parametrize(
    ("matrix", "quarters"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)]
)
def test_a_telephone_held_upright_is_followed(
    reader: str,
    matrix: tuple[int, int, int, int],
    quarters: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = torch.randint(0, 256, (3, 32, 64, 3), dtype=torch.uint8)
    path = tmp_path / "a.mp4"
    path.write_bytes(turned(encode_video(Clip(frames, 8.0), lossless=True), matrix))
    if reader == "pyav":
        monkeypatch.setattr(video, "decord", None)
    timeline = read_timeline(path)
    read = torch.stack(list(read_frames(path, timeline, [0, 1, 2])))
    assert torch.equal(read, frames.rot90(quarters, (1, 2)))


@NEEDS_DECORD
@pytest.mark.parametrize("lossless", [True, False])
def test_both_readers_give_the_same_chosen_frames(lossless: bool, tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (30, 34, 50, 3), dtype=torch.uint8)
    path = tmp_path / "a.mp4"
    write_video(path, Clip(frames, 30.0), lossless=lossless)
    timeline = read_timeline(path)
    wanted = [3, 4, 4, 19, 29]
    one, other = (
        torch.stack(list(read(path, timeline, wanted)))
        for read in (frames_with_decord, frames_with_pyav)
    )
    assert torch.equal(one, other)
    if lossless:
        assert torch.equal(one, frames[wanted])


def test_clips_are_read_without_decord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip_file(tmp_path / "a.mp4", 17, 16)
    monkeypatch.setattr(video, "decord", None)
    assert levels(read_clip(path, SIZE, 8.0)) == list(range(0, 17, 2))


@NEEDS_DECORD
def test_pyav_goes_on_where_decord_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip_file(tmp_path / "a.mp4", 9)
    reader = video.decord.VideoReader

    class Failing:
        def __init__(self, *args: Any, **settings: Any) -> None:
            self.reader = reader(*args, **settings)

        def __len__(self) -> int:
            return len(self.reader)

        def __getitem__(self, index: int) -> Any:
            if index == 4:
                raise RuntimeError("decord gives up")
            return self.reader[index]

    monkeypatch.setattr(video.decord, "VideoReader", Failing)
    assert levels(read_clip(path, SIZE, 8.0)) == list(range(9))


def streamed(frames: Tensor, path: Path) -> bytes:
    """A lossy mp4 with its index in front, as the web has them, and tags of HD colours."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "10"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.colorspace = "yuv420p", 1
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_missing_end_behind_a_sound_index_is_seen(share: float, tmp_path: Path) -> None:
    """Such a file opens, and its first frames are sound."""
    frames = torch.randint(0, 256, (60, 32, 48, 3), dtype=torch.uint8)
    path = tmp_path / "a.mp4"
    whole = streamed(frames, path)
    assert isinstance(read_clip(path, SIZE, 8.0), Tensor)
    path.write_bytes(whole[: int(len(whole) * share)])
    answer = read_clip(path, SIZE, 8.0)
    assert isinstance(answer, LeftOut) and answer.reason == "damaged"


@NEEDS_DECORD
def test_both_readers_know_the_colours_of_hd(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    streamed(torch.randint(0, 256, (9, 32, 64, 3), dtype=torch.uint8), path)
    timeline = read_timeline(path)
    one, other = (
        torch.stack(list(read(path, timeline, range(9))))
        for read in (frames_with_decord, frames_with_pyav)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("ending", "codec", "pixels"),
    [("gif", "gif", "rgb8"), ("webm", "libvpx", "yuv420p"), ("mkv", "libx264", "yuv420p"),
     ("avi", "mpeg4", "yuv420p"), ("mov", "libx264", "yuv420p")],
)  # fmt: skip
def test_other_containers(ending: str, codec: str, pixels: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 72, pixels
        for frame in grey(list(range(0, 250, 10)), 48, 72).numpy():
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    shown = levels(read_clip(path, SIZE, 8.0))
    coarse = 40 if ending == "gif" else 8  # a palette of 3 bits a colour; lossy codecs
    for level, wanted in zip(shown, range(80, 170, 10), strict=True):
        assert abs(level - wanted) <= coarse


def test_sound_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = av.AudioFrame.from_ndarray(torch.zeros(1, 80).short().numpy(), "s16", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
    answer = read_clip(path, SIZE, 8.0)
    said = (
        "it has sound or pictures, but no video stream; give a file that shows the video, or leave"
    )
    assert answer == LeftOut("damaged", f"{said} it out")


# --- Latents -------------------------------------------------------------------------------------


def test_latents_are_those_of_the_cut_frames(clips: Path, policy: Counting, store: Store) -> None:
    data = prepare(RealVideos(str(clips)), policy, store)
    latents = store.get_tensors("latents", data.rows[1].latents)["latents"]
    assert latents.shape == policy.latent_shape and latents.dtype == torch.float32
    frames = grey(list(range(20, 29)))
    torch.testing.assert_close(latents, policy.encode(frames[None])[0])
    assert data.dropped == {}


def test_a_clip_is_encoded_once(clips: Path, policy: Counting, store: Store) -> None:
    first = prepare(RealVideos(str(clips)), policy, store)
    again = prepare(RealVideos(str(clips)), policy, Store(store.root))
    assert (again, policy.encoded) == (first, 3)
    shutil.copy(clips / "a.mp4", clips / "copy.mp4")  # the same contents by another name
    (clips / "copy.txt").write_text("a copy")
    more = prepare(RealVideos(str(clips)), policy, store)
    assert policy.encoded == 3
    assert [row.caption for row in more.rows] == ["a a clip", "a b clip", "a copy", "a c clip"]
    assert more.rows[2].latents == more.rows[0].latents


def test_files_are_not_hashed_again_in_a_process(
    clips: Path, policy: Counting, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = RealVideos(str(clips))
    first = prepare(source, policy, store)
    monkeypatch.delattr(real, "_content")
    assert prepare(source, policy, store) == first


@pytest.mark.slow
def test_another_size_rate_or_model_is_encoded_anew(
    clips: Path, folder: Path, store: Store, tmp_path: Path
) -> None:
    source = RealVideos(str(clips))
    other = tiny.save_pipeline(tmp_path / "other", seed=1)
    settings: list[dict[str, Any]] = [{}, {"num_frames": 5}, {"height": 24}, {"fps": 4}]
    for policy in [*(Counting(str(folder), **some) for some in settings), Counting(str(other))]:
        try:
            prepare(source, policy, store)
            assert policy.encoded == 3
        except InputError as error:  # 9 frames last 2 seconds at 4 a second
            assert policy.fps == 4 and "too short: 3" in str(error)


def test_a_changed_file_is_encoded_anew(clips: Path, policy: Counting, store: Store) -> None:
    before = prepare(RealVideos(str(clips)), policy, store)
    clip_file(clips / "b.mp4", first=90)
    after = prepare(RealVideos(str(clips)), policy, store)
    assert policy.encoded == 4
    changed = [a.latents != b.latents for a, b in zip(before.rows, after.rows, strict=True)]
    assert changed == [False, True, False]


def test_the_key_tells_what_an_earlier_reader_saw_otherwise(
    clips: Path, policy: Counting, store: Store
) -> None:
    """Latents of common files stay; those of a rotated one, made lying down, are not taken."""
    whole = (clips / "b.mp4").read_bytes()
    (clips / "b.mp4").write_bytes(turned(whole, (-1, 0, 0, -1)))
    prepare(RealVideos(str(clips)), policy, store)
    known = []
    for name in ("a.mp4", "b.mp4"):
        content = hashlib.sha256((clips / name).read_bytes()).hexdigest()
        clip = fingerprint({"recipe": 1, "file": content, "size": list(SIZE), "fps": 8.0})
        key = fingerprint({"policy": policy.identity, "clip": clip})
        known.append(store.get_record("real", key) is not None)
    assert known == [True, False]


def test_lost_latents_are_made_again(clips: Path, policy: Counting, store: Store) -> None:
    first = prepare(RealVideos(str(clips)), policy, store)
    store.path("latents", first.rows[0].latents, ".safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged; it is removed"):
        assert prepare(RealVideos(str(clips)), policy, Store(store.root)) == first
    assert policy.encoded == 4


@pytest.mark.parametrize("content", ["junk", "truncated", "empty"])
def test_a_damaged_file_is_named_counted_and_not_replaced(
    content: str, clips: Path, policy: Counting, store: Store
) -> None:
    whole = (clips / "b.mp4").read_bytes()
    damaged = {"junk": b"junk" * 99, "truncated": whole[: len(whole) // 2], "empty": b""}[content]
    (clips / "b.mp4").write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"b\.mp4 is left out: cannot be decoded") as caught:
        data = prepare(RealVideos(str(clips)), policy, store)
    assert len(caught) == 1
    assert [row.caption for row in data.rows] == ["a a clip", "a c clip"]
    assert (data.dropped, policy.encoded) == ({"damaged": 1}, 2)
    (clips / "b.mp4").write_bytes(whole)
    mended = prepare(RealVideos(str(clips)), policy, store)
    assert (len(mended.rows), mended.dropped, policy.encoded) == (3, {}, 3)


def test_a_damaged_file_is_tried_again_in_the_next_run(
    clips: Path, policy: Counting, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that has learnt a codec must not be held back by what it could not do before."""

    def cannot(path: Path) -> None:
        raise InputError(f"video {path}: cannot be decoded (unknown codec)")

    source = RealVideos(str(clips))
    with monkeypatch.context() as patch, pytest.warns(UserWarning) as caught:
        patch.setattr(real, "read_timeline", cannot)
        with pytest.raises(InputError, match=r"none of 3 real videos can be used \(damaged: 3\)"):
            prepare(source, policy, store)
    said = sorted(str(one.message) for one in caught)
    assert said[0] == f"real video {clips / 'a.mp4'} is left out: cannot be decoded (unknown codec)"
    assert len(prepare(source, policy, store).rows) == 3


def test_short_and_slow_clips_are_counted(
    clips: Path, policy: Counting, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_file(clips / "short.mp4", 5, first=40)
    clip_file(clips / "slow.mp4", 20, fps=4, first=50)
    clip_file(clips / "tiny.mp4", 1, first=70)
    data = prepare(RealVideos(str(clips)), policy, store)
    assert (len(data.rows), policy.encoded) == (3, 3)
    assert data.dropped == {"too few frames a second": 1, "too short": 2}
    monkeypatch.setattr(real, "read_timeline", pytest.fail)  # what is known is not found out again
    assert prepare(RealVideos(str(clips)), policy, store) == data


def test_nothing_left_is_an_error_with_counts(
    policy: Counting, store: Store, tmp_path: Path
) -> None:
    clip_file(tmp_path / "clips/a.mp4", 5)
    clip_file(tmp_path / "clips/b.mp4", 20, fps=4)
    message = (
        r"clips: none of 2 real videos can be used \(too few frames a second: 1, too short: 1\)"
    )
    with pytest.raises(InputError, match=message):
        prepare(RealVideos(str(tmp_path / "clips")), policy, store)


def test_an_unreadable_file_is_an_error(clips: Path, policy: Counting, store: Store) -> None:
    source = RealVideos(str(clips))
    (clips / "b.mp4").unlink()
    with pytest.raises(InputError, match=r"b\.mp4 cannot be read: No such file"):
        prepare(source, policy, store)


def test_two_ranks_share_the_work_and_agree(clips: Path, folder: Path, store: Store) -> None:
    """The second rank runs while the first waits for it, so each finds what the other made."""
    (clips / "b.mp4").write_bytes(b"junk")
    clip_file(clips / "short.mp4", 5, first=40)
    policies = [Counting(str(folder)), Counting(str(folder))]
    todo: list[Any] = []
    data: dict[int, RealData] = {}

    def leading(value: Any) -> Any:
        todo.append(value)
        return value

    def other() -> None:
        """The first rank's second barrier is where it waits for the second rank's part."""
        barriers.append(1)
        if len(barriers) == 2:
            told = iter(todo)
            second = Workers(1, 2, broadcast=lambda value: next(told))
            data[1] = prepare(RealVideos(str(clips)), policies[1], store, second)

    barriers: list[int] = []
    with pytest.warns(UserWarning) as caught:
        first = Workers(0, 2, other, leading)
        data[0] = prepare(RealVideos(str(clips)), policies[0], store, first)
    assert len(caught) == 1, "the leading rank warns for all"
    assert data[0] == data[1]
    assert data[0].dropped == {"damaged": 1, "too short": 1}
    assert [policy.encoded for policy in policies] == [1, 1]


# --- The world of shapes -------------------------------------------------------------------------


def shapes_policy(folder: Path) -> Counting:
    return Counting(str(folder), height=32, width=32)


@pytest.mark.slow
def test_shapes_clips_are_of_train_prompts_and_made_once(folder: Path, store: Store) -> None:
    policy = shapes_policy(folder)
    data = prepare(ShapesClips(n=62), policy, store)
    captions = [row.caption for row in data.rows]
    assert captions == [*prompts("train"), *prompts("train")[:2]]
    assert {split_of(parse(caption)) for caption in captions} == {"train"}
    assert len({row.latents for row in data.rows}) == 62  # a prompt's second clip is another
    assert policy.encoded == 62
    assert prepare(ShapesClips(n=62), policy, Store(store.root)) == data
    assert prepare(ShapesClips(n=9), policy, store).rows == data.rows[:9]
    assert policy.encoded == 62
    others = prepare(ShapesClips(n=3, seed=1), policy, store)
    assert not {row.latents for row in others.rows} & {row.latents for row in data.rows}


def test_shapes_clips_fit_no_other_model(policy: Counting, store: Store) -> None:
    with pytest.raises(InputError, match=r"\(9, 32, 32, 8\.0\), cogvideox makes \(9, 16, 24, 8\)"):
        prepare(ShapesClips(), policy, store)
    with pytest.raises(InputError, match=r"n=0: give a whole number, at least 1"):
        ShapesClips(n=0)


def test_a_source_that_gives_other_frames_is_a_mistake(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes_clips, "_given", lambda clip: clip[:5])
    with pytest.raises(ValueError, match=r"clip 0 .*must be uint8 \(9, 32, 32, 3\), got .*\(5,"):
        prepare(ShapesClips(n=1), shapes_policy(folder), store)
