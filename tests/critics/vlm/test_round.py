"""A round that a multimodal model labels: from the configuration to pairs."""

import json
from pathlib import Path

import pytest

from ipo_lightning.critics.vlm.local import LocalVLM
from ipo_lightning.storage.layout import RunDir
from tests.conftest import ComposeTrain
from tests.helpers import tiny_vlm
from train import train


@pytest.mark.slow
def test_a_checklist_labels_a_round(
    small: ComposeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each video is asked the whole list once; other labels of the same verdicts ask nothing."""
    folder = tiny_vlm.save_model(tmp_path / "vlm", "qwen2_vl")
    seen = {f"viewing.{key}": value for key, value in tiny_vlm.SMALL.items()}
    vlm = {"model": folder, "dtype": "float32", **seen}
    words = ["critic=vlm_pointwise", "round=1", "evaluation.n=1",
             *(f"critic.vlm.{key}={value}" for key, value in vlm.items())]  # fmt: skip
    train(small(*words))
    run = RunDir(tmp_path / "outputs" / "run")
    rows = [
        json.loads(line)
        for line in (run.path / "round_1" / "verdicts.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 9 and not any(row["fault"] for row in rows)
    names = ["alignment", "consistency", "motion", "quality"]
    assert all(sorted(row["dims"]) == names for row in rows)
    assert all(len(json.loads(row["raw"])) == 12 for row in rows)
    assert len({row["score"] for row in rows}) > 1 and all(0 < row["score"] < 1 for row in rows)

    def refuse(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(LocalVLM, "load", refuse)
    train(small(*words, "name=again", "loss=kto", "until=labelling"))
    assert (run.path.parent / "again" / "round_1" / "points.jsonl").exists()
