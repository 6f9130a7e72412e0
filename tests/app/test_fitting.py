"""What would make a run fit: the smallest changes of its settings."""

import json
import shutil
from pathlib import Path

import pytest

from app.entry import REPO
from app.planning.fitting import smallest_change, smallest_changes
from app.planning.jobs import job_of, readable
from ipo_lightning.planning.estimate import GIB, Estimate
from tests.conftest import ComposeTrain


@pytest.mark.slow
def test_the_smallest_change_is_found(compose_train: ComposeTrain, tmp_path: Path) -> None:
    """On the embedded world with two blocks, whose fullest stage is the training."""
    folder = shutil.copytree(REPO / "ipo_lightning/shapes/pipeline", tmp_path / "shallow")
    config = folder / "transformer/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 2}))
    words = f"backbone.path={folder}", "backbone.decode_batch=1", "plan.memory_gib=80"
    cfg = compose_train(*words)
    estimate = Estimate(job_of(cfg))
    assert estimate.fullest.name == "training"
    need = estimate.fullest.total
    found = smallest_change(cfg, need * 0.99)
    assert found is not None and found.bytes < need
    assert [change.shown for change in found.changes] == ["backbone.checkpointing=true"]
    changed = compose_train(*words, "backbone.checkpointing=true")
    assert Estimate(job_of(changed)).fullest.total == found.bytes
    assert smallest_change(cfg, 2**20) is None and smallest_changes(cfg, 2**10) is None
    together = smallest_changes(cfg, found.bytes * 0.9)
    assert together is not None and len(together.changes) > 1


@pytest.mark.slow
def test_a_whole_network_that_is_too_large_is_trained_by_an_adapter(
    compose_train: ComposeTrain, tmp_path: Path
) -> None:
    words = ("experiment=ipo_cogvideox_5b_fsdp", "critic=shapes", "eval_critic=shapes_judge",
             f"data.prompts.path={tmp_path / 'prompts.txt'}", "trainer=auto")  # fmt: skip
    (tmp_path / "prompts.txt").write_text("".join(f"{n} apples\n" for n in range(400)))
    cfg = compose_train(*words, "trainer.devices=1", "backbone.tiling=true")
    with readable(cfg) as (settled, _):
        found = smallest_change(settled, 60 * GIB)
    assert found is not None and "backbone.lora" in found.changes[0].settings
