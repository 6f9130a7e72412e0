"""Prompt sets: the shipped one, growth that moves nothing, balance, what is written and read."""

import json
from collections import Counter
from pathlib import Path

import pytest

from app.entry import REPO
from data.prompts import SPLITS, from_file, place
from ipo_lightning.errors import InputError
from ipo_lightning.prompts.__main__ import main
from ipo_lightning.prompts.composing import CATEGORIES
from ipo_lightning.prompts.files import read_listed
from ipo_lightning.prompts.likeness import Known
from ipo_lightning.prompts.sets import (
    Entry,
    Shares,
    crossing,
    grown,
    missing,
    read_benchmark,
    read_set,
    write_set,
)

SHIPPED = REPO / "data/prompts/general.jsonl"
SHARES = Shares(0.15, 0.2)


def composed(out: Path, *words: str) -> list[Entry]:
    """The set after a command, which succeeds."""
    assert main(["compose", f"out={out}", "against=", *words]) == 0
    return read_set(out)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "small.jsonl"
    composed(out, "n=60")
    return out


def test_the_shipped_set_is_made_by_one_command(tmp_path: Path) -> None:
    """docs/prompts.md gives it."""
    composed(tmp_path / "general.jsonl")
    assert (tmp_path / "general.jsonl").read_bytes() == SHIPPED.read_bytes()


def test_the_shipped_set_is_balanced_and_held_out() -> None:
    entries = read_set(SHIPPED)
    assert Counter(one.category for one in entries) == dict.fromkeys(CATEGORIES, 70)
    assert crossing(entries, 0.5) == []
    parts = {split: from_file(split, path=str(SHIPPED)) for split in SPLITS}
    assert sum(map(len, parts.values())) == 420
    assert len(parts["train"]) >= 200  # of ipo_base: rollout.prompts
    for split in ("select", "final"):  # evaluation.prompts takes the first ones
        assert set(Counter(parts[split].categories[one] for one in parts[split][:24])) == set(
            CATEGORIES
        )


def test_sentences_are_whole() -> None:
    for one in read_set(SHIPPED):
        assert one.prompt[0].isupper() and one.prompt.endswith(".") and ".." not in one.prompt
        assert not set("{}\t\n") & set(one.prompt) and "  " not in one.prompt
        assert one.prompt.isascii() and 4 <= len(one.prompt.split()) <= 40


def test_a_set_grows_and_nothing_in_it_changes(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "set.jsonl"
    out.write_bytes(small.read_bytes())
    before = read_set(out)
    after = composed(out, "n=90", "select=0.4", "final=0.1")
    assert after[:60] == before
    assert Counter(one.category for one in after) == dict.fromkeys(CATEGORIES, 15)
    other = composed(out, "n=120", "seed=5")
    assert other[:90] == after and crossing(other, 0.5) == []
    assert composed(out, "n=12") == other  # never fewer


def test_a_split_is_a_function_of_the_prompt(small: Path) -> None:
    for one in read_set(small):
        expected = "final" if place(one.prompt) < 0.2 else "select"
        assert one.split == (expected if place(one.prompt) < 0.35 else "train")


def test_who_does_what_is_in_one_prompt_alone() -> None:
    """Prompts of one subject and action would be alike in different splits."""
    found = {category: 0 for category in CATEGORIES}
    known = Known()
    for batch in grown(missing([], 300), known, SHARES):
        for one in batch:
            found[str(one.category)] += 1
    assert found == dict.fromkeys(CATEGORIES, 50)


@pytest.mark.slow
def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(InputError, match="category style no further prompts can be composed"):
        for _ in grown({"style": 1000}, Known(), SHARES):
            pass


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_what_is_written_is_read(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"set{ending}"
    entries = [Entry('a "dog", sitting', "animal", "train", "a dog"), Entry("a bus", None, "final")]
    write_set(file, entries)
    assert read_set(file) == entries
    assert [row.split for row in read_listed(file)] == ["train", "final"]
    write_set(file, entries[1:])
    assert "outline" not in file.read_text() and "category" not in file.read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.txt", "a dog\n", "give a .csv or .jsonl file"),
        ("set.jsonl", '{"prompt": "a dog", "split": "train", "id": 3}', "'id' would be lost"),
        ("set.jsonl", '{"prompt": "a dog"}', "no column 'split'"),
        ("set.csv", "prompt,split\na dog,test\n", "must be one of train"),
    ],
)
def test_other_files_are_not_written_over(
    name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["compose", f"out={tmp_path / name}", "n=12"]) == 1
    assert message in capsys.readouterr().err
    assert (tmp_path / name).read_text() == content


def test_benchmarks_as_they_come(tmp_path: Path) -> None:
    (tmp_path / "vbench.json").write_text(json.dumps([{"prompt_en": "a dog", "dimension": ["x"]}]))
    (tmp_path / "own.json").write_text(json.dumps([{"prompt": "a cat"}]))
    (tmp_path / "own.txt").write_text("a bus\n")
    names = ("vbench.json", "own.json", "own.txt")
    found = [read_benchmark(tmp_path / name) for name in names]
    assert found == [["a dog"], ["a cat"], ["a bus"]]
