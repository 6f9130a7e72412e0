"""The store: content addressing, atomic writes, damage, fingerprints."""

import hashlib
import json
import math
import os
import warnings
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ipo_lightning.storage.store import (
    UMASK,
    Store,
    canonical,
    fingerprint,
    fingerprint_tensors,
    read_jsonl,
    replaced_file,
    replaced_folder,
    write_atomically,
    write_jsonl,
)


def files(folder: Path) -> list[str]:
    """Every file below a folder, temporary ones too."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def again(store: Store) -> Store:
    """The same folder as another process sees it: nothing is trusted yet."""
    return Store(store.root)


# -------------------------------------------------------------------- fingerprints


def test_a_fingerprint_does_not_know_the_order_of_a_dict() -> None:
    there = {"a": 1, "b": {"c": [1, 2], "d": None}}
    back = {"b": {"d": None, "c": [1, 2]}, "a": 1}
    assert fingerprint(there) == fingerprint(back)
    assert fingerprint(there) == fingerprint(json.loads(json.dumps(there)))
    assert fingerprint(there) == hashlib.sha256(canonical(there)).hexdigest()


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2], [2, 1]), ({"a": 1}, {"a": "1"}), (["ab", "c"], ["a", "bc"]), (None, ""), (1, True)],
)
def test_a_fingerprint_tells_values_apart(one: Any, other: Any) -> None:
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("value", [math.nan, math.inf, [0.0, -math.inf]])
def test_what_json_has_no_word_for_is_refused(store: Store, value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(value)
    with pytest.raises(ValueError, match="JSON"):
        store.put_record("verdicts", "ab", {"score": value})
    assert files(store.root) == []


def test_tensors_count_by_name_dtype_shape_and_values() -> None:
    base = torch.arange(6, dtype=torch.float32)
    variants = [
        {"w": base},
        {"v": base},
        {"w": base.reshape(2, 3)},
        {"w": base.reshape(3, 2)},
        {"w": base.double()},
        {"w": base.int()},
        {"w": base.view(torch.int32)},  # the same bytes
        {"w": base + torch.tensor([0, 0, 0, 0, 0, 1e-6])},
        {"w": base, "v": base},
        {"w": base[:3], "v": base[3:]},
        {"v": base[:3], "w": base[3:]},
        {},
    ]
    assert len({fingerprint_tensors(one) for one in variants}) == len(variants)


def test_tensors_count_whatever_their_order_strides_and_graph() -> None:
    table = torch.arange(6.0).reshape(2, 3)
    wanted = fingerprint_tensors({"a": table, "b": table.t().contiguous()})
    assert fingerprint_tensors({"b": table.t(), "a": table.clone().requires_grad_()}) == wanted


# -------------------------------------------------------------------- writing


def test_a_blob_is_named_by_its_bytes(store: Store) -> None:
    name = store.put_blob("videos", b"frames", ".mp4")
    assert name == hashlib.sha256(b"frames").hexdigest()
    assert files(store.root) == [f"videos/{name[:2]}/{name}.mp4"]
    assert store.path("videos", name, ".mp4").read_bytes() == b"frames"


def test_the_same_bytes_are_written_once(store: Store) -> None:
    name = store.put_blob("videos", b"frames", ".mp4")
    before = store.path("videos", name, ".mp4").stat().st_ino
    assert again(store).put_blob("videos", b"frames", ".mp4") == name
    assert store.path("videos", name, ".mp4").stat().st_ino == before


def test_tensors_come_back_bit_by_bit(store: Store) -> None:
    tensors = {"a": torch.randn(2, 3).t(), "b": torch.tensor([1, 2]), "c": torch.rand(3).bfloat16()}
    name = store.put_tensors("latents", tensors)
    back = again(store).get_tensors("latents", name)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert back[key].dtype == tensor.dtype
        assert torch.equal(back[key], tensor)


def test_a_failing_write_leaves_nothing_new(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert files(tmp_path) == []
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert files(tmp_path) == ["deep/file.json"]


def test_what_is_written_is_for_whom_the_umask_says(tmp_path: Path) -> None:
    """safetensors gives its files to their owner alone."""
    tensors = {"a": torch.zeros(2)}
    with replaced_folder(tmp_path / "policy") as folder:
        save_file(tensors, folder / "model.safetensors")
    with replaced_file(tmp_path / "lora.safetensors") as file:
        save_file(tensors, file)
    for written in (tmp_path / "policy" / "model.safetensors", tmp_path / "lora.safetensors"):
        assert written.stat().st_mode & 0o777 == 0o666 & ~UMASK


def test_a_row_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"score": 0.5}])
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(path, [{"score": 0.25}, {"score": math.nan}])
    assert read_jsonl(path) == [{"score": 0.5}]


def test_a_reader_sees_the_old_or_the_new_never_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last moment before the rename all bytes lie synced beside the untouched old file."""
    path, seen = tmp_path / "file", []
    write_atomically(path, b"old")
    rename, sync = os.replace, os.fsync

    def synced(handle: int) -> None:
        seen.append(("sync", os.fstat(handle).st_size))
        sync(handle)

    def renamed(source: Path, target: Path) -> None:
        seen.append((Path(source).read_bytes(), path.read_bytes()))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomically(path, b"newer")
    assert seen == [("sync", 5), (b"newer", b"old")]
    assert path.read_bytes() == b"newer"
    assert files(tmp_path) == ["file"]


def test_rows_survive_odd_characters(tmp_path: Path) -> None:
    rows = [{"prompt": 'a "red"\nring\u2028'}, {"prompt": "", "n": 1}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_two_writers_do_no_harm(store: Store) -> None:
    """Eight threads write the same and different artefacts at once."""
    content, start = os.urandom(1 << 16), Barrier(8)
    names, records = set(), [{"n": i, "text": "x" * 4096} for i in range(8)]

    def write(i: int) -> None:
        own = again(store)
        start.wait()
        names.add(own.put_blob("videos", content, ".mp4"))
        own.put_record("verdicts", "abcd", records[i])

    threads = [Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (name,) = names
    assert again(store).has_blob("videos", name, ".mp4")
    assert again(store).get_record("verdicts", "abcd") in records
    assert len(files(store.root)) == 2


def test_another_writer_may_be_a_moment_later(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was not there, and is by the time that this is dealt with, is no damage."""
    content, read = b"a video", Path.read_bytes

    def meanwhile(path: Path) -> bytes:
        if not path.exists():
            write_atomically(path, content)
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", meanwhile)
    assert store.get_record("verdicts", "ab") is None
    name = store.put_blob("videos", content, ".mp4")
    assert again(store).has_blob("videos", name, ".mp4")


# -------------------------------------------------------------------- damage


DAMAGE = pytest.mark.parametrize(
    "spoil",
    [lambda b: b[:-1], lambda b: b"", lambda b: bytes([b[0] ^ 1]) + b[1:], lambda b: b + b"x"],
)


@DAMAGE
def test_a_damaged_blob_is_named_removed_and_made_anew(store: Store, spoil: Any) -> None:
    name = store.put_tensors("latents", {"x": torch.arange(4)})
    path = store.path("latents", name, ".safetensors")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.warns(UserWarning, match=f"{name}.*damaged"):
        assert not again(store).has_blob("latents", name, ".safetensors")
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match=name):
        again(store).get_tensors("latents", name)
    assert again(store).put_tensors("latents", {"x": torch.arange(4)}) == name
    assert again(store).get_tensors("latents", name)["x"].tolist() == [0, 1, 2, 3]


def test_writing_over_a_damaged_blob_mends_it(store: Store) -> None:
    name = store.put_blob("videos", b"frames", ".mp4")
    store.path("videos", name, ".mp4").write_bytes(b"noise")
    with pytest.warns(UserWarning, match="damaged"):
        assert again(store).put_blob("videos", b"frames", ".mp4") == name
    assert store.path("videos", name, ".mp4").read_bytes() == b"frames"


def test_a_blob_that_vanishes_is_missed_even_where_it_was_trusted(store: Store) -> None:
    name = store.put_blob("videos", b"frames", ".mp4")
    store.path("videos", name, ".mp4").unlink()
    assert not store.has_blob("videos", name, ".mp4")
    store.put_blob("videos", b"frames", ".mp4")
    assert store.has_blob("videos", name, ".mp4")


def test_a_blob_that_another_process_drops_while_it_is_looked_at_is_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = store.put_blob("videos", b"frames", ".mp4")
    read = Path.read_bytes

    def read_too_late(path: Path) -> bytes:
        path.unlink()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_too_late)
    assert not again(store).has_blob("videos", name, ".mp4")


@DAMAGE
def test_a_damaged_record_is_named_and_removed(store: Store, spoil: Any) -> None:
    store.put_record("verdicts", "abcd", {"score": 0.5})
    path = store.path("verdicts", "abcd", ".json")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.warns(UserWarning, match="abcd.json is damaged"):
        assert store.get_record("verdicts", "abcd") is None
    assert not path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b'{"sha256":"00","value":1}',
        b'{"value":1}',
        b"[]",
        b"3",
        b"\xff\xfe",
        b'{"sha256":"00","value":NaN}',
    ],
)
def test_json_that_is_no_record_of_ours_is_damage(store: Store, content: bytes) -> None:
    path = store.path("verdicts", "abcd", ".json")
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert store.get_record("verdicts", "abcd") is None


def test_a_changed_value_in_a_record_is_damage(store: Store) -> None:
    store.put_record("verdicts", "abcd", {"score": 0.25})
    path = store.path("verdicts", "abcd", ".json")
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.75"))
    with pytest.warns(UserWarning, match="damaged"):
        assert store.get_record("verdicts", "abcd") is None


def test_records_come_back_and_missing_ones_are_silent(store: Store) -> None:
    rows = [{"video": "ab", "gauges": {"motion": 1.5}}]
    store.put_record("rollouts", "abcd", rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again(store).get_record("rollouts", "abcd") == rows
        assert again(store).get_record("rollouts", "ffff") is None
        assert not store.has_blob("videos", "ffff", ".mp4")


def test_a_record_is_replaced(store: Store) -> None:
    store.put_record("texts", "ab", {"blob": "1"})
    store.put_record("texts", "ab", {"blob": "2"})
    assert store.get_record("texts", "ab") == {"blob": "2"}
