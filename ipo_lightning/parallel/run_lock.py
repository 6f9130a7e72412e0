"""One run at a time in a folder, on one machine or on many that share a disk.

Two locks, since neither is enough alone:

- the kernel's on ``.lock`` ends with its process, however that ends: a killed run leaves nothing
  behind. Some network disks hold it within one host only, and some have none;
- ``lock.json`` is created where it is not there, which is atomic on every disk that hosts share,
  and names the holder. It outlives a killed process: on the same host the kernel's lock, once it
  is had, proves the holder dead, whoever has its pid now.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import write_atomically

KERNEL, HOLDER = ".lock", "lock.json"
PATIENCE = 20
"""Looks at a holder that has yet to write its name, 50 ms apart."""


class Holder(NamedTuple):
    """The process that has a folder."""

    host: str
    pid: int
    since: str
    job: str | None
    """SLURM's, and how often it was requeued; it never runs twice at once."""
    restarts: int


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone.

    Raises:
        InputError: another process has it, or a dead one of another host may; names host and pid.
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _kernel_lock(folder) as proves:
        own = _this_process()
        _sign(folder, own, proves)
        try:
            yield
        finally:
            if _holder(folder) == own:
                (folder / HOLDER).unlink(missing_ok=True)


@contextmanager
def _kernel_lock(folder: Path) -> Iterator[bool]:
    """Whether this disk has such locks: then no other process of this host has the folder."""
    lock = FileLock(folder / KERNEL, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(_in_use(folder, _live_holder(folder))) from error
    except (OSError, NotImplementedError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _sign(folder: Path, own: Holder, proves: bool) -> None:
    """Write ``lock.json``, if nobody has, or if who has is dead."""
    content = json.dumps(own._asdict()).encode()
    try:
        _create(folder / HOLDER, content)
    except FileExistsError as error:
        other = _holder(folder) or _live_holder(folder)
        if not _is_dead(other, own, proves):
            raise InputError(_in_use(folder, other)) from error
        write_atomically(folder / HOLDER, content)


def _create(file: Path, content: bytes) -> None:
    """Write a file that is not there, or leave none: an empty one would name nobody."""
    with open(file, "xb") as created:
        try:
            created.write(content)
            created.flush()
        except BaseException:  # the disk is full, or a signal came
            file.unlink()
            raise


def _is_dead(other: Holder | None, own: Holder, proves: bool) -> bool:
    if other is None:
        return False
    requeued = own.job is not None and own.job == other.job and own.restarts > other.restarts
    return requeued or (proves and other.host == own.host)


def _this_process() -> Holder:
    job = os.environ.get("SLURM_JOB_ID")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    host = socket.gethostname()
    return Holder(host, os.getpid(), since, job, int(restarts) if restarts.isdigit() else 0)


def _holder(folder: Path) -> Holder | None:
    """Who has signed; None where nobody has, or where it cannot be read."""
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads((folder / HOLDER).read_bytes()))
    return None


def _live_holder(folder: Path) -> Holder | None:
    """Who has signed and lives; one that has just come is given the time to sign."""
    for _ in range(PATIENCE):
        found = _holder(folder)
        if found and (found.host != socket.gethostname() or _lives(found.pid)):
            return found
        time.sleep(0.05)
    return found


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def _in_use(folder: Path, other: Holder | None) -> str:
    file = folder / HOLDER
    if other is None:
        return (
            f"{folder} is in use, and {file} does not say by whom: if no process works on this run "
            "any more, on any host, delete that file and give the same command again"
        )
    return (
        f"{folder} is in use by process {other.pid} on host {other.host} since {other.since}: wait "
        f"for its end, or give another name=NAME; if that process is dead, delete {file} and give "
        "the same command again"
    )
