"""What a round's files were when they were written: ``hashes.json``, which tells damage and edits.

It holds the sha256 of each file, the fingerprint of the policy and a copy of the round's line of
``rounds.jsonl``; it names its round and checks itself. A hash is written before its file: after a
kill between the two the file is missing or old, and is made anew.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ipo_lightning.storage.run_files import DamagedFile, read_object
from ipo_lightning.storage.store import canonical, file_sha256, fingerprint, write_atomically

MANIFEST = "hashes.json"


@dataclass(frozen=True)
class Manifest:
    """The content of ``hashes.json``."""

    round: int
    files: Mapping[str, str] = field(default_factory=dict)
    """Path within the round's folder -> sha256 (hex)."""
    lines: Mapping[str, int] = field(default_factory=dict)
    """Path of a JSON-lines file -> how many it has."""
    stats: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Path of a weights file -> (bytes, nanoseconds of its last change), see `unchanged`."""
    edited: tuple[str, ...] = ()
    """Paths of files that were edited by hand, and then used."""
    policy: str | None = None
    """Fingerprint of the round's policy, once it is exported."""
    line: Mapping[str, Any] | None = None
    """Of ``rounds.jsonl``, once the round is finished."""

    def unchanged(self, folder: Path, name: str) -> bool:
        """Whether a file of the round's folder is as it was written.

        Weights of the size and time that they had are not read: a run may have many of them, and
        whoever loads them does read them.
        """
        path, known = folder / name, self.stats.get(name)
        if known is not None and list(known) == stat_of(path):
            return True
        return hash_of(path) == self.files[name]

    def write(self, folder: Path) -> None:
        """Write it into a round's folder, atomically."""
        content = asdict(self)
        signed = content | {"sha256": fingerprint(content)}
        write_atomically(folder / MANIFEST, canonical(signed))


def read_manifest(folder: Path, number: int) -> Manifest:
    """The manifest of a round; an empty one where there is none, as in runs of older versions.

    Raises:
        DamagedFile: it is of another round.
    """
    path = folder / MANIFEST
    if not path.exists():
        return Manifest(number)
    try:
        content = read_object(path)
        whole = content.pop("sha256", None) == fingerprint(content)
    except DamagedFile as error:
        if path.is_dir():
            raise
        whole, content = False, {"fault": error.fault}
    if not whole:
        warnings.warn(
            f"{path} is damaged: what it does not say of the files of round {number} is not "
            "checked; they are taken as they are", stacklevel=2,
        )  # fmt: skip
        return Manifest(number)
    if content["round"] != number:
        cure = "put each round's own folder and file back"
        raise DamagedFile(path, f"it is of round {content['round']}", cure)
    return Manifest(**{**content, "edited": tuple(content["edited"])})


def sha256_of(content: bytes) -> str:
    """sha256 (hex) of bytes."""
    return hashlib.sha256(content).hexdigest()


def stat_of(path: Path) -> list[int] | None:
    """Bytes of a file and the time of its last change, in nanoseconds; None: it is none."""
    try:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns]
    except OSError:
        return None


def hash_of(path: Path) -> str | None:
    """sha256 (hex) of a file, read once in a process while it stays as it is; None: it is none."""
    try:
        stat = path.stat()
        return _hash_of(path, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _hash_of(path: Path, *_stat: int) -> str:
    return file_sha256(path)
