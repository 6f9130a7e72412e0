"""What tables of others call files, and that each name finds its file and no other."""

import unicodedata
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path

import pytest

from ipo_lightning.errors import InputError
from ipo_lightning.exchange import read_preferences, video_file, video_place
from ipo_lightning.exchange.names import spellings, tails, video_path
from tests.exchange.test_exchange import TASK, table

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
    # its uploads
    "/data/upload/3/ab12cd34-1.mp4": "1.mp4",
    "http://host/data/upload/3/ab12cd34-1.mp4": "1.mp4",
    "upload/3/ab12cd34-1.mp4": "1.mp4",
    "/data/upload/3/ab12cd34-kept.mp4": "ab12cd34-kept.mp4",
    "/data/upload/3/ab12cd34-a_cat.mp4": "a cat.mp4",
    "/data/upload/3/ab12cd34-what_now.mp4": "what now?.mp4",
    "/data/upload/3/ab12cd34-a%20cat.mp4": "a cat.mp4",
    "/studio/data/upload/3/ab12cd34-1.mp4?token=x": "1.mp4",
    # cloud storage
    f"http://host/tasks/7/resolve/?fileuri={HIDDEN}": "set/1.mp4",
    f"https://host/tasks/7/presign/?fileuri={b64encode(b's3://bucket/1.mp4').decode()}": "1.mp4",
    "s3://bucket/set/1.mp4": "set/1.mp4",
    "gs://bucket/deep/set/1.mp4": "set/1.mp4",
    "hf://datasets/owner/name@main/set/1.mp4": "set/1.mp4",
    "file:///home/ann/set/1.mp4": "set/1.mp4",
    "https://host/owner/name/resolve/main/set/1.mp4?download=true": "set/1.mp4",
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


@pytest.mark.parametrize("name", [n for n in NAMES if "local-files" in n or "upload" in n])
def test_exports_of_label_studio_find_their_files(name: str, folder: Path) -> None:
    said = {"from_name": "Overall", "type": "choices", "value": {"choices": ["left"]}}
    task = {"data": TASK | {"left": name}, "annotations": [{"result": [said]}]}
    (one,) = read_preferences(table(folder / "export.json", [task]))
    assert video_file(folder, one.path_A).read_text() == NAMES[name]


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
    for name in ("a b.mp4", "a?_b.mp4"):
        (tmp_path / name).write_text(name)
    assert not video_place(tmp_path, "/data/upload/1/ab12cd34-a_b.mp4").exists()


def test_absurd_names_take_no_time(tmp_path: Path) -> None:
    for name in ("a/" * 1_000_000, "%25" * 1_000_000, "\\" * 5000, "?" * 5000, "\u00e9/" * 2000):
        with pytest.raises(InputError) as caught:
            video_file(tmp_path, name)
        assert "there is no video" in str(caught.value) and len(str(caught.value)) < 1000
    assert list(spellings("a.mp4")) == ["a.mp4"] and list(tails("/a/b")) == ["a/b", "b"]
