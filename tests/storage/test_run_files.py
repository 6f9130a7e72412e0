"""Files of a run: what is read of odd and damaged ones, and what their hashes tell."""

import errno
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipo_lightning.errors import InputError
from ipo_lightning.storage.layout import RoundDir, RunDir
from ipo_lightning.storage.manifest import MANIFEST
from ipo_lightning.storage.records import Candidate, Pair, Point, Verdict
from ipo_lightning.storage.run_files import DamagedFile, read_content, read_object, read_rows
from ipo_lightning.storage.store import Store, remove_leftovers, write_atomically
from ipo_lightning.storage.writing import CannotWrite, cause, room_to_write
from tests.helpers.damaged import dead_link, folder

PAIR = Pair(0, 3, "a ring", 0, 1, "l0", "l1", "v0", "v1", 0.5)
ROWS: dict[str, Any] = {
    "candidates": Candidate(3, "a ring", 0, 7, "l0", "v0", {"motion": 1.5}),
    "verdicts": Verdict(3, 0, "v0", "critic", 0.5),
    "pairs": PAIR,
    "points": Point(0, 3, "a ring", 0, "l0", "v0", True, 0.5),
}
"""A row of each file of rows."""


def a_round(folder: Path) -> RoundDir:
    """A round with every file of rows."""
    one = RunDir(folder).round(1)
    for name, row in ROWS.items():
        one.write(one.path / f"{name}.jsonl", [row, row])
    return one


def read(one: RoundDir, name: str) -> list[Any]:
    return list(getattr(one, name)())


ODD: list[Callable[[bytes], bytes]] = [
    lambda content: b"\xef\xbb\xbf" + content,
    lambda content: content.replace(b"\n", b"\r\n\r\n  \n"),
    lambda content: content.rstrip(b"\n"),
    lambda content: content.replace(b'":', b'" : '),
]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("change", ODD)
def test_what_editors_do_says_nothing(
    name: str, change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    one = a_round(tmp_path)
    file = one.path / f"{name}.jsonl"
    file.write_bytes(change(file.read_bytes()))
    assert read(one, name) == [ROWS[name]] * 2


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a\u2028ring\u0085"}\n', encoding="utf-8")
    assert read_rows(tmp_path / "rows.jsonl") == [{"prompt": "a\u2028ring\u0085"}]


def other(row: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(file.read_text() + row + "\n")


def in_place(old: str, new: str) -> Callable[[Path], object]:
    return lambda file: file.write_text(file.read_text().replace(old, new))


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda file: os.truncate(file, file.stat().st_size - 9), "line 2: not JSON"),
    "not UTF-8": (lambda file: file.write_bytes(file.read_bytes() + b"\xff"), "line 3: not UTF-8"),
    "NUL": (other("\0"), "line 3: not JSON"),
    "a list": (other("[1]"), "line 3: expected an object"),
    "NaN": (other('{"prompt_index": NaN}'), "line 3: not JSON"),
    "infinity": (other('{"prompt_index": 1e999}'), "line 3: not JSON"),
    "an unknown field": (other('{"colour": 1}'), "line 3: unknown field 'colour'"),
    "a field less": (other('{"prompt_index": 1}'), "line 3: missing .* required"),
    "another type": (in_place('"prompt_index":3', '"prompt_index":"3"'), "line 1: prompt_index=3"),
    "null": (in_place('"prompt_index":3', '"prompt_index":null'), "line 1: prompt_index=None"),
    "true": (in_place('"prompt_index":3', '"prompt_index":true'), "line 1: prompt_index=True"),
    "a folder": (folder, "a folder where a file should be"),
    "a dead link": (dead_link, "a link to .*nowhere, where nothing is"),
    "a link to itself": (loop, "symbolic links"),
    "gone": (Path.unlink, "missing"),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_with_file_line_and_cure(name: str, damage: str, tmp_path: Path) -> None:
    one = a_round(tmp_path)
    file = one.path / f"{name}.jsonl"
    spoil, said = DAMAGES[damage]
    spoil(file)
    with pytest.raises(DamagedFile, match=said) as error:
        read(one, name)
    message = str(error.value)
    assert str(file) in message and "; " in message and message.count("\n") < 3


def test_a_file_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(DamagedFile, match="Permission denied"):
        read_content(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"a": NaN}', "\ufeff", "[" * 10**5])
def test_an_object_is_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(text)
    with pytest.raises(DamagedFile):
        read_object(tmp_path / "one.json")


@pytest.mark.parametrize("kind", ["pairs", "points"])
def test_labels_that_lack_are_missed_by_every_reader(kind: str, tmp_path: Path) -> None:
    one = a_round(tmp_path)
    one.write_object(one.labelling_file, {"kept": 3})
    with pytest.raises(DamagedFile, match=r"2 labels, but labelling.json says that 3 were kept"):
        read(one, kind)


@pytest.mark.parametrize("content", [b"", b"{", b'{"rollout": "long", "critique": 2.5}', b"[]"])
def test_seconds_never_stop_a_run(content: bytes, tmp_path: Path) -> None:
    one = a_round(tmp_path)
    one.seconds_file.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.add_seconds("rollout", 1.5)
    assert one.seconds()["rollout"] == 1.5


def test_seconds_in_whose_place_a_folder_lies_are_left_out(tmp_path: Path) -> None:
    one = a_round(tmp_path)
    one.seconds_file.mkdir()
    with pytest.warns(UserWarning, match="seconds.json is"):
        one.add_seconds("rollout", 1.5)


# -------------------------------------------------------------------- hashes


def test_a_file_is_known_by_its_hash(tmp_path: Path) -> None:
    one = a_round(tmp_path)
    assert one.intact(one.pairs_file) and one.faults() == []
    one.pairs_file.write_text(one.pairs_file.read_text().replace("0.5", "0.4"))
    assert one.edited(one.pairs_file) and one.faults() == ["pairs.jsonl"]
    with pytest.warns(UserWarning, match="pairs.jsonl was edited by hand; it is used as it is"):
        one.adopt(one.pairs_file)
    assert one.faults() == [] and one.manifest().edited == ("pairs.jsonl",)
    one.pairs_file.unlink()
    with pytest.warns(UserWarning, match="pairs.jsonl is gone; it is made anew"):
        assert not one.intact(one.pairs_file)


@pytest.mark.parametrize("change", ODD)
def test_what_editors_do_is_no_edit(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    one = a_round(tmp_path)
    one.write_policy_file("abcd")
    whole = one.pairs_file.read_bytes()
    one.pairs_file.write_bytes(change(whole))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one.adopt(one.pairs_file)
    assert one.pairs_file.read_bytes() == whole and one.faults() == []


def test_an_edit_after_the_training_is_refused(tmp_path: Path) -> None:
    one = a_round(tmp_path)
    one.write_policy_file("abcd")
    one.pairs_file.write_text(one.pairs_file.read_text().replace("0.5", "0.4"))
    with pytest.raises(
        DamagedFile, match="changed since round 1 was trained with it.; put it back"
    ):
        one.adopt(one.pairs_file)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"round": 1, "files": {}, "sha256": "0"}'])
def test_damaged_hashes_are_no_hashes(content: bytes, tmp_path: Path) -> None:
    one = a_round(tmp_path)
    (one.path / MANIFEST).write_bytes(content)
    with pytest.warns(UserWarning, match="hashes.json is damaged.*taken as they are"):
        assert one.intact(one.pairs_file) and one.faults() == []


def test_hashes_of_another_round_are_refused(tmp_path: Path) -> None:
    one = a_round(tmp_path)
    one.path.rename(tmp_path / "round_2")
    with pytest.raises(DamagedFile, match="it is of round 1"):
        RunDir(tmp_path).round(2).manifest()


def test_a_round_without_hashes_is_read_as_ever(tmp_path: Path) -> None:
    one = a_round(tmp_path)
    (one.path / MANIFEST).unlink()
    one.pairs_file.write_text(one.pairs_file.read_text().replace("0.5", "0.4"))
    assert one.intact(one.pairs_file) and not one.edited(one.pairs_file) and not one.faults()
    assert [pair.margin for pair in one.pairs()] == [0.4, 0.4]


def test_what_a_finished_round_was_made_with_is_not_written_over(tmp_path: Path) -> None:
    run, one = RunDir(tmp_path), a_round(tmp_path)
    run.append({"round": 1})
    one.write(one.pairs_file, [PAIR, PAIR])
    with pytest.raises(DamagedFile, match="not what round 1 was made with.; put it back, or"):
        one.write(one.pairs_file, [PAIR])


def test_weights_are_read_where_their_time_or_size_has_changed(tmp_path: Path) -> None:
    one = RunDir(tmp_path).round(1)
    one.policy.mkdir(parents=True)
    file = one.policy / "weights.safetensors"
    file.write_bytes(b"weights")
    (one.policy / "README.md").write_text("for people")
    one.record_policy(one.policy)
    assert set(one.manifest().files) == {"policy/weights.safetensors"}
    assert one.policy_faults() == []
    stat = file.stat()
    file.write_bytes(b"Weights")
    assert one.policy_faults() == ["policy/weights.safetensors"]
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DamagedFile, match="not as round 1 was trained to.; put it back, or"):
        one.check_policy()  # as those do who load them


# -------------------------------------------------------------------- rounds.jsonl


def a_run(folder: Path) -> RunDir:
    run = RunDir(folder)
    for number in range(3):
        run.round(number).path.mkdir()
        run.append({"round": number, "score": number / 4})
    return run


LINES = [{"round": number, "score": number / 4} for number in range(3)]


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda file: file.write_text(""),
        lambda file: file.write_text(file.read_text()[:-3]),
        lambda file: file.write_text("".join(file.read_text().splitlines(True)[:1])),
        lambda file: file.write_text(file.read_text() * 2),
        lambda file: file.write_text(file.read_text().replace("0.25", "0.75")),
        lambda file: file.write_text(file.read_text().replace('"round":1', '"round":7')),
        lambda file: file.write_text(file.read_text().replace('"round":1', '"round":"1"')),
        lambda file: file.write_text(file.read_text().replace('"round":1', '"round":-1')),
        lambda file: file.write_text("[]\n"),
    ],
)
def test_lines_are_put_back_from_the_rounds_folders(spoil: Any, tmp_path: Path) -> None:
    run = a_run(tmp_path)
    spoil(run.rounds_file)
    with pytest.warns(UserWarning, match="rounds.jsonl is damaged .* made anew"):
        run.mend()
    assert read_rows(run.rounds_file) == run.lines() == LINES


def test_a_line_goes_with_the_folder_of_its_round(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    (run.round(2).path / MANIFEST).unlink()
    run.round(2).path.rmdir()
    with pytest.warns(UserWarning, match="rounds.jsonl is damaged .the line of round 2"):
        run.mend()
    assert run.lines() == LINES[:2]


def test_lines_of_an_older_version_get_their_copies(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    for number in range(3):
        (run.round(number).path / MANIFEST).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.mend()
    run.rounds_file.unlink()
    assert run.lines() == LINES


def test_damaged_lines_without_copies_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_text('{"round": 0}\n{"round": 0}\n')
    with pytest.raises(DamagedFile, match="two lines of round 0"):
        RunDir(tmp_path).lines()


# -------------------------------------------------------------------- the store


def test_records_that_change_places_are_damage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in ("ab01", "ab02"):
        store.put_record("verdicts", key, {"score": key})
    one, two = (store.path("verdicts", key, ".json") for key in ("ab01", "ab02"))
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)
    for key in ("ab01", "ab02"):
        with pytest.warns(UserWarning, match=f"{key}.json is damaged"):
            assert store.get_record("verdicts", key) is None


def test_records_of_older_versions_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put_record("verdicts", "ab01", {"score": 1})
    path = store.path("verdicts", "ab01", ".json")
    old = {name: value for name, value in json.loads(path.read_text()).items() if name != "key"}
    path.write_text(json.dumps(old))
    assert store.get_record("verdicts", "ab01") == {"score": 1}


@pytest.mark.parametrize("spoil", [dead_link, loop])
def test_a_link_to_nothing_in_the_store_is_no_artefact(spoil: Any, tmp_path: Path) -> None:
    store = Store(tmp_path)
    name = store.put_blob("videos", b"frames", ".mp4")
    spoil(store.path("videos", name, ".mp4"))
    again = Store(tmp_path)
    assert not again.has_blob("videos", name, ".mp4")
    assert again.put_blob("videos", b"frames", ".mp4") == name
    assert Store(tmp_path).has_blob("videos", name, ".mp4")


def test_a_folder_in_the_store_where_an_artefact_should_be_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.path("verdicts", "ab01", ".json").mkdir(parents=True)
    with pytest.raises(DamagedFile, match="a folder where a file should be.; remove the folder"):
        store.get_record("verdicts", "ab01")


# -------------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"no space left \(disk .* MiB free\)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"your quota is used up \(disk"),
        (OSError(errno.EFBIG, "File too large"), r"larger than a file may be there \(disk"),
        (RuntimeError("[enforce fail] PytorchStreamWriter failed writing file"), "no space left"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
            "no space",
        ),
        (Exception("Error: I/O error: No space left on device (os error 28)"), "no space left"),
        (OSError(errno.EROFS, "Read-only file system"), "it is read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "no permission to write there"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory"), "a file lies where a folder"),
        (OSError(errno.ESTALE, "Stale file handle"), "the network disk is gone"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "its name is too long"),
    ],
)
def test_a_full_or_closed_disk_is_named(error: Exception, said: str, tmp_path: Path) -> None:
    file = tmp_path / "not yet" / "there.json"
    with pytest.raises(CannotWrite, match=said) as raised, room_to_write(file):
        raise error
    assert str(file) in str(raised.value) and "the same command goes on" in str(raised.value)


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (KeyError("a"), RuntimeError("shapes differ"), InputError("no"), OSError(5000)):
        with pytest.raises(type(error), match=str(error)[:5]), room_to_write(tmp_path):
            raise error
    assert cause(FileNotFoundError(errno.ENOENT, "gone"), tmp_path) is None


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("")
    with pytest.raises(CannotWrite, match="a file lies where a folder should be"):
        write_atomically(tmp_path / "store" / "one.json", b"{}")


def test_leftovers_of_kills_are_removed_and_nothing_else(tmp_path: Path) -> None:
    mark = "0123456789abcdef" * 2
    left = [f".policy.{mark}", f"round_1/.policy.{mark}/deep", f"round_1/.pairs.jsonl.{mark}"]
    left += ["round_1/checkpoints/.update-000004.ckpt"]
    kept = [".hidden", "round_1/policy/a.json", "round_1/.notes.txt", ".git/HEAD"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert [name for name in left if (tmp_path / name).exists()] == []
    assert not (tmp_path / f"round_1/.policy.{mark}").exists()
    assert all((tmp_path / name).exists() for name in kept)


@pytest.mark.skipif(sys.platform != "linux", reason="of /proc")
def test_a_folder_that_there_can_be_none_of_is_named() -> None:
    with pytest.raises(CannotWrite, match="there can be no folder /proc/none"):
        write_atomically(Path("/proc/none/file"), b"")
