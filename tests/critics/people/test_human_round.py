"""A round that people label: it stops for their answers, and goes on from them."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from ipo_lightning.critics.people.answers import key_of
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.records import PairVerdict
from ipo_lightning.storage.store import write_jsonl
from train import train

Compose = Callable[..., DictConfig]
PEOPLE = ("critic=human", "labelling=people", "rollout.n=2", "round=1", "critic.repeats=0.5")


def pages(outputs: Path) -> list[Path]:
    return sorted(outputs.glob("answers/questions-*/page-*.html"))


def answer_all(page: Path, likes: str = "smaller", number: int | None = None) -> Path:
    """What somebody downloads who likes the video of the smaller (larger) name; an alternative to
    the clicks of tests/critics/people/test_browser.py."""
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    rows = []
    for one in data["questions"][:number]:
        left, right = data["names"][one["left"]], data["names"][one["right"]]
        choice = "A" if (left < right) == (likes == "smaller") else "B"
        rows.append({
            "pair_id": one["id"], "prompt": one["prompt"], "video_A": left, "video_B": right,
            "shown_left": "A", "annotator": data["annotator"], "source": f"page {data['id']}",
            "seconds": 3.0, "timestamp": "2026-01-01T00:00:00Z", "Overall": choice,
        })  # fmt: skip
    file = page.parent.parent / f"answers-{data['annotator']}-{data['id'][:8]}.jsonl"
    write_jsonl(file, rows)
    return file


@pytest.mark.slow
def test_a_round_stops_for_people_and_goes_on(
    small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = small(*PEOPLE)
    outputs = Path(cfg.paths.outputs)
    line = train(cfg)
    assert line is not None and line["round"] == 0  # the base is evaluated, nothing is labelled
    told = capsys.readouterr().out
    (page,) = pages(outputs)
    assert f"open   {page} (5 to answer)" in told and "then go on with: python" in told
    assert not RunDir(outputs / "run").round(1).verdicts_file.exists()

    answer_all(page, number=2)  # not enough
    train(small(*PEOPLE))
    assert len(pages(outputs)) == 2 and "wait" not in capsys.readouterr().err
    answer_all(page)
    line = train(small(*PEOPLE))
    assert line is not None and line["round"] == 1
    one = RunDir(outputs / "run").round(1)
    winners = {key_of(p.prompt, p.winner_video, p.loser_video)[0]: p for p in one.pairs()}
    assert len(winners) == 3
    assert all(pair.winner_video < pair.loser_video for pair in winners.values())
    for verdict in one.verdicts():
        assert isinstance(verdict, PairVerdict) and verdict.certainty == 1
    told = capsys.readouterr().out
    assert (
        "annotator 1: 5 answers (0 ties, 0 cannot say), 3 s each; 2 of 2 repeats answered" in told
    )
    report = (outputs / "run" / "report.html").read_text()
    assert "same on repeats" in report and "2 / 2" in report
    assert len(pages(outputs)) == 2  # nobody is asked again


@pytest.mark.slow
def test_the_answers_folder_is_no_setting_of_a_run(small: Compose, tmp_path: Path) -> None:
    """The run's name, and its folder, stay when answers come from elsewhere."""
    from app.entry import settings

    here = settings(small("critic=human"))
    there = settings(small("critic=human", "critic.answers=elsewhere/file.jsonl"))
    assert here == there and "answers" not in here["critic"]
    assert settings(small("critic=human", "critic.annotators=2")) != here


@pytest.mark.slow
def test_two_runs_ask_once(small: Compose, tmp_path: Path) -> None:
    """The same videos, another loss: the answers are there."""
    train(small(*PEOPLE))
    outputs = Path(small().paths.outputs)
    answer_all(pages(outputs)[0])
    line = train(small(*PEOPLE, "loss=identity", "name=other", "until=labelling"))
    assert line is not None and len(pages(outputs)) == 1
    assert len(RunDir(outputs / "other").round(1).pairs()) == 3
