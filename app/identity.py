"""What a run's results depend on beside its settings: the content of its files, and the code.

``identity.json`` in its folder holds the hashes of all files that it reads, and the versions that
it was made with, a row each time it went on under another one.
"""

import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from omegaconf import DictConfig
from tqdm import tqdm

import ipo_lightning
from app.entry import (
    PLACES,
    REPO,
    determining,
    differences,
    settings,
    settings_but_batches,
    within_clone,
)
from app.output import in_json
from app.renamed import with_new_names
from ipo_lightning.errors import InputError, readable
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import (
    file_sha256,
    fingerprint,
    folder_fingerprint,
    write_atomically,
)

IDENTITY = "identity.json"
FOLDERS = ("path", "model")
"""Settings that may name a folder by a single word; elsewhere it takes a slash to mean one."""
BASE = ("backbone.path", "backbone.start.")
"""The base model, and what it starts from, are known by the policy's identity."""
GROWING = {key for _, key in PLACES}
"""Settings whose files change as a run goes on, and are known by their content elsewhere."""
LIBRARIES = ("torch", "lightning", "diffusers", "transformers", "peft", "av")
"""Packages whose versions results depend on."""
OWN = ("ipo_lightning", "app", "callbacks", "data")
"""The project's own packages."""
NO_RESULTS = ("report", "planning", "hub", "audit", "comparison")
"""Folders of theirs that change no result."""


@runtime_checkable
class ReadsFiles(Protocol):
    """A part that reads files beside those that its settings name, such as a table's videos."""

    def inputs(self) -> Iterable[Path]:
        """These files, whether or not they are there."""
        ...


@dataclass(frozen=True)
class Identity:
    """What a run is made of, or goes on with.

    Args:
        settings: `settings`, and `settings_but_batches`, which are the same on any number of
            devices.
        files: that the settings name: path -> sha256. A machine that does a part of the stages may
            lack some.
        read: further files that the parts read: path -> sha256, None where there is no such file.
        lists: name -> fingerprint of what else it is made of: its prompts, the base model.
        versions: what made it -> version or hash.
    """

    settings: Sequence[Mapping[str, Any]] = ()
    files: Mapping[str, str | None] = field(default_factory=dict)
    read: Mapping[str, str | None] = field(default_factory=dict)
    lists: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def identity_of(
    cfg: DictConfig, parts: Iterable[object], lists: Mapping[str, Sequence[Any]]
) -> Identity:
    """Of a run as it would be begun now.

    Args:
        parts: those that are `ReadsFiles` are asked for their files.
    """
    bars = not in_json(cfg)
    read = [path for part in parts if isinstance(part, ReadsFiles) for path in part.inputs()]
    return Identity(
        settings_of(cfg),
        hashes(files_of(cfg), bars=bars),
        hashes(list(dict.fromkeys(read)), bars=bars),
        {name: fingerprint(list(rows)) for name, rows in lists.items()},
        versions_of(cfg),
    )


# -------------------------------------------------------------------- settings


def settings_of(cfg: DictConfig) -> list[dict[str, Any]]:
    """See `Identity`."""
    return [settings(cfg), settings_but_batches(cfg)]


def refuse_other_settings(
    run: RunDir, old: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse a run that was begun with other settings; see `Identity` for devices.

    The judge may be another one: it evaluates what is trained, see `other_judge`.

    Raises:
        InputError: names those that differ.
    """
    if changed := told_changes(old, now):
        raise InputError(
            f"{run.path} holds a run of other settings ({changed}); give another name=NAME"
        )


def told_changes(old: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> str:
    """The first settings that differ, but for the judge's; "" where none does."""
    return _shown(_but_judge(_changed(old, now)))


def _changed(old: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that differ; none where only the batches do, to match the devices."""
    changed = [list(differences(*both)) for both in zip(old, now, strict=True)]
    return changed[0] if all(changed) else []


JUDGE = "eval_critic"


def other_judge(old: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the settings of the judge differ, and no others."""
    changed = _changed(old, now)
    return bool(changed) and not _but_judge(changed)


def judge_named(settings: Mapping[str, Any]) -> str:
    """What people know a judge by: its model, else its class."""
    node = settings.get(JUDGE) or {}
    model = node.get("model") or (node.get("vlm") or {}).get("model")
    return str(model or str(node.get("_target_")).rpartition(".")[2])


def _but_judge(changed: Sequence[str]) -> list[str]:
    """Without what the judge alone depends on."""
    return [one for one in changed if not re.match(rf"{JUDGE}\b", one)]


def _shown(changed: Sequence[str]) -> str:
    return "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else "")


# -------------------------------------------------------------------- files


def files_of(cfg: DictConfig) -> list[Path]:
    """Files and folders that the settings name; folders of data are left to the parts."""
    texts = ((key, os.path.expanduser(value)) for key, value in _texts(determining(cfg)))
    return [Path(path) for path in dict.fromkeys(p for key, p in texts if _names_file(key, p))]


def _names_file(key: str, path: str) -> bool:
    last = key.rpartition(".")[2]
    if last in GROWING or key.startswith(BASE):
        return False
    means_folder = os.sep in path or last in FOLDERS
    in_data = key.startswith("data.")
    return os.path.isfile(path) or (means_folder and not in_data and os.path.isdir(path))


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Full key and value of every text."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _texts(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value, key)
    elif isinstance(node, str) and node:
        yield key, node


def hashes(paths: Sequence[Path], *, bars: bool = True) -> dict[str, str | None]:
    """Path, from the clone on where it lies in it, -> hash."""
    bar = tqdm(paths, "inputs: hashes", unit=" files", delay=2, disable=not bars)
    return {within_clone(str(path)): _hash(path) for path in bar}


def _hash(path: Path) -> str | None:
    with readable(path):
        if path.is_dir():
            return folder_fingerprint(path)
        return file_sha256(path) if path.exists() else None


# -------------------------------------------------------------------- versions


def versions_of(cfg: DictConfig) -> dict[str, str]:
    """Of the project, its code, the libraries, and whatever else the settings name by a target."""
    found = {"ipo_lightning": ipo_lightning.__version__, "code": code_hash()}
    for name in LIBRARIES:
        try:
            found[name] = version(name).partition("+")[0]  # +cpu and +cu128 are one version
        except PackageNotFoundError:
            continue
    targets = {value for key, value in _texts(determining(cfg)) if key.endswith("_target_")}
    return found | {name: digest for one in sorted(targets) for name, digest in _foreign(one)}


@functools.cache
def code_hash() -> str:
    """sha256 (hex) over the project's own modules that results depend on."""
    digest = hashlib.sha256()
    for folder in OWN:
        for file in sorted((REPO / folder).rglob("*.py")):
            place = file.relative_to(REPO)
            if place.parts[1] not in NO_RESULTS:
                digest.update(f"{place.as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _foreign(target: str) -> Iterator[tuple[str, str]]:
    """The module of somebody else's class or function, by its file's hash; it is loaded by now."""
    parts = target.split(".")
    if parts[0] in (*OWN, *LIBRARIES):
        return
    names = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    name = next((one for one in names if one in sys.modules), None)
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    if name and file and Path(file).is_file():
        yield name, file_sha256(Path(file))[:16]


# -------------------------------------------------------------------- on disk


def refuse_other_inputs(run: RunDir, old: Mapping[str, Any], now: Identity) -> None:
    """Refuse files or lists that are not what the run was begun with.

    Raises:
        InputError: names what has changed.
    """
    both = old["files"].keys() & now.files.keys()
    either = old["read"].keys() | now.read.keys()
    changed = {name for name in both if old["files"][name] != now.files[name]}
    changed |= {name for name in either if old["read"].get(name, "") != now.read.get(name, "")}
    lists = old["lists"].keys() & now.lists.keys()
    changed = changed or {name for name in lists if old["lists"][name] != now.lists[name]}
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise InputError(
            f"{run.path} was begun with other contents of {', '.join(sorted(changed)[:3])}{more}: "
            "restore what was there, or give another name=NAME"
        )


def refuse_other_version(
    run: RunDir, old: Mapping[str, Any], now: Identity, *, accept: bool
) -> None:
    """Refuse to go on with other code than the run was last made with; a judge's own may differ
    where the judge does.

    Raises:
        InputError: names what differs.
    """
    before, after = dict(old["versions"][-1]), dict(now.versions)
    if other_judge(old.get("settings", now.settings), now.settings):
        before, after = ({k: v for k, v in one.items() if k in before and k in after}
                         for one in (before, after))  # fmt: skip
    changed = list(differences(before, after))
    if changed and not accept:
        raise InputError(
            f"{run.path} was made with another version ({'; '.join(changed[:4])}), with which "
            "results may differ: go back to that version, give another name=NAME, or go on with "
            "accept_version=true"
        )


def read_identity(run: RunDir) -> dict[str, Any] | None:
    """What was written down; None where nothing was.

    Raises:
        InputError: it is damaged.
    """
    file = run.path / IDENTITY
    if not os.path.lexists(file):
        return None
    try:
        found = json.loads(file.read_bytes())
        if all(isinstance(found[name], dict) for name in ("files", "read", "lists")):
            _ = found["versions"][-1].items()
            if "settings" in found:
                found["settings"] = [with_new_names(one) for one in found["settings"]]
                _, _ = (one.items() for one in found["settings"])
            return dict(found)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        pass  # not our JSON: damaged, as below
    raise InputError(
        f"{file} is damaged: delete it to go on with the files and the version that are here now"
    )


def write_identity(run: RunDir, old: Mapping[str, Any] | None, now: Identity) -> None:
    """Write it down; a version that the run goes on with comes after those before it."""
    before = old["versions"] if old else []
    last = dict(now.versions)
    content = {
        "settings": list(now.settings),
        "files": {**(old["files"] if old else {}), **now.files},
        "read": dict(now.read),
        "lists": {**(old["lists"] if old else {}), **now.lists},
        "versions": before if before and before[-1] == last else [*before, last],
    }
    text = json.dumps(content, indent=1, sort_keys=True)
    write_atomically(run.path / IDENTITY, text.encode())
