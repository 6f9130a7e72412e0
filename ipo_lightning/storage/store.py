"""Content-addressed artefacts on disk, and the fingerprints that name them.

Two kinds of things lie in a store:

- a **blob** is bytes, named by their own sha256: ``latents/ab/ab12....safetensors``;
- a **record** is a small JSON value, named by the fingerprint of the question that it answers.

A blob checks itself (its name is its hash) and a record carries the hash of its value, so damage is
noticed on reading: the artefact is dropped with a warning that names it, and the caller makes it
anew. Whether a blob is there is seen without reading it: a round has thousands. Writes go to a
temporary name, are synced and renamed: a half-written artefact is never seen, and two processes
that write the same one do no harm. What belongs together is synced at the same time, and its record
comes last: see `Store.together`.
"""

import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from ipo_lightning.storage.run_files import DamagedFile, MissingFile, read_content, read_rows
from ipo_lightning.storage.writing import room_to_write

UMASK = os.umask(0o077)  # which can only be read by setting it
os.umask(UMASK)


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode()


def fingerprint(value: Any) -> str:
    """sha256 (hex) of what determines an artefact; the value must be plain JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):  # one at a time: a whole model is not copied
        digest.update(tensors_to_bytes({name: tensors[name].detach().cpu().contiguous()}))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes, which are read piece by piece.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


HEADER = 2**20
"""Bytes that the header of a blob of tensors may have; ours have about a hundred."""
START = 512
"""Bytes of a blob of tensors that are read at once to find its header."""
WHOLE = 64 * 2**20
"""Files up to this size, in bytes, enter a fingerprint whole; larger ones by samples."""
STRIDE, SAMPLE = 2**20, 4096
"""Of a larger one so many bytes are read at every multiple of the first number."""


def folder_fingerprint(folder: str | Path) -> str:
    """sha256 over the files of a model's folder.

    Of a file above 64 MiB its size and 4 KiB of every MiB are read: no matrix of a MiB or more is
    passed over, so that an adapter merged into a few layers makes another folder, and 16 GB take
    seconds. It is not a defence against forgery.
    """
    parts = []
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".md":
            parts.append([str(file.relative_to(folder)), sampled_hash(file)])
    return fingerprint(parts)


def sampled_hash(file: Path) -> str:
    """sha256 (hex) of a file, of a large one by samples, see `folder_fingerprint`."""
    size = file.stat().st_size
    if size <= WHOLE:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    digest = hashlib.sha256(json.dumps(size).encode())
    with open(file, "rb") as handle:
        for place in range(0, size, STRIDE):
            handle.seek(place)
            digest.update(handle.read(SAMPLE))
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, also after a power cut."""
    with replaced_file(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` once it is written and on disk."""
    temporary = _beside(path)
    with room_to_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            share(temporary)
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A new name under which a file or folder is written before it is renamed."""
    return path.with_name(f".{path.name}.{uuid4().hex}")


USED = 3600.0
"""Seconds after which a record that is in use is marked again."""
SYNCS = 16
"""Files that are synced at the same time."""


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files that appear whole or not at all, also after a power cut, in this order.

    All are synced before the first is renamed, and at the same time: a journal then commits them
    together, in about the time of one. A file that is there already is replaced.
    """
    names = {path: _beside(path) for path in files}
    try:
        for path, content in files.items():
            with room_to_write(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                names[path].write_bytes(content)
                share(names[path])
        _sync_together(names)
        for path, temporary in names.items():
            with room_to_write(path):
                os.replace(temporary, path)
    finally:
        for temporary in names.values():
            temporary.unlink(missing_ok=True)


def _sync_together(names: Mapping[Path, Path]) -> None:
    """Sync temporary files, each given by the path that it will have."""

    def synced(path: Path) -> None:
        with room_to_write(path):
            sync(names[path])

    with ThreadPoolExecutor(min(len(names), SYNCS) or 1, "sync") as pool:
        list(pool.map(synced, names))


def share(path: Path) -> None:
    """Let others read a file, or every file of a folder, as the umask says: safetensors writes for
    its owner alone."""
    for file in _files(path):
        file.chmod(0o666 & ~UMASK)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def sync(path: Path) -> None:
    """Make sure that a file, or every file of a folder, is on disk before it is renamed."""
    for file in _files(path):
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` once it is filled and on disk."""
    temporary = _beside(folder)
    with room_to_write(folder):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            share(temporary)
            sync(temporary)
            remove(folder)
            os.replace(temporary, folder)
        finally:
            remove(temporary)


LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}|\.update-\d+\.ckpt")
"""Names under which files and folders are written before they are renamed."""


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed in writing left in a folder and those in it."""
    for path in sorted(folder.rglob(".*")):
        if LEFTOVER.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines, atomically."""
    write_atomically(path, b"".join(canonical(dict(row)) + b"\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file.

    Raises:
        DamagedFile: see `ipo_lightning.storage.run_files.read_rows`.
    """
    return read_rows(path)


def _is_full(path: str, tensors: bool) -> bool:
    """Whether a file has the size that its header tells, or, if it is none of tensors, any size.

    A round has a hundred thousand of them: each is opened once, and no object is made of its path.

    Raises:
        OSError: there is no such file.
    """
    if not tensors:
        return os.stat(path).st_size > 0
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size, start = os.fstat(handle).st_size, os.read(handle, START)
        length = int.from_bytes(start[:8], "little")
        header = start[8 : 8 + length]
        if len(header) < length < HEADER:
            header += os.pread(handle, length - len(header), len(start))
        tensors_end = _tensor_bytes(header)
        return tensors_end is not None and size == 8 + length + tensors_end
    finally:
        os.close(handle)


@lru_cache(maxsize=256)
def _tensor_bytes(header: bytes) -> int | None:
    """Bytes of the tensors that the header of a safetensors file lists; None where it is no header.

    Latents of one shape have the same header.
    """
    try:
        parts = json.loads(header).values()
        ends = [one["data_offsets"][1] for one in parts if "data_offsets" in one]
        return int(max(ends, default=0))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None


class LostBlob(FileNotFoundError):
    """A blob that a record names is missing from the store, or was damaged and is removed."""


class Store:
    """A folder of blobs and records that runs, sweeps and ranks share."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._trusted: set[Path] = set()
        self._write: Callable[[Path, bytes], object] = write_atomically

    @contextmanager
    def together(self) -> Iterator["Store"]:
        """A store whose artefacts are written at the end of the context, together and in order.

        Put a record last, after the blobs that it names. Where an error leaves the context, nothing
        is written.
        """
        waiting: dict[Path, bytes] = {}
        unit = copy(self)
        unit._write = waiting.setdefault
        yield unit
        write_together(waiting)

    def path(self, kind: str, name: str, suffix: str) -> Path:
        """Where an artefact lies, whether or not it exists."""
        return Path(self._place(kind, name, suffix))

    def _place(self, kind: str, name: str, suffix: str) -> str:
        return f"{self.root}{os.sep}{kind}{os.sep}{name[:2]}{os.sep}{name}{suffix}"

    def put_blob(self, kind: str, content: bytes, suffix: str) -> str:
        """Store bytes; the name returned is their sha256 (hex)."""
        name = hashlib.sha256(content).hexdigest()
        path = self.path(kind, name, suffix)
        if not self.has_blob(kind, name, suffix):
            self._write(path, content)
        self._trusted.add(path)
        return name

    def lists(self, kind: str, name: str, suffix: str) -> bool:
        """Whether the blob is there and of its full size, as far as its start tells; what it holds
        is not read, see `check`. One of another size is removed with a warning."""
        try:
            full = _is_full(self._place(kind, name, suffix), suffix == ".safetensors")
        except OSError:
            return False
        if not full:
            self._drop(self.path(kind, name, suffix))
        return full

    def check(self, kind: str, name: str, suffix: str) -> Path:
        """Where the blob lies, which is there and whole, see `has_blob`.

        Raises:
            LostBlob: it is not.
        """
        path = self.path(kind, name, suffix)
        if not self.has_blob(kind, name, suffix):
            raise LostBlob(f"{path} is missing from the store or was damaged")
        return path

    def has_blob(self, kind: str, name: str, suffix: str) -> bool:
        """Whether the blob is there and whole.

        The bytes are hashed once in a process; a damaged file is removed with a warning.
        """
        path = self.path(kind, name, suffix)
        if path in self._trusted and path.exists():
            return True
        content = self._content(path)
        if content is None:
            return False
        if hashlib.sha256(content).hexdigest() != name:
            self._drop(path)
            return False
        self._trusted.add(path)
        return True

    def put_tensors(self, kind: str, tensors: Mapping[str, Tensor]) -> str:
        """Store named tensors as one safetensors blob."""
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return self.put_blob(kind, tensors_to_bytes(plain), ".safetensors")

    def get_tensors(self, kind: str, name: str) -> dict[str, Tensor]:
        """The tensors of a blob.

        Raises:
            LostBlob: the blob is not there or was damaged.
        """
        return tensors_from_bytes(read_content(self.check(kind, name, ".safetensors")))

    def put_record(self, kind: str, key: str, value: Any) -> None:
        """Store the JSON answer to the question whose fingerprint is ``key``."""
        wrapped = {"key": f"{kind}/{key}", "sha256": fingerprint(value), "value": value}
        self._write(self.path(kind, key, ".json"), canonical(wrapped))

    def get_record(self, kind: str, key: str) -> Any | None:
        """The answer, or None where it is missing or damaged (then removed with a warning).

        Records of older versions do not say which question they answer.
        """
        path = self.path(kind, key, ".json")
        content = self._content(path)
        if content is None:
            return None
        own = f"{kind}/{key}"
        try:
            wrapped = json.loads(content)
            value = wrapped["value"]
            if wrapped["sha256"] == fingerprint(value) and wrapped.get("key", own) == own:
                return value
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # not our JSON: damaged, as below
        self._drop(path)
        return None

    def mark_used(self, kind: str, key: str) -> None:
        """Note by its time that a record is in use, at most once an hour: see garbage."""
        place = self._place(kind, key, ".json")
        with suppress(OSError):  # gone meanwhile, or the store may only be read
            if time.time() - os.stat(place).st_mtime > USED:
                os.utime(place)

    @staticmethod
    def _content(path: Path) -> bytes | None:
        """The bytes of an artefact; None where it is not there, or a link to nothing.

        Raises:
            DamagedFile: a folder lies in its place, or it may not be read.
        """
        try:
            return read_content(path)
        except MissingFile:  # though another process may have written it by now
            return None
        except DamagedFile:
            if path.exists():
                raise
            return None

    @staticmethod
    def _drop(path: Path) -> None:
        warnings.warn(f"{path} is damaged; it is removed and made anew", stacklevel=3)
        path.unlink(missing_ok=True)
