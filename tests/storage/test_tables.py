"""Text files and tables as other people's programs write them: read right, or refused in words."""

import codecs
import csv
import io
import json
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from data.prompts import read_prompts
from data.real import RealVideos
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import read_any
from ipo_lightning.exchange.points import VideoPoint, pairs_of
from ipo_lightning.storage import tables, texts
from ipo_lightning.storage.tables import rows_of
from ipo_lightning.storage.texts import one_line, read_text

Rows = list[Mapping[str, Any]]
ROWS: Rows = [
    {"prompt": "a dog, running", "n": "1"},
    {"prompt": 'a "cat"', "n": "2"},
    {"prompt": "\u00e9t\u00e9 \u2028 \U0001f600", "n": "3"},
]


def lines(rows: Rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def separated(separator: str) -> Callable[[Rows], str]:
    def write(rows: Rows) -> str:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, list(rows[0]), delimiter=separator, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()

    return write


WAYS: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "csv": (".csv", separated(",")),
    "tsv": (".tsv", separated("\t")),
    "lines": (".jsonl", lines),
    "array": (".json", json.dumps),
    "indented array": (".json", lambda rows: json.dumps(rows, indent=2)),
    "lines named .json": (".json", lines),
    "array named .jsonl": (".jsonl", json.dumps),
    "indented array named .jsonl": (".jsonl", lambda rows: json.dumps(rows, indent=2)),
    "capitals": (".JSONL", lines),
    "blank lines": (".jsonl", lambda rows: "\n\n" + lines(rows).replace("\n", "\n \n")),
}
HANDS: dict[str, Callable[[str], bytes]] = {
    "plain": str.encode,
    "byte order mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "Windows, mark": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "no last line end": lambda text: text.rstrip("\n").encode(),
}


@pytest.mark.parametrize("hand", HANDS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_rows(way: str, hand: str, tmp_path: Path) -> None:
    ending, write = WAYS[way]
    path = tmp_path / f"table{ending}"
    path.write_bytes(HANDS[hand](write(ROWS)))
    assert [row for _, row in rows_of(path)] == ROWS
    assert read_prompts(path) == ["a dog, running", 'a "cat"', "\u00e9t\u00e9 \U0001f600"]


@pytest.mark.parametrize("hand", HANDS)
def test_a_row_alone_is_a_row_in_either_ending(hand: str, tmp_path: Path) -> None:
    for ending in (".json", ".jsonl"):
        for text in (lines(ROWS[:1]), json.dumps(ROWS[:1])):
            path = tmp_path / f"one{ending}"
            path.write_bytes(HANDS[hand](text))
            assert [row for _, row in rows_of(path)] == ROWS[:1]


def test_files_that_were_put_together_keep_no_mark_inside(tmp_path: Path) -> None:
    part = codecs.BOM_UTF8 + lines(ROWS[:1]).encode()
    (tmp_path / "a.jsonl").write_bytes(part + part)
    assert [row for _, row in rows_of(tmp_path / "a.jsonl")] == [ROWS[0], ROWS[0]]
    (tmp_path / "a.txt").write_bytes((codecs.BOM_UTF8 + b"a dog\n") * 2)
    assert read_prompts(tmp_path / "a.txt") == ["a dog"]


WRONG: dict[str, tuple[bytes, str]] = {
    "latin.csv": ("prompt\nok\ncaf\u00e9\n".encode("latin-1"), r"line 3 is not UTF-8 \(.*iconv"),
    "latin.tsv": ("prompt\nok\ncaf\u00e9\n".encode("latin-1"), "line 3 is not UTF-8"),
    "latin.jsonl": ('{}\n{"prompt": "caf\u00e9"}'.encode("latin-1"), "line 2 is not UTF-8"),
    "latin.json": ('["caf\u00e9"]'.encode("latin-1"), "line 1 is not UTF-8"),
    "latin.txt": ("ok\r\nok\r\ncaf\u00e9".encode("latin-1"), "line 3 is not UTF-8"),
    "cut.txt": ("caf\u00e9".encode()[:-1], "line 1 is not UTF-8"),
    "wide.txt": ("a dog".encode("utf-16"), "UTF-16, or no text at all; save it as UTF-8"),
    "wide.csv": ("prompt\na".encode("utf-16"), "UTF-16"),
    "wide.tsv": ("prompt\na".encode("utf-16-be"), "UTF-16"),
    "bare.jsonl": ('{"prompt": "x"}'.encode("utf-16-le"), "UTF-16"),
    "wider.json": ("[]".encode("utf-32"), "UTF-16"),
    "nul.txt": (b"a dog\n" * 20 + b"a\0cat", "line 21 has a NUL byte"),
    "nul.csv": (b"prompt\n" + b"a dog\n" * 20 + b"a\0cat", "line 22 has a NUL byte"),
    "half.jsonl": (b'{"prompt": "\\ud83d"}', r"half\.jsonl:1.*not JSON"),
    "half.json": (b'[{"prompt": "a \\udc00"}]', "not JSON"),
    "late.json": (b'[\n {"prompt": "x"},\n {"prompt": y}\n]', r"late\.json, line 3: not JSON: .*y"),
    "torn.json": (b'[{"prompt": "x"},', "not JSON"),
    "torn.jsonl": (b'[{"prompt": "x"},', "not JSON"),
    "bare.json": (b'"a dog"', "expected a list of objects"),
    "texts.json": (b'["a dog", "a cat"]', "row 1: expected an object, got"),
    "twice.csv": (b"prompt,prompt\na,b\n", "two columns are called 'prompt'"),
    "semi.csv": (b"prompt;n\na;1\n", "separated by semicolons: use commas"),
    "commas.tsv": (b"prompt,n\na,1\n", "separated by commas: use tabs"),
    "wide row.csv": (b"prompt,n\na dog, running,1\n", "more cells than columns; put quotes around"),
    "quote.csv": (b'prompt\n"a dog\n', "cannot be read: unexpected end of data"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_with_its_place(name: str, tmp_path: Path) -> None:
    content, message = WRONG[name]
    path = tmp_path / name
    path.write_bytes(content)
    read = read_text if path.suffix == ".txt" else lambda path: list(rows_of(path))
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value).splitlines()) == 1
    with pytest.raises(
        InputError, match=rf'{message}|expected {{"prompt": "\.\.\."}}, got'
    ) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value).splitlines()) == 1


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda p: None, "there is no such file"),
    "folder": (lambda p: p.mkdir(), "it is a folder; give a file in it"),
    "pipe": (os.mkfifo, "it is a pipe or a device"),
    "device": (lambda p: p.symlink_to("/dev/zero"), "it is a pipe or a device"),
    "dangling link": (lambda p: p.symlink_to("nowhere"), "there is no such file"),
    "link in a circle": (lambda p: p.symlink_to(p.name), "symbolic links"),
}


@pytest.mark.parametrize("ending", [".txt", ".csv", ".json", ".jsonl", ".parquet", ".tsv"])
@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_is_refused_at_once(name: str, ending: str, tmp_path: Path) -> None:
    make, message = PLACES[name]
    path = tmp_path / f"a{ending}"
    make(path)
    if ending == ".txt":
        with pytest.raises(InputError, match=message):
            read_text(path)
    else:
        with pytest.raises(InputError, match=message):
            list(rows_of(path))
    with pytest.raises(InputError, match=f"{message}|there is no file"):
        read_prompts(path)


def test_a_file_without_permission_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a dog")

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)  # the tests may run as root
    with pytest.raises(InputError, match=r"a\.txt cannot be read: Permission denied"):
        read_text(tmp_path / "a.txt")


def test_a_text_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.truncate(3 * 2**30)  # of which the disk holds nothing
    tracemalloc.start()
    with pytest.raises(InputError, match="3072 MiB of text, of which 256 are read; split it"):
        list(rows_of(path))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    monkeypatch.setattr(texts, "LARGEST", 10)
    path.write_text("a dog runs")
    assert read_text(path) == "a dog runs"


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "lines.csv": (lambda: b"prompt\n" + b"x\n" * 300, "more than 100 lines"),
    "lines.txt": (lambda: b"x\n" * 300, "more than 100 lines"),
    "returns.txt": (lambda: b"x\r" * 300, "more than 100 lines"),
    "lines.jsonl": (lambda: b"{}\n" * 300, "more than 100 lines"),
    "objects.json": (lambda: b"[" + b"{}," * 200 + b"{}]", "more than 100 objects"),
    "lists.json": (lambda: b'[{"a": [' + b"[]," * 200 + b"[]]}]", "more than 100 objects"),
    "columns.csv": (lambda: b"," * 5000 + b"\n" + b"x\n" * 50, "5,001 columns, of which 1000"),
    "columns.tsv": (lambda: b"\t" * 5000 + b"\n" + b"x\n" * 50, "5,001 columns, of which 1000"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_grow_in_memory_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, message = BOMBS[name]
    path = tmp_path / name
    path.write_bytes(make())
    monkeypatch.setattr(texts, "MOST_ROWS", 100)
    monkeypatch.setattr(tables, "MOST_ROWS", 100)
    with pytest.raises(InputError, match=message):
        read_prompts(path)


def test_videos_of_one_prompt_do_not_make_billions_of_pairs() -> None:
    points = [VideoPoint("a dog", f"{n}.mp4", {"Overall": 1.0}, place="a.csv:1")
              for n in range(3000)]  # fmt: skip
    with pytest.raises(InputError, match=r"a\.csv:1: 3,000 videos of one prompt, 4,498,500 pairs"):
        pairs_of(points)
    assert len(pairs_of(points[:50])) == 1225


@pytest.mark.parametrize(
    "text",
    ["a dog ", " a dog", "a  dog", "a\tdog", "a\u00a0dog", "a\u2028dog", "a\u0085dog", "a\u3000dog",
     "\ufeffa dog", "a dog\u200b", "a\u00ad dog", "a \u2060dog\u200e", "a\x0bdog", "a dog\r"],
)  # fmt: skip
def test_spellings_of_a_line_are_one(text: str) -> None:
    assert one_line(text) == "a dog"


def test_letters_are_composed_and_joiners_kept() -> None:
    assert one_line("e\u0301te\u0301") == "\u00e9t\u00e9"
    for text in ("a dog", "\U0001f469\u200d\U0001f680", "\u0646\u200c\u0645", "A Dog", "\u00e9"):
        assert one_line(text) == text


# --- A seeded fuzz -------------------------------------------------------------------------------

SCRAPS = [
    b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n", b"\0", b"\xff", b"\xc3", b"\xe2\x80\xa8", b"\xc2\x85",
    b'"', b'""', b",", b";", b"\t", b"[", b"]", b"{", b"}", b":", b"\\", b"\\ud800", b"null",
    b"NaN", b"1e999", b"-0", b"true", b'{"prompt": ', b'"prompt"', b"prompt", b"9" * 5000,
    b"[" * 3000, b" ", b"e\xcc\x81", b"=cmd()", b"'", b"#", b"\x1a", b"\x1b[31m",
]  # fmt: skip


def damaged(draw: random.Random, whole: bytes) -> bytes:
    content = bytearray(whole)
    for _ in range(draw.choice((0, 1, 1, 2, 5, 20))):
        at = draw.randrange(len(content) + 1)
        match draw.randrange(4):
            case 0:
                content[at:at] = draw.choice(SCRAPS)
            case 1:
                del content[at : at + draw.choice((1, 3, 30))]
            case 2:
                content[at : at + 1] = draw.choice(SCRAPS)
            case _:
                content[at:at] = content[: draw.choice((3, 40))]
    return bytes(content)


def sources(draw: random.Random) -> Iterator[tuple[str, bytes]]:
    """A file of each kind, with what readers of all kinds look for in it."""
    rows = [
        {
            "prompt": draw.choice(("a dog", "a dog ", "caf\u00e9", "a, b", 'a "b"')),
            "video": "a.mp4", "caption": "x", "path_A": "a.mp4", "path_B": "b.mp4", "VQ": "A",
            "Overall": draw.choice("AB"), "pair_id": str(number), "seconds": "1.5",
        }
        for number in range(draw.choice((1, 2, 5)))
    ]  # fmt: skip
    for ending, write in (*WAYS.values(), (".txt", lambda rows: "\n".join(r["prompt"] for r in rows)
                                           + "\n")):  # fmt: skip
        yield ending, HANDS[draw.choice(list(HANDS))](write(rows))


READERS: dict[str, Callable[[Path], object]] = {
    "prompts": read_prompts,
    "preferences": lambda path: read_any(path).one_lined().comparisons(),
    "clips": lambda path: RealVideos(str(path)),
    "captions": lambda path: RealVideos(str(path), video="path_A", caption="prompt"),
}


def test_any_text_gives_rows_or_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    answered = refused = 0
    for seed in range(int(os.environ.get("FUZZ", 60))):
        draw = random.Random(seed)
        for ending, whole in sources(draw):
            path = tmp_path / f"table{ending}"
            path.write_bytes(damaged(draw, whole))
            for name, read in READERS.items():
                try:
                    found = read(path)
                except InputError as error:
                    assert str(path) in str(error), (seed, ending, name)
                    assert len(str(error)) < 1000, (seed, ending, name)
                    refused += 1
                else:
                    answered += 1
                    if name == "prompts":
                        assert isinstance(found, list)
                        assert all(one == one_line(one) and one.encode() for one in found)
                        assert len(set(found)) == len(found)
    assert answered > 100 and refused > 100
