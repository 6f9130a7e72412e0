"""Several runs on one page, and the command line."""

from pathlib import Path

import pytest

from ipo_lightning.report.__main__ import main
from ipo_lightning.report.run import read_run
from ipo_lightning.report.sweep import doubts, run_rows, seeds_of, write_comparison
from tests.report.runs import line, write_jsonl, write_run

SEEDS = (0.1, 0.2, 0.3)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three seeds with gains of .1, .2 and .3 in round 1, and another loss."""
    made = []
    for number, gain in enumerate((*SEEDS, 0.0)):
        run = write_run(tmp_path / "made", rounds=1, prompts=2).rename(
            tmp_path / f"run {number}<b>"
        )
        loss = "kto_loss" if number == 3 else "dpo_loss"
        (run / "config.yaml").write_text(
            f"name: 'run {number}<b>'\nseed: {number}\nround: 1\nloss: {{_target_: x.{loss}}}\n"
        )
        own = {"gain": {"mean": gain, "low": gain - 0.01, "high": gain + 0.01}}
        write_jsonl(run / "rounds.jsonl", [line(0), line(1) | own])
        made.append(run)
    return made


def test_seeds_have_the_interval_between_them(runs: list[Path]) -> None:
    (group,) = seeds_of([read_run(one) for one in runs])
    found = group.between("gain.mean")
    half = 4.302653 * 0.1 / 3**0.5  # Student's t with 2 degrees
    assert len(group.runs) == 3 and group.round == 1
    assert (found.value, found.low) == pytest.approx((0.2, 0.2 - half), abs=1e-5)


def test_a_run_is_told_by_what_others_do_not_share(runs: list[Path]) -> None:
    rows = run_rows([read_run(one) for one in runs])
    assert [row["settings"] for row in rows] == ["seed=0", "seed=1", "seed=2",
                                                 "seed=3, loss=kto_loss"]  # fmt: skip
    assert [row["best"] for row in rows] == ["1", "1", "1", "base"]


@pytest.mark.slow
def test_the_page_of_several_runs(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    page = runs[0].parent / "comparison.html"
    (runs[1] / "report.html").touch()
    store = runs[0].parent / "made" / "store"
    assert main([*map(str, runs), str(store)]) == 0
    assert capsys.readouterr().out == f"report: {page}\n"
    text = page.read_text()
    assert (
        "Best by the lower end of the judge's gain over the base: run 2&lt;b&gt;"
        in text.replace("&#x27;", "'")
    )
    assert 'href="./run%201%3Cb%3E/report.html"' in text and text.count("<a ") == 1
    folder = page.with_suffix("")
    assert {one.name for one in folder.iterdir()} == {"comparison.md", "curves.png", "curves.svg"}
    assert r"run 3\<b\>" in (folder / "comparison.md").read_text()


def test_runs_on_other_prompts_are_told(runs: list[Path], tmp_path: Path) -> None:
    alike = [read_run(one) for one in runs[:2]]
    assert doubts(alike) == []
    other = read_run(write_run(tmp_path / "other", rounds=1, prompts=3))
    assert "different prompts" in doubts([*alike, other])[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["nowhere"], "no run folder"), (["out=a.html"], "give the folder of a run"),
     (["run", "out=a.txt"], "give an .html file")],
)  # fmt: skip
def test_wrong_words_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    assert said in capsys.readouterr().err


def test_a_run_given_twice_is_refused(runs: list[Path]) -> None:
    with pytest.raises(ValueError, match="given twice"):
        write_comparison([runs[0], runs[0]])
