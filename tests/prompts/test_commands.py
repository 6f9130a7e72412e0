"""python -m ipo_lightning.prompts: prompts of one's own, benchmarks, checks, refusals, a model."""

import json
from pathlib import Path

import pytest

from ipo_lightning.prompts.__main__ import main
from ipo_lightning.prompts.expanding import LONGEST, SHORTEST, caption_of
from ipo_lightning.prompts.sets import read_set
from tests.helpers.vlm_server import Answer, Request, completion, served

LEAKED = "A donkey scratching itself against a post"


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that is refused says."""
    assert main(words) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) <= 3
    return said.removeprefix("error: ")


def test_prompts_of_ones_own_join_a_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, mine = tmp_path / "set.jsonl", tmp_path / "mine.txt"
    mine.write_text("A crab digs in wet sand\nin wet sand a crab digs\nTwo kites over a field\n")
    words = ("add", f"path={mine}", f"out={out}", "category=own", "against=")
    assert main(words) == 0
    assert "2 of 3 prompts added" in capsys.readouterr().out
    added = read_set(out)
    assert [one.category for one in added] == ["own", "own"]
    assert main(words) == 0
    assert "0 of 3 prompts added" in capsys.readouterr().out
    assert main(["compose", f"out={out}", "n=12", "against="]) == 0
    assert "own: " in capsys.readouterr().out
    assert read_set(out)[:2] == added and len(read_set(out)) == 14


def test_a_benchmarks_prompts_stay_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped seed composes one that is like this."""
    vbench = tmp_path / "VBench_full_info.json"
    vbench.write_text(json.dumps([{"prompt_en": LEAKED, "dimension": []}]))
    free, clean = tmp_path / "free.jsonl", tmp_path / "clean.jsonl"
    assert main(["compose", f"out={free}", "n=12", "against="]) == 0
    assert "not checked against VBench's prompts" in capsys.readouterr().out
    said = refusal(capsys, "check", f"path={free}", f"against={vbench}")
    assert "1 prompts are like prompts of a benchmark" in said and LEAKED in said
    assert main(["compose", f"out={clean}", "n=12", f"against={vbench}"]) == 0
    assert main(["check", f"path={clean}", f"against={vbench}"]) == 0
    assert f"no prompt is like one of {vbench}" in capsys.readouterr().out


def test_the_list_of_vbench_is_found_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("VBench_full_info.json").write_text(json.dumps([{"prompt_en": LEAKED}]))
    Path("set.txt").write_text(f"{LEAKED} in the rain\n")
    assert "like prompts of a benchmark" in refusal(capsys, "check", "path=set.txt")


def test_near_duplicates_across_splits_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "set.csv"
    file.write_text("prompt,split\na red fox runs in snow,train\nin snow a red fox runs,final\n")
    said = refusal(capsys, "check", f"path={file}", "against=")
    assert "1 prompts are near-duplicates of prompts in another split" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compose"], "out has no default: give out=VALUE"),
        (["compose", "out=a.jsonl", "m=3"], "m=3: give "),
        (["compose", "out=a.jsonl", "n=0"], "n=0: give a whole number, at least 1"),
        (["compose", "out=a.jsonl", "n=x"], "n=x: give a whole number"),
        (["compose", "out=a.jsonl", "final=1.5"], "final=1.5: give a number, in [0, 1)"),
        (["compose", "out=a.jsonl", "final=nan"], "final=nan: give a number"),
        (["compose", "out=a.jsonl", "select=0.5", "final=0.5"], "shares that sum below 1"),
        (["compose", "out=a.jsonl", "likeness=0"], "likeness=0.0: give a number in (0, 1]"),
        (["compose", "out=a.jsonl", "against=no.json"], "there is no file no.json"),
        (["compose", "out=a.jsonl", "model=m", "base_url=x"], "x"),
        (["add", "path=no.txt", "out=a.jsonl"], "there is no file no.txt"),
        (["check", "path=no.txt"], "there is no file no.txt"),
    ],
)
def test_wrong_settings_are_refused(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *words)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["compose", "n=6", "against="], ["add", "path=a.txt"]])
def test_a_folder_in_place_of_the_set_is_refused(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a dog\n")
    Path("set.jsonl").mkdir()
    assert "set.jsonl" in refusal(capsys, *command, "out=set.jsonl")


# ---------------------------------------------------------------- a model


def answering(request: Request) -> Answer:
    """A caption that holds its outline; of every fourth question something else."""
    outline = request.text.split("It shows this: ")[1].split("\n")[0]
    if request.draw % 4 == 0:
        return Answer(completion("I am sorry, but I cannot help with that."))
    return Answer(
        completion(f'"{outline} Soft shadows number {request.draw} move over grass and stone."')
    )


def test_a_model_expands_what_is_composed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set.jsonl"
    with served(answering) as server:
        words = (f"base_url={server.url}", "model=shapes", "against=")
        assert main(["compose", f"out={out}", "n=12", *words]) == 0
        entries = read_set(out)
        asked = len(server.requests)
        assert main(["compose", f"out={out}", "n=12", *words]) == 0
        assert len(server.requests) == asked
    assert len(entries) == 12 and asked >= 12
    for one in entries:
        assert one.outline and one.prompt.startswith(one.outline)
        assert one.prompt.endswith("stone.")
    said = capsys.readouterr().out
    if asked > 12:
        assert f"{asked - 12} answers were left out: not {SHORTEST} to {LONGEST} words" in said
    # The next ones are others: an outline is expanded once.
    assert main(["compose", f"out={out}", "n=18", "against="]) == 0
    assert len(read_set(out)) == 18


def test_a_model_that_only_refuses_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(lambda request: Answer(completion("No."))) as server:
        said = refusal(capsys, "compose", f"out={tmp_path / 'a.jsonl'}", "n=6", "against=",
                       f"base_url={server.url}", "model=shapes")  # fmt: skip
    assert "none could be expanded" in said


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        ("**A grey donkey scratching itself against a post, slowly, while the rain falls "
         "down.**", True),
        ("A donkey scratching itself against a post.", False),  # too short
        ("A cat sleeps on a sofa in the sun while the rain falls outside in the yard.", False),
        ("donkey scratching post " * 50, False),
    ],
)  # fmt: skip
def test_answers_that_are_captions(answer: str, taken: bool) -> None:
    caption = caption_of(answer, LEAKED)
    assert isinstance(caption, str) == taken
    assert not taken or str(caption).startswith("A grey donkey")
