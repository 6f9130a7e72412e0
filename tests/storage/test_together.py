"""Artefacts of a unit: written under temporary names, synced at the same time, the record last."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import Store, write_together


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def files(folder: Path) -> list[str]:
    """Every file below a folder, temporary ones too."""
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def put_unit(store: Store, value: float = 1.0) -> tuple[str, str]:
    """Two blobs and the record that names them."""
    with store.together() as unit:
        latents = unit.put_tensors("latents", {"latents": torch.full((3,), value)})
        video = unit.put_blob("videos", b"mp4 %f" % value, ".mp4")
        before = files(store.root)
        unit.put_record("rollouts", "ab" * 32, [{"latents": latents, "video": video}])
        assert files(store.root) == before  # nothing is seen before all of it is there
    return latents, video


def test_a_unit_is_what_its_parts_are_when_written_one_by_one(store: Store, tmp_path: Path) -> None:
    latents, video = put_unit(store)
    alone = Store(tmp_path / "alone")
    assert alone.put_tensors("latents", {"latents": torch.full((3,), 1.0)}) == latents
    assert alone.put_blob("videos", b"mp4 %f" % 1.0, ".mp4") == video
    fresh = Store(store.root)
    assert fresh.get_record("rollouts", "ab" * 32) == [{"latents": latents, "video": video}]
    assert fresh.has_blob("latents", latents, ".safetensors") and fresh.has_blob(
        "videos", video, ".mp4"
    )


def test_all_is_synced_before_anything_is_seen_and_the_record_comes_last(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        calls.append("sync")
        sync(handle)

    def replaced(old: Any, new: Any) -> None:
        calls.append(Path(new).parent.parent.name)
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    put_unit(store)
    assert calls == ["sync", "sync", "sync", "latents", "videos", "rollouts"]


def test_what_is_there_already_is_not_written_again(store: Store) -> None:
    _, video = put_unit(store)
    before = store.path("videos", video, ".mp4").stat().st_mtime_ns
    put_unit(store)
    assert store.path("videos", video, ".mp4").stat().st_mtime_ns == before


def test_an_error_within_leaves_nothing(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.together() as unit:
        unit.put_blob("videos", b"one", ".mp4")
        raise ZeroDivisionError
    assert files(store.root) == []


def test_an_error_in_writing_names_the_file_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"mp4|safetensors|json"):
        put_unit(store)
    assert files(store.root) == []


def test_nothing_to_write_is_no_error(tmp_path: Path) -> None:
    write_together({})
    assert files(tmp_path) == []
