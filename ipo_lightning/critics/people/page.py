"""The page that asks people: one HTML file that opens from disk, needs no server and no network.

It names no policy, candidate or round: videos go by their hashes, the left one is A in the answers.
Browsers refuse the lossless RGB of a store's small videos, so each is encoded for people, small
ones enlarged; what a browser plays already is taken as it is.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from ipo_lightning.critics.people.annotations import OVERALL
from ipo_lightning.critics.people.questions import Shown
from ipo_lightning.decoding.opening import opened
from ipo_lightning.storage.store import fingerprint, write_atomically
from ipo_lightning.video import Clip, encode_video, fitting_scale, read_video

PAGE = 1
"""Part of every page's identity: raise it when the same questions are asked otherwise."""
SMALL = 256  # px; videos less high are enlarged to at least this by whole factors
EMBED_MIB = 32.0
"""Default of how many MiB of videos a page holds itself; more lie beside it."""


class Asked(NamedTuple):
    """A dimension as the page asks for it."""

    name: str
    asks: str


KNOWN = {
    "VQ": "Visual quality: which looks better, frame by frame?",
    "MQ": "Motion quality: which moves better?",
    "TA": "Fit to the text: which shows better what the text says?",
    OVERALL: "All in all: which is better?",
}


class Media(NamedTuple):
    """Videos as a page holds them."""

    addresses: list[str]
    """Data URLs, or paths beside the page."""
    small: bool
    """Whether any was enlarged: its pixels are to stay sharp."""


def asked(dims: Iterable[str]) -> list[Asked]:
    """The dimensions in the order in which they are asked, the verdict as a whole last."""
    names = [*(name for name in dims if name != OVERALL), OVERALL]
    return [Asked(name, KNOWN.get(name, f"{name}: which is better?")) for name in names]


def write_page(
    path: Path,
    shown: Sequence[Shown],
    annotator: str,
    dims: Sequence[str],
    find: Callable[[str], Path],
    embed_mib: float = EMBED_MIB,
) -> Path:
    """Write the page of one annotator, atomically; returns its path.

    Args:
        find: the file of a video, by its name.
        embed_mib: MiB of videos that the page may hold itself; where there are more they lie in
            the folder ``videos`` beside it, and belong to it.
    """
    names = sorted({name for one in shown for name in (one.left, one.right)})
    media = videos_for_people(names, find, path.parent / "videos", embed_mib)
    place = {name: number for number, name in enumerate(names)}
    questions = [
        {"id": one.id, "prompt": one.prompt, "left": place[one.left], "right": place[one.right]}
        for one in shown
    ]
    content: dict[str, Any] = {
        "annotator": annotator,
        "dims": [one._asdict() for one in asked(dims)],
        "questions": questions,
        "names": names,
    }
    content["id"] = fingerprint([PAGE, content])[:16]
    content |= {"videos": media.addresses, "small": media.small}
    write_atomically(path, html(content).encode())
    return path


def html(content: dict[str, Any]) -> str:
    """The document; its policy admits its own style and script, and no network."""
    style = _part("report", "style.css") + _part("critics", "people", "page.css")  # both look alike
    script = _part("critics", "people", "page.js")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "media-src data: file: 'self'; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(content).replace("<", "\\u003c")  # nothing closes the element it stands in
    return Template(_part("critics", "people", "page.html")).substitute(
        policy=policy, style=style, script=script, data=data
    )


def videos_for_people(
    names: Sequence[str], find: Callable[[str], Path], folder: Path, embed_mib: float
) -> Media:
    """The videos as browsers play them, within the page or, where they are too many, beside it."""
    room = embed_mib * 2**20 * 3 / 4  # base64 takes a third more
    embedded: list[bytes] = []
    small = False
    for number, name in enumerate(names):
        content, enlarged = video_for_people(find(name))
        small |= enlarged
        if sum(map(len, embedded)) + len(content) > room:
            for earlier, held in zip(names, embedded, strict=False):
                write_atomically(folder / f"{earlier}.mp4", held)
            embedded, room = [], -1.0
        if room < 0:
            write_atomically(folder / f"{names[number]}.mp4", content)
        else:
            embedded.append(content)
    if room < 0:
        return Media([f"videos/{name}.mp4" for name in names], small)
    urls = ["data:video/mp4;base64," + base64.b64encode(one).decode() for one in embedded]
    return Media(urls, small)


def video_for_people(path: Path) -> tuple[bytes, bool]:
    """The bytes of an mp4 that browsers play, and whether its pixels were enlarged."""
    clip = read_video(path)
    scale = fitting_scale(clip.frames.shape[1], SMALL)
    if scale == 1 and plays(path):
        return path.read_bytes(), False
    frames = clip.frames.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return encode_video(Clip(frames, clip.fps)), scale > 1


def plays(path: Path) -> bool:
    """Whether browsers play a file as it is: H.264 in yuv420p, in an mp4."""
    with opened(path) as video:
        stream = video.stream.codec_context
        return path.suffix == ".mp4" and (stream.name, stream.pix_fmt) == ("h264", "yuv420p")


def _part(*name: str) -> str:
    """A text file of the library."""
    return files("ipo_lightning").joinpath(*name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A policy's word for exactly this inline style or script."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
