"""Parquet files, as `datasets` writes them: with videos inside, or with names alone."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from data.critic_datamodule import CriticDataModule
from data.prompts import read_prompts
from data.published import ImportedPreferences
from data.real import RealVideos
from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import Finder, Named, read_any, unpack, videos_of
from ipo_lightning.exchange.__main__ import main
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage import parquet
from ipo_lightning.storage.parquet import Embedded, embedded_files
from ipo_lightning.storage.store import Store, file_sha256
from ipo_lightning.storage.tables import rows_of
from ipo_lightning.video import Clip, encode_video
from tests.helpers import tiny

arrow = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
CPU = torch.device("cpu")
FILE = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])


def video(level: int) -> bytes:
    frames = torch.full((9, 16, 24, 3), level, dtype=torch.uint8)
    return encode_video(Clip(frames, 8.0), lossless=True)


A, B = video(10), video(90)
HASHES = [hashlib.sha256(content).hexdigest() for content in (A, B)]


def held(content: bytes, name: str | None = "a.mp4") -> dict[str, Any]:
    return {"bytes": content, "path": name}


def named(name: str) -> dict[str, Any]:
    return {"bytes": None, "path": name}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As `datasets` does: a video is a struct of its bytes and its name, or of its name alone."""
    columns = {
        name: FILE if isinstance(cell, dict) else None
        for row in rows for name, cell in row.items()
    }  # fmt: skip
    arrays = {
        name: arrow.array([row[name] for row in rows], type=kind) for name, kind in columns.items()
    }
    pq.write_table(arrow.table(arrays), path, row_group_size=2)
    return path


TABLES: dict[str, dict[str, Any]] = {
    "trl": {"prompt": "x", "chosen": held(A), "rejected": held(B, None)},
    "trl_points": {"prompt": "x", "completion": held(A), "label": True},
    "videoalign": {"prompt": "x", "path_A": held(A), "path_B": held(B), "VQ": "A"},
    "genai_bench": {"prompt": "x", "left_video": held(A), "right_video": held(B),
                    "vote_type": "leftvote"},
    "videofeedback": {"text prompt": "x", "video link": held(A), "visual quality": 3,
                      "temporal consistency": 2, "dynamic degree": 3,
                      "text-to-video alignment": 4, "factual consistency": 1},
    "canonical": {"pair_id": "1", "prompt": "x", "path_A": held(A), "path_B": held(B),
                  "Overall": "A"},
    "bare bytes": {"prompt": "x", "chosen": A, "rejected": B},
}  # fmt: skip


@pytest.mark.parametrize("format", TABLES)
def test_videos_inside_are_found_in_every_format(format: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [{**TABLES[format], "cover": held(b"a picture")}])
    (tmp_path / "a.mp4").write_bytes(b"another file of the same name")
    found = read_any(path)
    assert found.format == {"bare bytes": "trl"}.get(format, format)
    (row,) = [*found.pairs, *found.points]
    videos = videos_of(row)
    assert [one.sha256 for one in videos] == HASHES[: len(videos)]
    json.dumps(dict(row.extra))  # nothing of the bytes goes along
    store = Store(tmp_path / "store")
    with pytest.raises(InputError, match="it is not in the store"):
        Finder(found.folder, store).file(videos[0], row.place)
    unpack(path, videos, store)
    for one, content in zip(videos, (A, B), strict=False):
        assert Finder(found.folder, store).file(one, row.place).read_bytes() == content


def test_videos_that_are_only_named_lie_beside_the_table(tmp_path: Path) -> None:
    """What `datasets` writes where it was not told to embed: paths of the machine it ran on."""
    (tmp_path / "set").mkdir()
    for name, content in (("a.mp4", A), ("set/b.mp4", B)):
        (tmp_path / name).write_bytes(content)
    rows = [{"prompt": "x", "chosen": named("/home/ann/data/a.mp4"),
             "rejected": named("/home/ann/data/set/b.mp4")}]  # fmt: skip
    for path in (written(tmp_path / "a.parquet", rows), tmp_path / "a.jsonl"):
        if path.suffix == ".jsonl":
            path.write_text(json.dumps(rows[0]))
        found = read_any(path)
        files = [Finder(found.folder).file(one, "") for one in videos_of(found.pairs[0])]
        assert [file_sha256(file) for file in files] == HASHES


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CogVideoX:
    return CogVideoX(str(tiny.save_pipeline(tmp_path_factory.mktemp("pipeline"))))


def test_real_clips_may_lie_in_their_list(tmp_path: Path, policy: CogVideoX) -> None:
    rows = [{"video": held(A), "caption": "one"}, {"video": held(B), "caption": "two"}]
    source = RealVideos(str(written(tmp_path / "a.parquet", rows)))
    data = source.prepare(policy, Store(tmp_path / "store"), Workers(), CPU)
    assert [row.caption for row in data.rows] == ["one", "two"]
    for name, content in (("a", A), ("b", B)):
        (tmp_path / f"{name}.mp4").write_bytes(content)
    beside = [{"video": named("a.mp4"), "caption": "one"}, {"video": named("b.mp4"),
                                                            "caption": "two"}]  # fmt: skip
    source = RealVideos(str(written(tmp_path / "b.parquet", beside)))
    again = source.prepare(policy, Store(tmp_path / "store"), Workers(), CPU)
    assert [row.latents for row in again.rows] == [row.latents for row in data.rows]


def test_published_preferences_may_hold_their_videos(tmp_path: Path, policy: CogVideoX) -> None:
    rows = [TABLES["trl"], TABLES["trl"] | {"prompt": "held out "}]
    path = written(tmp_path / "a.parquet", rows)
    source = ImportedPreferences(str(path), held_out={"held out"})
    made = source.prepare("pairwise", policy, Store(tmp_path / "store"), Workers(), CPU)
    assert len(made.rows) == 1 and made.dropped == {"prompt is held out": 1}


def test_critics_train_on_videos_inside(tmp_path: Path) -> None:
    rows = [TABLES["trl"] | {"prompt": f"prompt {n}"} for n in range(20)]
    path = written(tmp_path / "a.parquet", rows)
    settings: dict[str, Any] = {"path": str(path), "validation": 0.5}
    data = CriticDataModule(["Overall"], lambda clips, prompts: {}, "pairwise",
                            store=Store(tmp_path / "store"), **settings)  # fmt: skip
    assert [file.read_bytes() for file in data.train[0].videos] == [A, B]
    with pytest.raises(InputError, match="no store was searched; give paths.store=DIR"):
        CriticDataModule(["Overall"], lambda clips, prompts: {}, "pairwise", **settings)


def test_an_import_puts_the_videos_beside_its_table(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [TABLES["trl"]])
    out = tmp_path / "new/pairs.jsonl"
    assert main(["import", f"path={path}", f"out={out}"]) == 0
    (row,) = read_any(out).pairs
    files = [Finder(out.parent).file(one, "") for one in videos_of(row)]
    assert [file.read_bytes() for file in files] == [A, B]


def test_prompts_of_a_parquet_file(tmp_path: Path) -> None:
    rows = [{"prompt": one} for one in ("a dog ", "a dog", "caf\u00e9", "cafe\u0301", "a\u2028b")]
    path = written(tmp_path / "a.parquet", rows)
    assert read_prompts(path) == ["a dog", "caf\u00e9", "a b"]
    with pytest.raises(InputError, match=r'row 1: expected \{"text": '):
        read_prompts(path, "text")
    written(path, [{"prompt": "x"}, {"prompt": None}])
    with pytest.raises(InputError, match="row 2: 'prompt' must be a prompt, got None"):
        read_prompts(path)


def test_a_column_of_pictures_is_not_held_in_memory(tmp_path: Path) -> None:
    row = {"prompt": "x", "chosen": held(A), "frames": [b"picture"], "deep": {"one": [held(B)]}}
    arrays = {name: arrow.array([cell]) for name, cell in row.items()}
    pq.write_table(arrow.table(arrays), tmp_path / "a.parquet")
    ((_, light),) = rows_of(tmp_path / "a.parquet")
    assert light["chosen"] == Embedded(HASHES[0], "a.mp4")
    assert len(json.dumps(light)) < 999


def test_a_text_that_grows_in_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A letter of the file for a hundred thousand of the table."""
    monkeypatch.setattr(parquet, "LARGEST", 2**20)
    path = tmp_path / "a.parquet"
    pq.write_table(arrow.table({"prompt": ["x" * 2**17] * 1000}), path)
    assert path.stat().st_size < 2**17
    with pytest.raises(InputError, match="more than 1 MiB of text; split it"):
        list(rows_of(path))


def test_damaged_files_end_in_a_sentence(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", [TABLES["trl"], TABLES["trl"]])
    whole = path.read_bytes()
    refused = 0
    for seed in range(60):
        draw = random.Random(seed)
        content = bytearray(whole)
        for _ in range(draw.choice((1, 3))):
            at = draw.randrange(len(content))
            content[at] = draw.randrange(256)
        path.write_bytes(bytes(content[: draw.choice((len(content), len(content), at))]))
        for read in (lambda p: list(rows_of(p)), lambda p: list(embedded_files(p)), read_prompts):
            try:
                read(path)
            except InputError as error:
                assert str(path) in str(error) and len(str(error).splitlines()) == 1
                refused += 1
    assert refused


def test_nothing_is_unpacked_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = written(tmp_path / "a.parquet", [TABLES["trl"]]), Store(tmp_path / "store")
    unpack(path, [Named("", HASHES[0])], store)
    assert not store.has_blob("videos", HASHES[1], ".mp4"), "only what is asked for"
    monkeypatch.setattr(parquet, "_rows", pytest.fail)
    unpack(path, [Named("", HASHES[0]), Named("b.mp4", HASHES[1]), Named("c.mp4")], store)
    unpack(tmp_path / "a.csv", [Named("", HASHES[1])], store)
