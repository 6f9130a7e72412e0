"""The examples run as they are, at tiny size, and are as short as they say."""

import ast
import json
from pathlib import Path

import pytest

import ipo_lightning
from app.entry import REPO
from examples import offline_preferences, train_from_python
from ipo_lightning.shapes.prompts import prompts
from ipo_lightning.shapes.world import FPS, clean_clips, defective_clips
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import read_jsonl
from ipo_lightning.video import Clip, write_video

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning's, of torch's newest


def lines_of_code(source: str, *, imports: bool = True) -> int:
    """Lines without blanks, comments and docstrings, and without imports where asked."""
    tree = ast.parse(source)
    left_out: set[int] = set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text or (not imports and isinstance(node, ast.Import | ast.ImportFrom)):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    rows = enumerate(source.splitlines(), 1)
    return sum(
        bool(row.strip()) and not row.strip().startswith("#") and number not in left_out
        for number, row in rows
    )


@pytest.mark.parametrize(
    ("name", "most", "imports"),
    [("train_from_python", 30, True), ("offline_preferences", 20, False)],
)
def test_an_example_is_short(name: str, most: int, imports: bool) -> None:
    source = (REPO / "examples" / f"{name}.py").read_text()
    assert lines_of_code(source, imports=imports) <= most


def test_every_example_is_run_here() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    assert {
        path.stem for path in (REPO / "examples").glob("*.py") if path.stem not in text
    } == set()


def test_names_at_the_door_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(ipo_lightning.__file__).read_text())
    seen = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ipo_lightning.")
        for alias in node.names
    }
    assert seen == set(ipo_lightning.__all__)
    for name in seen:
        assert getattr(ipo_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Samplr'"):
        _ = ipo_lightning.Samplr  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_loop_runs_from_python_and_grows_by_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    train_from_python.train(str(tmp_path), rounds=1, prompts_a_round=2)
    run = RunDir(tmp_path / "from_python")
    first = run.lines()
    train_from_python.train(str(tmp_path), rounds=2, prompts_a_round=2)
    assert run.lines()[:2] == first
    assert [line["round"] for line in run.lines()] == [0, 1, 2]
    assert len({line["policy"] for line in run.lines()}) == 3
    assert (run.round(2).policy / "config.json").exists()


@pytest.mark.slow
def test_preference_data_of_ones_own_are_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    file = write_preferences(tmp_path / "mine", prompts("train")[:12])
    offline_preferences.train(str(file), str(tmp_path), optimizer_steps=2)
    run = RunDir(tmp_path / "offline")
    rows, line = read_jsonl(run.round(1).pairs_file), run.line(1)
    assert line is not None and line["n_pairs"] == len(rows)
    evaluated = {row["prompt"] for row in read_jsonl(run.round(1).evaluation_file)}
    assert evaluated and not evaluated & {row["prompt"] for row in rows}
    assert "rollout" in line["seconds"] and line["train"]["loss"] > 0


def write_preferences(folder: Path, captions: list[str]) -> Path:
    """Clean clips preferred to jittery ones, as ``pairs.jsonl`` beside the videos."""
    folder.mkdir()
    good, bad = clean_clips(captions, 0), defective_clips(captions, "jitter", 1)
    rows = []
    for number, caption in enumerate(captions):
        row = {"prompt": caption, "chosen": f"{number}a.mp4", "rejected": f"{number}b.mp4"}
        for clips, name in ((good, row["chosen"]), (bad, row["rejected"])):
            write_video(folder / name, Clip(clips[number], FPS), lossless=True)
        rows.append(row)
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
