"""What is no video, or is damaged: one sentence that says which file, what is wrong, what to do."""

import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from PIL import Image

from data.real import read_clip
from ipo_lightning import video
from ipo_lightning.critics.people.page import plays
from ipo_lightning.decoding import frames as decoding_frames
from ipo_lightning.decoding.differences import content_name, differences
from ipo_lightning.decoding.opening import CONVERT
from ipo_lightning.draws.encoding import LeftOut
from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import file_sha256
from ipo_lightning.video import read_timeline, read_video
from tests.helpers import footage
from tests.helpers.footage import edited, encode, turned

Make = Callable[[Path], object]


def text(content: str | bytes) -> Make:
    return lambda p: p.write_bytes(content.encode() if isinstance(content, str) else content)


def picture(kind: str) -> Make:
    return lambda p: Image.fromarray(footage.gradient(1)[0]).save(p, kind)


def cut(share: float, **settings: object) -> Make:
    def make(path: Path) -> None:
        whole = encode(path, **settings).read_bytes()  # type: ignore[arg-type]
        path.write_bytes(whole[: int(len(whole) * share)])

    return make


def linked(target: str) -> Make:
    return lambda p: p.symlink_to(target)


def beside(name: str) -> Make:
    """A script of FFmpeg that would read another file."""

    def make(path: Path) -> None:
        encode(path.with_name("private.ts"))
        path.write_text(name)

    return make


def declaring(count: int, box: bytes, size: int = 1, **settings: object) -> Make:
    """A file of a few kB whose header speaks of many frames, or of large ones."""

    def make(path: Path) -> None:
        content = bytearray(encode(path, **settings).read_bytes())  # type: ignore[arg-type]
        place = content.index(box) + 4
        head = (0, size, count) if box == b"stsz" else (0, count, 0)
        struct.pack_into(">III", content, place, *head)
        path.write_bytes(content)

    return make


FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}
FRONT = {"movflags": "faststart"}
REFUSED: dict[str, tuple[Make, str]] = {
    "empty": (text(b""), r"cannot be decoded \(the file is empty\); copy it again"),
    "text": (text("a dog runs\n" * 9), r"cannot be decoded \(it is a text"),
    "web page": (text("<!DOCTYPE html><html></html>"), "it is a text, such as a web page"),
    "playlist": (text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/dev/zero\n"), "a playlist"),
    "script": (beside("ffconcat version 1.0\nfile private.ts\n"), "a text"),
    "session": (text("v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5 RTP/AVP 96\n"), "a text"),
    "subtitles": (text("1\n00:00:01,000 --> 00:00:02,000\nhi\n"), "a text"),
    "LFS": (text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull brings the video"),
    "noise": (text(random.Random(0).randbytes(999)), r"cannot be decoded \("),
    "zeros": (text(bytes(9999)), r"cannot be decoded \("),
    "zip": (text(b"PK\x03\x04" + bytes(99)), "it is a zip archive"),
    "PNG": (picture("PNG"), "it is a PNG picture"),
    "JPEG": (picture("JPEG"), "it is a JPEG picture"),
    "WebP": (picture("WEBP"), "it is a WebP picture"),
    "BMP": (picture("BMP"), "it is a BMP picture"),
    "TIFF": (picture("TIFF"), "it is a TIFF picture"),
    "AVIF": (picture("AVIF"), "it is a picture"),
    "sound": (footage.sound, "but no video stream; give a file that shows the video"),
    "samples": (declaring(9, b"stsz", size=0x3FFFFFF0), r"decoded \(Cannot allocate memory"),
    "header": (cut(0.1), r"cannot be decoded \("),
    "half": (cut(0.5), r"cannot be decoded \(.*\); copy it again"),
    "half of a web video": (cut(0.6, container=FRONT), r"cannot be decoded|is damaged"),
    "end of a web video": (cut(0.97, container=FRONT), r"cannot be decoded|is damaged"),
    "nothing shown": (lambda p: edited(encode(p), (0, 0)), "it has no frames"),
    "shown after its end": (lambda p: edited(encode(p), (1000, 9999)), "it has no frames"),
    "times": (lambda p: footage.joined(p, 48, 64), "the times of its frames run backwards; ffmpeg"),
    "sizes": (lambda p: footage.joined(p, 64, 96), "12 is 96 x 64, the first one 64 x 48; bring"),
    "slanted": (lambda p: turned(encode(p), (0.7, 0.7, -0.7, 0.7)), "another angle than quarter"),
    "slanted tag": (lambda p: encode(p.with_suffix(".mkv"), metadata={"rotate": "45"}).rename(p),
                    "another angle than quarter"),
    "frames of no bytes": (declaring(60_000_000, b"stsz"), "it declares 60,000,000 frames in"),
    "fragments of no bytes": (declaring(10**9, b"trun", container=FRAGMENTS), "it declares 1,000,"),
    "giant": (lambda p: footage.still_frames(p, 16000, 3), r"cannot be decoded|scale the video"),
    "folder": (lambda p: p.mkdir(), "it is a folder; give a video file"),
    "pipe": (os.mkfifo, "it is a pipe or a device; give a file"),
    "link to a device": (linked("/dev/zero"), "it is a pipe or a device"),
    "link to nothing": (linked("nowhere.mp4"), "no such file; a link leads there"),
    "link in a circle": (linked("a.mp4"), r"cannot be read \(.*links"),
    "link to a folder": (linked("."), "it is a folder"),
}  # fmt: skip


def one_sentence(error: pytest.ExceptionInfo[InputError], path: Path) -> str:
    said = str(error.value)
    assert said.startswith(f"video {path}: ")
    assert len(said.splitlines()) == 1 and len(said) < 500 + len(str(path))
    assert "tuple index" not in said and "Errno" not in said
    return said


@pytest.mark.parametrize("name", REFUSED)
def test_every_reader_refuses_with_one_sentence(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    path = tmp_path / "a.mp4"
    if name == "AVIF" and "AVIF" not in Image.SAVE:
        pytest.skip("Pillow writes them from 11.3 on")
    make(path)
    for read in (read_video, read_timeline):
        with pytest.raises(InputError, match=message) as caught:
            read(path)
        said = one_sentence(caught, path)
    left_out = read_clip(path, (9, 16, 24), 8.0)
    assert left_out == LeftOut("damaged", said.removeprefix(f"video {path}: "))


@pytest.mark.parametrize("space", [8, 10])  # YCgCo; BT.2020 of constant luminance
def test_colours_that_are_not_known_are_not_made_up(space: int, tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", colorspace=space)
    for read in (read_video, read_timeline):
        with pytest.raises(
            InputError, match=rf"frame 0 has colours .* \(matrix {space} of"
        ) as caught:
            read(path)
        one_sentence(caught, path)


def test_what_cannot_be_read_has_its_plain_name(tmp_path: Path) -> None:
    (path := tmp_path / "a.mp4").write_bytes(b"junk")
    assert content_name(path) == file_sha256(path)
    for look in (differences, plays):
        with pytest.raises(InputError, match="cannot be decoded"):
            look(path)


@pytest.mark.parametrize("name", ["x" * 300 + ".mp4", "nul\0.mp4", "file/inside.mp4", "none.mp4"])
def test_names_that_no_file_has(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="no such file|too long"):
        read_video(tmp_path / name)


@pytest.mark.parametrize("name", ["a b", "a%20b", "concat:a", "http:a", "caf\u00e9", "#?&*", "-i"])
def test_any_name_is_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(tmp_path / "plain.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert len(read_video(name).frames) == 12


def test_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root
    with pytest.raises(InputError, match=r"a\.mp4: no permission to read it; chmod a\+r"):
        read_video(path)


def test_tags_in_any_encoding(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mkv", metadata={"title": "XXXX"})
    path.write_bytes(path.read_bytes().replace(b"XXXX", b"caf\xe9"))
    assert len(read_video(path).frames) == 12


@pytest.mark.parametrize("read", [read_video, read_timeline])
def test_a_file_with_too_many_frames_ends(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few bytes a frame, whatever their size: what would take hours is refused at the bound."""
    path = footage.still_frames(tmp_path / "a.gif", 512, 400)
    monkeypatch.setattr(decoding_frames, "MOST_DECODED", 20 * 512 * 512)
    with pytest.raises(InputError, match=r"frame 20 is one of too many to decode; cut the video"):
        read(path)


def test_what_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.mp4")
    monkeypatch.setattr(video, "MOST_HELD", 5 * 48 * 64 * 3)
    with pytest.raises(InputError, match="take more than 0 GiB; cut it into clips"):
        read_video(path)
    assert len(read_timeline(path).times) == 12, "the importer holds the frames that it takes"


def fuzzed(seed: int, whole: bytes) -> bytes:
    """A file with a few bytes changed, lost, doubled or exchanged."""
    draw = random.Random(seed)
    content = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        at, much = draw.randrange(len(content)), draw.choice((1, 1, 4, 64, 1024))
        match draw.randrange(4):
            case 0:
                content[at : at + much] = draw.randbytes(much)
            case 1:
                del content[at : at + much]
            case 2:
                content[at:at] = content[at : at + much]
            case _:
                content[at] = draw.choice((0, 1, 127, 128, 255))
        if not content:
            break
    return bytes(content)


SOURCES = {
    "mp4": lambda p: encode(p, options={"bf": "2"}, container=FRONT),
    "mov": lambda p: turned(encode(p), (0, 1, -1, 0)),
    "edits": lambda p: edited(encode(p.with_suffix(".mp4")), (750, 3)),
    "mkv": encode,
    "webm": lambda p: encode(p, codec="libvpx-vp9"),
    "avi": lambda p: encode(p, codec="mpeg4"),
    "gif": lambda p: encode(p, codec="gif", pixels="rgb8"),
    "ts": encode,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_damage_ends_in_an_answer_or_in_a_sentence(kind: str, tmp_path: Path) -> None:
    whole = SOURCES[kind](tmp_path / f"a.{kind}").read_bytes()
    path = tmp_path / "damaged.mp4"
    refused = 0
    before = time.monotonic()
    for seed in range(int(os.environ.get("FUZZ", 25))):
        path.write_bytes(fuzzed(seed, whole))
        answers = []
        for read in (read_video, read_timeline):
            try:
                answers.append(read(path))
            except InputError as error:
                assert str(error).startswith(f"video {path}: "), seed
                assert len(str(error).splitlines()) == 1, seed
        content_name(path)
        assert len(answers) in (0, 2), f"seed {seed}: the readers disagree"
        if answers:
            assert len(answers[0].frames) == len(answers[1].times) and answers[0].fps > 0, seed
        refused += not answers
    assert time.monotonic() - before < 60
    assert refused, "the damage was none"


def test_the_cure_is_one_that_ffmpeg_has() -> None:
    assert CONVERT.startswith("ffmpeg -i FILE")
    assert av.codec.Codec("libx264", "w").name == "libx264"
