"""What a table may call a file: web addresses, upload prefixes, separators of other systems."""

import base64
import binascii
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
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
    """Where a video lies beside its table: an address becomes the path within its repository.

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
    return unquote(ON_A_HUB.sub("", bare) if ON_A_HUB.match(bare) else bare.rpartition("/")[2])


def _parameter(address: str, name: str) -> str:
    """A parameter of an address, decoded; empty where it has none. A plus sign is one."""
    given = re.split(r"[?&#]", address)[1:]
    return unquote(next((one for one in given if one.startswith(f"{name}=")), "")[len(name) + 1 :])


def _unhidden(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_").decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return text


def _of_storage(address: str) -> str:
    """The path in an address such as s3://bucket/folder/a.mp4 or file:///folder/a.mp4."""
    try:
        return urlsplit(address).path.lstrip("/") or address
    except ValueError:
        return address


def spellings(path: str) -> Iterator[str]:
    """What a path of a table may mean, the literal first; each once."""
    known = [path]
    if len(path) > LONGEST:
        yield path
        return
    for step in (_decoded, _with_slashes, _without_query, _uploaded):
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


def _uploaded(path: str) -> str:
    """The name that a file of Label Studio's uploads had before."""
    if "upload/" not in path:
        return path
    folder, slash, name = path.rpartition("/")
    found = UPLOADED.fullmatch(name)
    return f"{folder}{slash}{found[1]}" if found else path


def tails(path: str) -> Iterator[str]:
    """A path without its root, then without its first folder, and so on, to its last name."""
    parts = [part for part in PurePosixPath(path).parts if part != "/"][-DEEPEST:]
    for start in range(len(parts)):
        yield "/".join(parts[start:])


def same_letters(folder: Path, path: str) -> Path | None:
    """A file whose name has the same letters in another normal form, as macOS writes them.

    None where there is none, or more than one.
    """
    if path.isascii():
        return None
    place = folder
    for part in PurePosixPath(path).parts:
        if part == ".." or part == "/":
            return None
        names = _by_letters(place).get(unicodedata.normalize("NFC", part), [])
        exact = [name for name in names if name == part] or names
        if len(exact) != 1:
            return None
        place /= exact[0]
    return place if os.path.isfile(place) else None


def before_upload(folder: Path, path: str) -> Path | None:
    """The file that Label Studio keeps under a name without blanks and most signs.

    None where there is none, or more than one.
    """
    found = UPLOADED.fullmatch(PurePosixPath(path).name)
    if "upload/" not in path or found is None:
        return None
    wanted = unicodedata.normalize("NFC", found[1])
    fits = [name for names in _by_letters(folder).values() for name in names
            if _kept(name) == wanted and os.path.isfile(folder / name)]  # fmt: skip
    return folder / fits[0] if len(fits) == 1 else None


def _kept(name: str) -> str:
    """What Django, which Label Studio is made with, makes of a file's name."""
    plain = unicodedata.normalize("NFC", name).strip().replace(" ", "_")
    return re.sub(r"[^-\w.]", "", plain)


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
