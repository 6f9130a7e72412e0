"""What tables of others call files, and that each name finds its file and no other."""

import re
import unicodedata
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.real import RealVideos
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import Finder, read_any, video_file, video_place, videos_of
from ipo_lightning.exchange.names import spellings, tails, video_path
from tests.exchange.test_exchange import CHOSEN, TASK, table

CAFE = "caf\u00e9 vid\u00e9o.mp4"
HIDDEN = urlsafe_b64encode(b"s3://bucket/set/1.mp4").decode().rstrip("=")

NAMES = {
    # Label Studio: files of its machine
    "http://host/data/local-files/?d=1.mp4": "1.mp4",
    "http://host:8080/data/local-files/?d=set/1.mp4": "set/1.mp4",
    "/data/local-files/?d=1.mp4": "1.mp4",
    "/data/local-files/?d=set/1.mp4": "set/1.mp4",
    "/data/local-files/?d=home/ann/set/1.mp4": "set/1.mp4",
    "https://host/studio/data/local-files?d=set%2F1.mp4": "set/1.mp4",
    "http://host/data/local-files/?d=a%20cat.mp4": "a cat.mp4",
    "/data/local-files/?d=a%20cat.mp4&x=1": "a cat.mp4",
    "/data/local-files/?d=a+b.mp4": "a+b.mp4",
    "/data/local-files/?d=caf%C3%A9%20vid%C3%A9o.mp4": CAFE,
    r"/data/local-files/?d=C:\Users\ann\set\1.mp4": "set/1.mp4",
    "http://host/data/local-files/?d=C%3A%5CUsers%5Cann%5Cset%5C1.mp4": "set/1.mp4",
    "/data/local-files/?d=cafe%CC%81%20vide%CC%81o.mp4": CAFE,
    # its uploads
    "/data/upload/3/ab12cd34-1.mp4": "1.mp4",
    "http://host/data/upload/3/ab12cd34-1.mp4": "1.mp4",
    "upload/3/ab12cd34-1.mp4": "1.mp4",
    "/data/upload/3/ab12cd34-kept.mp4": "ab12cd34-kept.mp4",
    "/data/upload/3/ab12cd34-a_cat.mp4": "a cat.mp4",
    "/data/upload/3/ab12cd34-what_now.mp4": "what now?.mp4",
    "/data/upload/3/ab12cd34-a%20cat.mp4": "a cat.mp4",
    "/studio/data/upload/3/ab12cd34-1.mp4?token=x": "1.mp4",
    "/data/upload/3/ab12cd34-caf%C3%A9_vid%C3%A9o.mp4": CAFE,
    "http://host/data/upload/3/ab12cd34-caf%C3%A9_vid%C3%A9o.mp4": CAFE,
    "/data/upload/3/ab12cd34-cafe_video.mp4": CAFE,  # Django drops the accents of macOS
    f"/data/upload/3/ab12cd34-{unicodedata.normalize('NFD', CAFE).replace(' ', '_')}": CAFE,
    # cloud storage
    f"http://host/tasks/7/resolve/?fileuri={HIDDEN}": "set/1.mp4",
    f"https://host/tasks/7/presign/?fileuri={b64encode(b's3://bucket/1.mp4').decode()}": "1.mp4",
    "s3://bucket/set/1.mp4": "set/1.mp4",
    "gs://bucket/deep/set/1.mp4": "set/1.mp4",
    "hf://datasets/owner/name@main/set/1.mp4": "set/1.mp4",
    "file:///home/ann/set/1.mp4": "set/1.mp4",
    "https://host/owner/name/resolve/main/set/1.mp4?download=true": "set/1.mp4",
    "https://cdn.host/elsewhere/set/1.mp4": "set/1.mp4",
    "https://cdn.host/1.mp4": "1.mp4",
    # percent signs
    "a%20cat.mp4": "a cat.mp4",
    "set/a%2520cat.mp4": "a cat.mp4",
    "set%2F1.mp4": "set/1.mp4",
    "100%.mp4": "100%.mp4",
    "a%41.mp4": "a%41.mp4",
    "1.mp4?token=x#t=3": "1.mp4",
    "a#1.mp4": "a#1.mp4",
    # Windows
    r"set\1.mp4": "set/1.mp4",
    r"C:\Users\ann\set\1.mp4": "set/1.mp4",
    r"C:\Users\ann\1.mp4": "1.mp4",
    r".\set\1.mp4": "set/1.mp4",
    r"\\server\share\set\1.mp4": "set/1.mp4",
    "C:/Users/ann/set/1.mp4": "set/1.mp4",
    r"set\a%20cat.mp4": "a cat.mp4",
    # other machines
    "/home/ann/set/1.mp4": "set/1.mp4",
    "elsewhere/set/1.mp4": "set/1.mp4",
    "./set/../1.mp4": "1.mp4",
    # letters of macOS
    CAFE: CAFE,
    unicodedata.normalize("NFD", CAFE): CAFE,
    unicodedata.normalize("NFD", f"elsewhere/{CAFE}"): CAFE,
    "\u00fcber/e\u0301t\u00e9.mp4": "u\u0308ber/\u00e9te\u0301.mp4",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file for each that is to be found, beside private ones outside."""
    folder = tmp_path / "inside"
    for name in {*NAMES.values(), "a%41.mp4", "ab12cd34-kept.mp4", "kept.mp4"}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    for name in ("1.mp4", "private.mp4", "etc/passwd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("private")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_name_finds_its_file(name: str, folder: Path) -> None:
    assert video_file(folder, video_path(name)).read_text() == NAMES[name]


FORMATS: dict[str, Callable[[str], dict[str, Any]]] = {
    "label_studio": lambda name: {
        "data": TASK | {"left": name}, "annotations": [{"result": [CHOSEN]}]
    },
    "label_studio with path_A": lambda name: {
        "data": TASK | {"path_A": name}, "annotations": [{"result": [CHOSEN]}]
    },
    "canonical": lambda name: {"pair_id": "1", "prompt": "x", "path_A": name, "path_B": "b.mp4",
                               "Overall": "A"},
    "trl": lambda name: {"prompt": "x", "chosen": name, "rejected": "b.mp4"},
    "trl_points": lambda name: {"prompt": "x", "completion": name, "label": True},
    "videoalign": lambda name: {"path_A": name, "path_B": "b.mp4", "prompt": "x", "VQ": "A",
                                "MQ": "A", "TA": "A", "Overall": "A"},
    "genai_bench": lambda name: {"prompt": "x", "left_video": name, "right_video": "b.mp4",
                                 "vote_type": "leftvote"},
}  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_finds_its_files(format: str, folder: Path) -> None:
    """One table with all the names, which no format reads in its own way."""
    names = list(NAMES)
    found = read_any(table(folder / "rows.json", [FORMATS[format](name) for name in names]))
    videos = [videos_of(row)[0] for row in (*found.pairs, *found.points)]
    finder = Finder(folder)
    told = [finder.file(video, "row").read_text() for video in videos]
    assert dict(zip(names, told, strict=True)) == NAMES


@pytest.mark.parametrize("column", ["video", "path"])
def test_a_list_of_real_clips_finds_its_files(column: str, folder: Path) -> None:
    moved = r"elsewhere|home|Users|server|deep|hf:|set.a%"  # a list of one's own tells the folder
    here = [name for name in NAMES if not re.search(moved, name)]
    rows = [{column: name, "caption": NAMES[name]} for name in here]
    clips = RealVideos(str(table(folder / "clips.json", rows)), video=column).clips
    for clip in clips:  # captions are composed
        assert unicodedata.normalize("NFC", clip.video.read_text()) == clip.caption  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name",
    [
        "../private.mp4", r"..\private.mp4", "%2e%2e/private.mp4", "%252e%252e%252fprivate.mp4",
        r"C:\..\..\private.mp4", "set/../../private.mp4", "/data/local-files/?d=../private.mp4",
        "http://host/data/local-files/?d=%2e%2e/private.mp4", "file:///../private.mp4",
        "/data/upload/3/../../private.mp4", "upload/ab12cd34-../private.mp4", "/etc/passwd",
        "s3://bucket/../private.mp4",
    ],
)  # fmt: skip
def test_no_name_leads_out(name: str, folder: Path) -> None:
    place = video_place(folder, video_path(name))
    assert not place.exists()
    assert place.resolve().is_relative_to(folder.resolve())


def test_of_two_files_with_the_same_letters_none_is_guessed(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "\u00e9.mp4")).write_text(form)
    for form in ("NFC", "NFD"):
        assert video_file(tmp_path, unicodedata.normalize(form, "\u00e9.mp4")).read_text() == form
    for name in ("a b.mp4", "a_b.mp4"):
        (tmp_path / name).write_text(name)
    for form in ("NFC", "NFD"):
        (tmp_path / unicodedata.normalize(form, "\u00e9\u00e8.mp4")).write_text(form)
    refused = {
        "/data/upload/1/ab12cd34-a_b.mp4": ["a b.mp4", "a_b.mp4"],
        "\u00e9e\u0300.mp4": [r"\xe9\xe8.mp4", r"e\u0301e\u0300.mp4"],
    }
    for name, both in refused.items():
        with pytest.raises(InputError, match="rename one of them") as caught:
            video_place(tmp_path, name)
        assert all(one in str(caught.value) for one in both)
        clips = table(tmp_path / "clips.json", [{"video": name, "caption": "x"}])
        with pytest.raises(InputError, match="clips.json.*rename one of them"):
            RealVideos(str(clips))


def test_absurd_names_take_no_time(tmp_path: Path) -> None:
    for name in ("a/" * 1_000_000, "%25" * 1_000_000, "\\" * 5000, "?" * 5000, "\u00e9/" * 2000):
        with pytest.raises(InputError) as caught:
            video_file(tmp_path, name)
        assert "there is no video" in str(caught.value) and len(str(caught.value)) < 1000
    assert list(spellings("a.mp4")) == ["a.mp4"] and list(tails("/a/b")) == ["a/b", "b"]
