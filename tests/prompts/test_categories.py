"""A category goes from the file of prompts to rows of evaluation.jsonl, and changes no others."""

import json
from pathlib import Path

import pytest

from app.assembly import assemble
from app.entry import CONF
from data.prompts import SPLITS
from ipo_lightning.evaluation import EvaluatedVideo
from ipo_lightning.storage.layout import RoundDir
from ipo_lightning.storage.records import Candidate, Verdict
from tests.conftest import ComposeTrain

EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/ipo_*.yaml"))
CRITICS = ("critic=shapes", "eval_critic=shapes_judge")
ROW = EvaluatedVideo(0, "a dog", 0, 7, "v0", 0.0, {}, 1.0, {}, {})


def test_evaluated_videos_have_the_category_of_their_prompt(
    compose_train: ComposeTrain, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a dog", "category": "animal", "split": "final"},
            {"prompt": "a thing", "split": "final"}]  # fmt: skip
    rows += [{"prompt": f"a bus to {s}", "category": "bus", "split": s} for s in SPLITS[:2]]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = ("data=file", f"data.prompts.path={file}", "evaluation.real_clips=null")
    parts = assemble(compose_train(*words))
    evaluation, choice = parts.evaluation, parts.choice
    assert choice is not None and choice.categories == {"a bus to select": "bus"}
    assert evaluation.prompts == ["a dog", "a thing"]
    evaluation.gauges = {}
    made = [
        evaluation._row(
            Candidate(0, prompt, 0, 1, "l", "v"), *[Verdict(0, 0, "v", "c", 1.0)] * 2, {}
        )
        for prompt in evaluation.prompts
    ]
    assert [row.category for row in made] == ["animal", None]
    folder = RoundDir(tmp_path, 1)
    folder.write(folder.evaluation_file, made)
    lines = folder.evaluation_file.read_text().splitlines()
    assert [json.loads(line).get("category", "absent") for line in lines] == ["animal", "absent"]


def test_rows_without_a_category_are_as_before() -> None:
    """A finished round whose file is lost is made anew to the byte."""
    assert "category" not in ROW.row()
    assert EvaluatedVideo(**ROW.row()) == ROW


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_prompts(name: str, compose_train: ComposeTrain) -> None:
    cfg = compose_train(f"experiment={name}", *CRITICS)
    assert cfg.data.prompts.path.endswith("data/prompts/general.jsonl")
    assert Path(cfg.data.prompts.path).is_file()
