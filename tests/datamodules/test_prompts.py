"""Prompt files: disjoint splits that stay, and errors that say where."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.prompts import SPLITS, from_file, place, read_prompts
from ipo_lightning.errors import InputError
from ipo_lightning.storage.tables import SUFFIXES


def text_file(folder: Path, prompts: list[str]) -> str:
    path = folder / "prompts.txt"
    path.write_text("\n".join(prompts) + "\n")
    return str(path)


def numbered(count: int) -> list[str]:
    return [f"prompt number {i}" for i in range(count)]


def test_splits_are_disjoint_and_complete(tmp_path: Path) -> None:
    path = text_file(tmp_path, numbered(400))
    parts = {s: from_file(s, path=path, select=0.1, final=0.2) for s in SPLITS}
    together = [p for part in parts.values() for p in part]
    assert sorted(together) == sorted(numbered(400))
    # Binomial with 400 draws: three standard deviations are 18 and 24.
    assert abs(len(parts["select"]) - 40) <= 18
    assert abs(len(parts["final"]) - 80) <= 24


def test_a_split_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    train = from_file("train", path=text_file(tmp_path, numbered(50)))
    assert train == [p for p in numbered(50) if p in train]


def test_adding_and_reordering_prompts_moves_none(tmp_path: Path) -> None:
    shares = {"select": 0.2, "final": 0.2}
    before = {s: from_file(s, path=text_file(tmp_path, numbered(60)), **shares) for s in SPLITS}
    more = [*(f"another {i}" for i in range(40)), *reversed(numbered(60))]
    after = {s: from_file(s, path=text_file(tmp_path, more), **shares) for s in SPLITS}
    for split in SPLITS:
        assert set(before[split]) <= set(after[split])


def test_repeated_and_blank_lines_count_once_and_not_at_all(tmp_path: Path) -> None:
    path = text_file(tmp_path, ["a ring", "", "  a ring  ", "a cross", "   "])
    assert read_prompts(Path(path)) == ["a ring", "a cross"]


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a ring", "id": 1}, {"prompt": "ein \u00fcbler Ring"}, {"prompt": "a ring"}]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    assert read_prompts(path) == ["a ring", "ein \u00fcbler Ring"]
    path.write_text('{"text": "a cross"}\n')
    assert read_prompts(path, key="text") == ["a cross"]


@pytest.mark.parametrize("line", ["{broken", '{"text": "no prompt"}', "[1]", '"bare"', "3"])
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a ring"}}\n\n{line}\n')
    with pytest.raises(InputError, match=r"prompts\.jsonl:3: expected .*prompt"):
        read_prompts(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file .*nowhere.txt"):
        from_file("train", path=str(tmp_path / "nowhere.txt"))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompt in its final split"):
        from_file("final", path=text_file(tmp_path, ["a ring"]), final=0.0)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.1), (0.1, -0.1), (1.0, 0.0)])
def test_shares_must_leave_something_to_train_on(
    tmp_path: Path, shares: tuple[float, float]
) -> None:
    path = text_file(tmp_path, numbered(10))
    with pytest.raises(InputError, match=r"select=0\.5: .* give shares|=(-0\.1|1\.0): give a num"):
        from_file("train", path=path, select=shares[0], final=shares[1])


def test_splits_are_the_same_in_every_process(tmp_path: Path) -> None:
    """Pinned: Python's own hash of a text is another one in each process."""
    path = text_file(tmp_path, numbered(12))
    parts = {s: from_file(s, path=path, select=0.3, final=0.3) for s in SPLITS}
    numbers = {s: [int(p.rpartition(" ")[2]) for p in part] for s, part in parts.items()}
    assert numbers == {"train": [5, 7, 8], "select": [1, 2, 3, 4, 10], "final": [0, 6, 9, 11]}


SPELLINGS = ["a dog runs", "a dog runs ", "\ta  dog runs", "a\u00a0dog runs", "a dog\u2028runs",
             "a dog\u0085runs", "\ufeffa dog runs", "a dog runs\u200b"]  # fmt: skip
ACCENTS = ["un \u00e9t\u00e9", "un e\u0301te\u0301", "un e\u0301t\u00e9"]


@pytest.mark.parametrize("ending", [".txt", ".csv", ".tsv", ".json", ".jsonl"])
def test_spellings_of_a_prompt_are_one_in_one_split(ending: str, tmp_path: Path) -> None:
    """As two they could be trained on and held out."""
    spelt = [*SPELLINGS, *ACCENTS, *numbered(30)]
    path = tmp_path / f"prompts{ending}"
    if ending == ".txt":
        path.write_bytes("\r\n".join(spelt).encode("utf-8-sig"))
    elif ending.startswith(".json"):
        path.write_text(json.dumps([{"prompt": one} for one in spelt]))
    else:
        path.write_text("prompt\n" + "".join(f'"{one}"\n' for one in spelt))
    assert read_prompts(path) == ["a dog runs", "un \u00e9t\u00e9", *numbered(30)]
    parts = [from_file(s, path=str(path), select=0.2, final=0.2) for s in SPLITS]
    assert sorted(p for part in parts for p in part) == sorted(read_prompts(path))


def test_the_place_of_a_prompt_is_that_of_all_its_spellings() -> None:
    assert len({place(one) for one in SPELLINGS}) == len({place(one) for one in ACCENTS}) == 1
    digest = hashlib.sha256(b"a dog runs").digest()  # as ever: the hash of the plain text
    assert place("a dog runs") == int.from_bytes(digest[:7], "big") / 2**56


def test_what_ends_lines_elsewhere_does_not_cut_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("a dog\x0cruns\u2029on\x1ehere\r\na cat\rsits\n".encode())
    assert read_prompts(path) == ["a dog runs on here", "a cat", "sits"]


def test_columns_of_tables(tmp_path: Path) -> None:
    """Quotes and the header are those of a table, not text."""
    path = tmp_path / "prompts.csv"
    path.write_text('id,caption\n1,"a dog, running"\n\n2,"a ""cat""\nsits"\n')
    assert read_prompts(path, key="caption") == ["a dog, running", 'a "cat" sits']
    with pytest.raises(InputError, match=r'csv:2: expected .*"prompt".* the columns id, caption; '
                       "data.prompts.key=COLUMN"):  # fmt: skip
        read_prompts(path)
    path.write_text("a dog\na cat\n")
    with pytest.raises(InputError, match="got the columns a dog; data.prompts.key"):
        read_prompts(path)


@pytest.mark.parametrize("ending", ["", ".md", ".docx", ".yaml", ".xlsx", ".csv.gz", ".txt~"])
def test_unknown_endings_are_refused_with_those_that_are_read(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"prompts{ending}"
    path.write_text("a dog\n")
    with pytest.raises(InputError, match=r"give \.txt, a prompt a line, or a table .*\.csv"):
        read_prompts(path)


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff", "\u200b\n"])
def test_a_file_without_prompts_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(content)
    with pytest.raises(InputError, match=r"prompts\.txt has no prompts"):
        read_prompts(tmp_path / "prompts.txt")


# ---------------------------------------------------------------- columns category and split

TOLD = [("a dog", "animal", "final"), ("a cat", "animal", "train"), ("a bus", None, "select"),
        ("a dog", "animal", "final")]  # fmt: skip
COLUMNS = ("prompt", "category", "split")


def table(path: Path, rows: Sequence[Sequence[str | None]]) -> str:
    """A table of any kind that prompts are read from."""
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow")
        import pyarrow
        from pyarrow import parquet

        columns = {name: [row[k] for row in rows] for k, name in enumerate(COLUMNS)}
        parquet.write_table(pyarrow.table(columns), path)
    elif path.suffix in (".csv", ".tsv"):
        separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [COLUMNS, *([cell or "" for cell in row] for row in rows)]
        path.write_text("".join(separator.join(line) + "\n" for line in lines))
    else:
        objects = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        lines_of = "\n".join(map(json.dumps, objects))
        path.write_text(json.dumps(objects) if path.suffix == ".json" else lines_of)
    return str(path)


@pytest.mark.parametrize("ending", SUFFIXES)
def test_a_table_says_split_and_category(ending: str, tmp_path: Path) -> None:
    path = table(tmp_path / f"prompts{ending}", TOLD)
    parts = {split: from_file(split, path=path, select=0.0, final=0.0) for split in SPLITS}
    assert parts == {"train": ["a cat"], "select": ["a bus"], "final": ["a dog"]}
    told = [parts[split].categories for split in SPLITS]
    assert told == [{"a cat": "animal"}, {}, {"a dog": "animal"}]


def test_a_category_needs_no_split(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": one, "category": "fruit"} for one in numbered(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    plain = text_file(tmp_path, numbered(60))
    for split in SPLITS:
        found = from_file(split, path=str(path), select=0.2, final=0.2)
        assert found == from_file(split, path=plain, select=0.2, final=0.2)
        assert found.categories == dict.fromkeys(found, "fruit")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a dog", "animal", "test")], r"'split' must be one of train, select, final, got 'test'"),
        ([("a dog", "animal", "Train")], "must be one of"),
        ([("a dog", None, "train"), (" a  dog", None, "final")], "another split .*prompts.csv:2"),
        ([("a dog", "pet", "train"), ("a dog", "animal", "train")], "another split or category"),
        ([("a dog", None, "train"), ("a cat", None, None)], r"csv:3: no split"),
        ([("a cat", None, None), ("a dog", None, "train")], r"csv:2: no split"),
    ],
)
def test_splits_that_cannot_be_are_refused(
    rows: list[tuple[str | None, ...]], message: str, tmp_path: Path
) -> None:
    path = table(tmp_path / "prompts.csv", rows)
    with pytest.raises(InputError, match=message):
        from_file("train", path=path)
    assert read_prompts(Path(path))  # for sample.py, which knows of no splits


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [("split", 3, "'split' must be one of"), ("split", ["train"], "'split' must be one of"),
     ("category", 3, "'category' must be a text"), ("category", {}, "'category' must be a text")],
)  # fmt: skip
def test_cells_of_other_kinds_are_refused(
    column: str, cell: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a dog", column: cell}))
    with pytest.raises(InputError, match=rf"prompts.jsonl:1: {message}"):
        from_file("train", path=str(path))


def test_a_split_that_no_prompt_has_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "prompts.csv", [("a dog", None, "train")])
    with pytest.raises(InputError, match="no prompt in its final split; give some of them"):
        from_file("final", path=path)
