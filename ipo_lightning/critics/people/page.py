"""The page that asks people: an HTML file that is opened from disk, without server or network.

It names no policy, candidate or round: videos are named by their hashes, and the left one is A in
the answers. Browsers do not play the lossless RGB of a store's small videos: such videos are
encoded again for the page, and enlarged if they are small.
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
"""Version of the page, part of the identity: raise it when the questions change."""
SMALL = 256  # px; videos of less height are enlarged to at least this, by whole factors
EMBED_MIB = 32.0
"""Default MiB of videos within a page."""


class Asked(NamedTuple):
    """A dimension with its question on the page."""

    name: str
    asks: str


KNOWN = {
    "VQ": "Visual quality: which looks better, frame by frame?",
    "MQ": "Motion quality: which moves better?",
    "TA": "Fit to the text: which shows better what the text says?",
    OVERALL: "All in all: which is better?",
}


class Media(NamedTuple):
    """The videos of a page."""

    addresses: list[str]
    """Data URLs, or paths relative to the page."""
    small: bool
    """Whether any was enlarged; the page then shows sharp pixels."""


def asked(dims: Iterable[str]) -> list[Asked]:
    """The dimensions in the order of the questions, the whole verdict last."""
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
        embed_mib: MiB of videos within the page; with more, they are files in the folder ``videos``
            next to it, which must be kept with the page.
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
    """The document; its content security policy allows its own style and script, and no network."""
    # In the style of the report.
    style = _part("report", "style.css") + _part("critics", "people", "page.css")
    script = _part("critics", "people", "page.js")
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "media-src data: file: 'self'; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(content).replace("<", "\\u003c")  # so that no text can close the element
    return Template(_part("critics", "people", "page.html")).substitute(
        policy=policy, style=style, script=script, data=data
    )


def videos_for_people(
    names: Sequence[str], find: Callable[[str], Path], folder: Path, embed_mib: float
) -> Media:
    """The videos as browsers play them, within the page or in a folder next to it."""
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
    """The bytes of an mp4 that browsers play, and whether it was enlarged."""
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
    """The hash that allows this inline style or script in a content security policy."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
