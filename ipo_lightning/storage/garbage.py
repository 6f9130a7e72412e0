"""What in a store no run refers to.

A run refers to what the rows of its files name. Of records, a rollout's and an imported video's are
judged by the blobs that they name, an embedding's by its prompt; all others (verdicts, reference
errors, real clips, costs) are small or dear and always kept, with the blobs that they name.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ipo_lightning.errors import InputError
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.manifest import MANIFEST
from ipo_lightning.storage.run_files import DamagedFile, read_object, read_rows
from ipo_lightning.storage.store import LEFTOVER, fingerprint

NAME = re.compile(r"[0-9a-f]{64}")
JUDGED = ("rollouts", "imported")
"""Kinds of records that go with the blobs that they name."""
TEXTS = "texts"
PLACES = ("config.yaml", "rounds.jsonl", "round_*")
"""One of these is in the folder of a run."""


@dataclass
class References:
    """What some runs refer to."""

    blobs: set[str] = field(default_factory=set)
    """Names of latents and videos."""
    prompts: set[str] = field(default_factory=set)
    bases: set[str] = field(default_factory=set)
    """Identities of the base models; prompts are embedded with these."""
    all_bases: bool = True
    """Whether the base model of every run is known."""
    since: float = float("inf")
    """What was made or used after this (seconds since 1970) may be what a run is in the midst of,
    which its files do not name yet."""


def references_of(runs: Iterable[RunDir]) -> References:
    """What runs refer to.

    Raises:
        InputError: a folder holds no run, or a file of it cannot be read.
    """
    found = References()
    for run in runs:
        _add_run(found, run)
    return found


def check_run(run: RunDir) -> None:
    """Refuse a folder that holds no run.

    Raises:
        InputError: names it.
    """
    if not any(True for place in PLACES for _ in run.path.glob(place)):
        raise InputError(f"{run.path} holds no run: give the folders of runs (outputs/NAME)")


def _add_run(found: References, run: RunDir) -> None:
    check_run(run)
    for file in sorted(run.path.rglob("*.jsonl")):
        for row in read_rows(file, "put it back: what the run refers to cannot be told without it"):
            _add_names(found, row)
    base = (run.line(0) or {}).get("policy")
    found.all_bases &= isinstance(base, str)
    if isinstance(base, str):
        found.bases.add(base)
    found.since = min(found.since, _in_the_midst_since(run))


def _add_names(found: References, value: Any, key: str = "") -> None:
    """The blobs and prompts that a row names, at any depth."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _add_names(found, inner, name)
    elif isinstance(value, list):
        for inner in value:
            _add_names(found, inner, key)
    elif isinstance(value, str):
        if key in ("prompt", "caption"):
            found.prompts.add(value)
        elif NAME.fullmatch(value):
            found.blobs.add(value)


def _in_the_midst_since(run: RunDir) -> float:
    """When the round began that a run is in the midst of; infinite where it is in none."""
    done = {line["round"] for line in run.lines()}
    if not done:
        return 0.0
    if all(folder.number in done for folder in run.rounds()):
        return float("inf")
    files = [run.round(number).path / MANIFEST for number in done]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


# -------------------------------------------------------------------- the store


class Artefact(NamedTuple):
    """A file of a store."""

    path: Path
    kind: str
    size: int
    """Bytes."""
    used: float
    """When it was written, or a record last used, in seconds since 1970."""
    blobs: tuple[str, ...] = ()
    """Names of the blobs that a record names."""

    @property
    def name(self) -> str:
        """What it is called in the store."""
        return self.path.name.partition(".")[0]


class Garbage(NamedTuple):
    """What no run refers to, and how much is kept."""

    records: list[Artefact]
    blobs: list[Artefact]
    leftovers: list[Artefact]
    """Files of writers that were killed."""
    kept: dict[str, list[int]]
    """Kind -> files and bytes that are kept."""
    young: int
    """Files that no run refers to, but which are too young to tell."""


def garbage(root: Path, runs: References, limit: float) -> Garbage:
    """What in a store no run refers to.

    Args:
        limit: what was made or used after this time is kept (seconds since 1970).

    Raises:
        InputError: there is no such store.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder: give the store of the runs (outputs/store)")
    limit = min(limit, runs.since)
    out = Garbage([], [], [], {}, 0)
    kept, young = set(runs.blobs), 0
    needed = text_keys(runs)
    blobs = []
    for one in artefacts(root):
        if LEFTOVER.fullmatch(one.path.name):
            if one.used < limit:
                out.leftovers.append(one)
        elif one.path.suffix != ".json":
            blobs.append(one)
        elif _referred(one, runs, needed) and not _empty(root, one):
            kept.update(one.blobs)
            _count(out.kept, one)
        elif one.used >= limit:
            kept.update(one.blobs)
            young += 1
        else:
            out.records.append(one)
    for one in blobs:
        if one.name in kept:
            _count(out.kept, one)
        elif one.used >= limit:
            young += 1
        else:
            out.blobs.append(one)
    return out._replace(young=young)


def text_keys(runs: References) -> set[str] | None:
    """Keys of the embeddings that runs need; None: all, since a base model is not known."""
    if not runs.all_bases:
        return None
    prompts = {*runs.prompts, ""}  # the usual negative prompt
    return {fingerprint({"base": base, "prompt": p}) for base in runs.bases for p in prompts}


def _referred(record: Artefact, runs: References, texts: set[str] | None) -> bool:
    if record.kind == TEXTS:
        return texts is None or record.name in texts
    return record.kind not in JUDGED or not runs.blobs.isdisjoint(record.blobs)


def _empty(root: Path, record: Artefact) -> bool:
    """Whether all is gone that a record names."""
    if record.kind not in JUDGED or not record.blobs:
        return False
    return not any(
        (root / kind / name[:2] / f"{name}{suffix}").exists()
        for name in record.blobs
        for kind, suffix in (("latents", ".safetensors"), ("videos", ".mp4"))
    )


def _count(kept: dict[str, list[int]], one: Artefact) -> None:
    counts = kept.setdefault(one.kind, [0, 0])
    counts[0] += 1
    counts[1] += one.size


def artefacts(root: Path) -> Iterator[Artefact]:
    """The files of a store, one at a time; what vanishes meanwhile is passed over."""
    for kind in sorted(path for path in root.iterdir() if path.is_dir()):
        for folder in sorted(path for path in kind.iterdir() if path.is_dir()):
            with os.scandir(folder) as files:
                for file in files:
                    try:
                        yield _artefact(Path(file.path), kind.name, file.stat())
                    except FileNotFoundError:
                        continue


def _artefact(path: Path, kind: str, stat: os.stat_result) -> Artefact:
    names = _named_in(path) if path.suffix == ".json" and not path.name.startswith(".") else ()
    return Artefact(path, kind, stat.st_size, stat.st_mtime, names)


def _named_in(record: Path) -> tuple[str, ...]:
    """The blobs that a record's value names; a damaged record names none."""
    found = References()
    try:
        _add_names(found, read_object(record).get("value"))
    except DamagedFile:
        if not record.exists():
            raise FileNotFoundError(record) from None
    return tuple(sorted(found.blobs))


# -------------------------------------------------------------------- deleting


def delete(found: Garbage) -> tuple[int, int]:
    """Delete what no run refers to: records before the blobs that they name.

    A record that was used since it was listed stays, with its blobs.

    Returns:
        Files and bytes that were deleted.

    Raises:
        InputError: some could not be deleted; the others are.
    """
    spared: set[str] = set()
    failed: list[OSError] = []
    files = size = 0
    for one in (*found.records, *found.blobs, *found.leftovers):
        if one.name in spared or _used_since(one):
            spared.update(one.blobs)
            continue
        try:
            one.path.unlink(missing_ok=True)
        except OSError as error:
            failed.append(error)
            spared.update(one.blobs)
            continue
        files, size = files + 1, size + one.size
    if failed:
        raise InputError(
            f"{len(failed)} files could not be deleted ({failed[0]}), {files} others were"
        )
    return files, size


def _used_since(one: Artefact) -> bool:
    try:
        return one.path.stat().st_mtime > one.used
    except FileNotFoundError:
        return True


def rows_of(found: Garbage) -> list[dict[str, Any]]:
    """The table: by kind, what no run refers to and what is kept."""
    counts: dict[str, Mapping[str, list[int]]] = {}
    unreferred: dict[str, list[int]] = {}
    for one in (*found.records, *found.blobs):
        _count(unreferred, one)
    for one in found.leftovers:
        _count(unreferred, one._replace(kind="leftovers"))
    counts = {"unreferred": unreferred, "kept": found.kept}
    kinds: Sequence[str] = sorted({kind for by_kind in counts.values() for kind in by_kind})
    return [
        {
            "kind": kind,
            **{
                column: value
                for which, by_kind in counts.items()
                for column, value in zip(
                    (f"{which} files", f"{which} MiB"), _shown(by_kind.get(kind)), strict=True
                )
            },
        }
        for kind in kinds
    ]


def _shown(counts: list[int] | None) -> tuple[int, float]:
    files, size = counts or (0, 0)
    return files, round(size / 2**20, 1)


def long_ago(days: float) -> float:
    """The time so many days ago, in seconds since 1970."""
    return time.time() - 86400 * days
