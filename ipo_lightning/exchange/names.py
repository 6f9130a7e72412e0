"""What a table may call a file: web addresses, upload prefixes, separators of other systems."""

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

ON_A_HUB = re.compile(r".*/resolve/[^/]+/")
"""What stands before a file's path within its repository."""
LOCAL_FILES = re.compile(r"/data/local-files/?\?")
"""Label Studio's address of a file of its machine, which the parameter ``d`` names."""
UPLOADS = "/data/upload/"
"""Label Studio's folder of uploaded files: a folder a project, eight letters before each name."""
UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")
LONGEST, DEEPEST = 4096, 16
"""Letters of a path that any system takes, and folders of one that is looked for in parts."""
DRIVE = re.compile(r"^[A-Za-z]:(?=[\\/])")


def video_path(value: str) -> str:
    """Where a video lies beside its table: an address becomes the path in its host or repository.

    Decoded it may lead anywhere, as any path of a table; `video_place` keeps it in the folder.
    """
    if LOCAL_FILES.search(value):
        return _parameter(value, "d") or value
    if "://" not in value:
        return value
    if not value.lower().startswith(("http://", "https://")):
        return _of_storage(value)
    bare = re.split(r"[?#]", value)[0]
    if UPLOADS in bare:
        return unquote(bare[bare.index(UPLOADS) + len("/data/") :])
    hidden = _parameter(value, "fileuri")  # Label Studio's address of a file in a cloud storage
    if hidden:
        return _of_storage(_unhidden(hidden))
    return unquote(ON_A_HUB.sub("", bare)) if ON_A_HUB.match(bare) else unquote(_of_host(bare))


def _parameter(address: str, name: str) -> str:
    """A parameter of an address, decoded; empty where it has none. A plus sign is one."""
    given = re.split(r"[?&#]", address)[1:]
    return unquote(next((one for one in given if one.startswith(f"{name}=")), "")[len(name) + 1 :])


def _unhidden(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_").decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return text


def _of_host(address: str) -> str:
    """The path in an address of the web: models may have their own folders of equal names."""
    return address.partition("://")[2].partition("/")[2]


def _of_storage(address: str) -> str:
    """The path in an address such as s3://bucket/folder/a.mp4 or file:///folder/a.mp4."""
    try:
        return urlsplit(address).path.lstrip("/") or address
    except ValueError:
        return address


def spellings(path: str) -> Iterator[str]:
    """What a path or an address of a table may mean, the literal first; each once."""
    if len(path) > LONGEST:
        yield path
        return
    known = list(dict.fromkeys((path, video_path(path))))
    for step in (_decoded, _with_slashes, _without_query):
        known += [step(one) for one in known]
    yield from dict.fromkeys(one for one in known if one)


def _decoded(path: str) -> str:
    """Without percent signs that stand for letters, however often they were encoded."""
    for _ in range(3):
        path = unquote(path)
    return path


def _with_slashes(path: str) -> str:
    """A path of Windows as one of other systems."""
    return DRIVE.sub("", path).replace("\\", "/")


def _without_query(path: str) -> str:
    return re.split(r"[?#]", path)[0]


def tails(path: str) -> Iterator[str]:
    """A path without its root, then without its first folder, and so on, to its last name."""
    parts = [part for part in PurePosixPath(path).parts if part != "/"][-DEEPEST:]
    for start in range(len(parts)):
        yield "/".join(parts[start:])


def alike(folder: Path, paths: Iterable[str]) -> list[Path]:
    """The files that the first of these paths may mean, though none is called so: as macOS writes
    names, or as Label Studio does. Several: the path tells too little to choose one."""
    known = list(paths)
    for find in (same_letters, before_upload):
        for path in known:
            if found := find(folder, path):
                return found
    return []


def ambiguity(path: str, found: Sequence[Path]) -> str:
    """The message about a path that several files fit."""
    names = " or ".join(ascii(place.name) for place in found[:2])
    return (
        f"{path[:200]} may be {names} in {found[0].parent}; rename one of them, or write into the "
        "table what the file is called there"
    )


def same_letters(folder: Path, path: str) -> list[Path]:
    """The files whose names have the same letters in another normal form, as macOS writes them."""
    if path.isascii():
        return []
    places = [folder]
    for part in PurePosixPath(path).parts:
        if part in ("..", "/"):
            return []
        places = [place / name for place in places for name in _composed(place, part)]
    return [place for place in places if os.path.isfile(place)]


def _composed(folder: Path, part: str) -> list[str]:
    """The names in a folder with the letters of ``part``: itself, if it is there."""
    names = _by_letters(folder).get(unicodedata.normalize("NFC", part), [])
    return [part] if part in names else names


def before_upload(folder: Path, path: str) -> list[Path]:
    """The files that may have been uploaded to Label Studio, which keeps them under a name with
    eight letters before it and without blanks and most signs."""
    name = unicodedata.normalize("NFC", PurePosixPath(path).name)
    found = UPLOADED.fullmatch(name)
    if "upload/" not in path or found is None:
        return []
    known = _by_letters(folder)
    names = known.get(name) or [
        one for several in known.values() for one in several if found[1] in _kept(one)
    ]
    return [folder / one for one in names if os.path.isfile(folder / one)]


def _kept(name: str) -> set[str]:
    """A file's name, and what Django, which Label Studio is made with, makes of it in either normal
    form: of the letters and accents of macOS only the letters stay."""
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    plain = [re.sub(r"[^-\w.]", "", form.strip().replace(" ", "_")) for form in forms]
    return {unicodedata.normalize("NFC", one) for one in (name, *plain)}


def _by_letters(folder: Path) -> Mapping[str, list[str]]:
    try:
        return _listed(str(folder), os.stat(folder).st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(64)
def _listed(folder: str, changed: int) -> Mapping[str, list[str]]:
    """The names in a folder by their composed form."""
    found: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        found.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return found
