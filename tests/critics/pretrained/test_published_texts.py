"""Words that are known by their hash: from a file, from the network once, and never run."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from ipo_lightning.critics.pretrained import published_texts
from ipo_lightning.critics.pretrained.published_texts import PublishedText, downloaded, sha256
from ipo_lightning.errors import InputError

TEXT = "\nRate {text_prompt}.\u00e4\n\nEND\n"
URL = "https://example.org/0123/words.py"
ORIGINAL = PublishedText(sha256(TEXT), URL)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty one of the test's own."""
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wordings" / f"{ORIGINAL.sha256}.txt"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads are tried, past any proxy."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def served(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """Address of a file on a server, and what it is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            with suppress(ConnectionError):  # given up on
                answer(self)

        def log_message(self, *words: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/words.py", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


# ---------------------------------------------------------------------------- a file


@pytest.mark.parametrize(
    "content",
    [TEXT, TEXT + "\n", f"A = 1\nB = {TEXT!r}\n", f"def f():\n    return [g({TEXT!r})]\n",
     f"A = '\\d'\nB = {TEXT!r}\n"],
)  # fmt: skip
def test_words_are_found_by_their_hash(content: str, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "words"
    file.write_text(content, encoding="utf-8")
    assert ORIGINAL.read(str(file)) == TEXT
    assert not cache.exists()


@pytest.mark.parametrize(
    "content",
    ["", "def (", TEXT[1:], f"B = {TEXT[1:]!r}", f"A = {TEXT[:5]!r}\nB = {TEXT[5:]!r}",
     "\0", "(" * 100_000, TEXT.replace("\n", "\r\n")],
)  # fmt: skip
def test_other_words_are_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "words.py"
    file.write_bytes(content.encode())
    with pytest.raises(
        InputError, match=f"prompt_text={file}: this file does not have the prompt text .* {URL}$"
    ):
        ORIGINAL.read(str(file))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "words.py"
    for content, match in ((b"\xff", "decode"), (TEXT.encode() * 2**16, "more than 1048576")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=match):
            ORIGINAL.read(str(file))
    for path in (tmp_path / "none.py", tmp_path):
        with pytest.raises(InputError, match=f"prompt_text={path}: "):
            ORIGINAL.read(str(path))


def test_constants_are_put_together_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "words.py"
    original = PublishedText(sha256("one two"), URL, parts=("FIRST", "second"))
    file.write_text("second = ' two'\nFIRST = OTHER = 'one'\nobj.second = 'x'\nthird: str = 'y'\n")
    assert original.read(str(file)) == "one two"
    file.write_text("one two")
    assert original.read(str(file)) == "one two"
    for content in ("second = ' two'\n", "FIRST = ' two'\nsecond = 'one'\n"):
        file.write_text(content)
        with pytest.raises(InputError, match="does not have"):
            original.read(str(file))


def test_a_file_is_not_run(tmp_path: Path) -> None:
    file = tmp_path / "words.py"
    file.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
                    f"WORDS = {TEXT!r}\n", encoding="utf-8")  # fmt: skip
    assert ORIGINAL.read(str(file)) == TEXT
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------- the network


def test_offline_one_sentence_says_what_to_do(cache: Path) -> None:
    """Without a try: the address would not answer, and the message would be another."""
    assert constants.HF_HUB_OFFLINE
    with pytest.raises(InputError) as error:
        PublishedText(ORIGINAL.sha256, "https://127.0.0.1:9/0123/words.py").read()
    assert str(error.value) == (
        "prompt_text: the prompt text that the model was tuned with is not shipped and cannot be "
        "downloaded (HF_HUB_OFFLINE is set); on a machine with a network run "
        "`curl -LO https://127.0.0.1:9/0123/words.py`, and give that file as prompt_text=words.py"
    )
    assert not cache.parent.parent.exists()


def test_nobody_there_is_the_same_sentence(online: None) -> None:
    with pytest.raises(InputError, match=r"downloaded \(127\.0\.0\.1 cannot be reached .*curl -LO"):
        PublishedText(ORIGINAL.sha256, "https://127.0.0.1:9/words.py").read()


def test_a_file_is_downloaded_once_and_the_words_kept(
    online: None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"import os\nos.abort()\nWORDS = {TEXT!r}\n"
    with served(says(script.encode())) as (url, asked):
        original = PublishedText(ORIGINAL.sha256, url)
        assert original.read(loopback=True) == TEXT
        assert cache.read_bytes() == TEXT.encode()
        assert [one.name for one in cache.parent.iterdir()] == [cache.name]
        assert original.read(loopback=True) == TEXT and asked == ["/words.py"]
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert original.read() == TEXT
        cache.write_text("damaged")
        with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
            original.read()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert original.read(loopback=True) == TEXT and len(asked) == 2
        assert cache.read_bytes() == TEXT.encode()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says(b"gone", 404), "HTTP 404"),
        (says(b"", 302, Location="/elsewhere"), "HTTP 302"),
        (says(TEXT[1:].encode()), "the file there has another text now"),
        (says(b"#" * (2**20 + 1)), "longer than 1048576 bytes"),
        (says(b"short", **{"Content-Length": "1000"}), "connection lost"),
    ],
)
def test_what_is_no_download_is_told_and_not_kept(
    answer: Answer, reason: str, online: None, cache: Path
) -> None:
    with (
        served(answer) as (url, asked),
        pytest.raises(InputError, match=re.escape(f"({reason}); on a machine with a network")),
    ):
        PublishedText(ORIGINAL.sha256, url).read(loopback=True)
    assert asked == ["/words.py"] and not cache.exists()


def test_a_slow_download_ends(online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it silent, or forever under way."""

    def drips(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for _ in range(8):
            request.wfile.write(b"#")
            request.wfile.flush()
            time.sleep(0.1)

    for part, whole in ((0.05, 60.0), (10.0, 0.15)):
        monkeypatch.setattr(published_texts, "PATIENCE", (part, whole))
        start = time.monotonic()
        with served(drips) as (url, _), pytest.raises(InputError, match="timeout"):
            PublishedText(ORIGINAL.sha256, url).read(loopback=True)
        assert time.monotonic() - start < 20


def test_words_come_encrypted() -> None:
    """Unencrypted from this machine alone, where a test says so."""
    for url, loopback in (("http://example.org/a", True), ("http://127.0.0.1:9/a", False)):
        with pytest.raises(ValueError, match="give https"):
            downloaded(url, loopback)


def test_a_cache_that_cannot_be_written_is_named(
    online: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(tmp_path / "file"))
    with (
        served(says(TEXT.encode())) as (url, _),
        pytest.raises(
            InputError, match="the prompt text cannot be written there .* IPO_LIGHTNING_CACHE"
        ),
    ):
        PublishedText(ORIGINAL.sha256, url).read(loopback=True)


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", "")
    monkeypatch.setenv("HOME", "/home/me")
    assert published_texts.cache_folder() == Path("/home/me/.cache/ipo_lightning")
