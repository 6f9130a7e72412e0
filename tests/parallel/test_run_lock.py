"""One run at a time in a folder: live holders are named, dead ones make room."""

import errno
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from ipo_lightning.errors import InputError
from ipo_lightning.parallel import run_lock
from ipo_lightning.parallel.run_lock import HOLDER, held

HOLD = """
import sys
from pathlib import Path
from ipo_lightning.parallel.run_lock import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has the folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes)  # type: ignore[call-overload]
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def sign(folder: Path, **changes: object) -> None:
    """A holder's name, left by a process that ended without a word."""
    own = run_lock._this_process()._asdict()
    (folder / HOLDER).write_text(json.dumps({**own, "pid": 999, **changes}))


def test_a_folder_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with held(tmp_path / "new"):
            assert json.loads((tmp_path / "new" / HOLDER).read_text())["pid"] == os.getpid()
        assert not (tmp_path / "new" / HOLDER).exists()


@pytest.mark.slow
def test_a_live_holder_is_named_and_a_killed_one_makes_room(
    tmp_path: Path, other: "subprocess.Popen[str]"
) -> None:
    named = f"in use by process {other.pid} on host {socket.gethostname()} since"
    with pytest.raises(InputError, match=named), held(tmp_path):
        pass
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie: its pid is taken
    with held(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("left", ["nothing", "a dead process's name"])
def test_of_many_at_once_one_has_it(left: str, tmp_path: Path) -> None:
    if left != "nothing":
        sign(tmp_path)
    start, end = threading.Barrier(8), threading.Barrier(8)
    outcomes: list[str] = []

    def work() -> None:
        start.wait()
        try:
            with held(tmp_path):
                outcomes.append("held")
                end.wait()
        except InputError as error:
            outcomes.append(str(error))
            end.wait()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("held") == 1
    assert sum(f"process {os.getpid()} on host" in said for said in outcomes) == 7


def test_a_name_of_another_host_says_what_to_delete(tmp_path: Path) -> None:
    sign(tmp_path, host="elsewhere")
    with pytest.raises(InputError, match="process 999 on host elsewhere") as refused:
        held(tmp_path).__enter__()
    assert f"delete {tmp_path / HOLDER}" in str(refused.value)
    (tmp_path / HOLDER).unlink()
    with held(tmp_path):
        pass


def test_a_requeued_job_takes_over_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    sign(tmp_path, host="elsewhere")
    with pytest.raises(InputError, match="elsewhere"):  # as often started: another of its tasks
        held(tmp_path).__enter__()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with held(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff"])
def test_a_damaged_name_says_what_to_delete(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE", 1)
    (tmp_path / HOLDER).write_bytes(content)
    with pytest.raises(InputError, match="does not say by whom.*delete that file"):
        held(tmp_path).__enter__()
    assert (tmp_path / HOLDER).read_bytes() == content


def test_a_disk_without_locks_goes_by_the_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", unknown)
    with held(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} "), held(tmp_path):
        pass
    sign(tmp_path)
    with pytest.raises(InputError, match="if that process is dead"):
        held(tmp_path).__enter__()


def test_a_full_disk_leaves_no_nameless_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After room is made the same command goes on."""

    class Full(io.FileIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_lock, "open", Full, raising=False)
    with pytest.raises(OSError, match="No space left"), held(tmp_path):
        pass
    monkeypatch.undo()
    with held(tmp_path):
        pass
