"""Two processes: uneven prompts, the same videos as one process makes, resumption after a loss."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ipo_lightning.storage.store import read_jsonl
from tests.conftest import ComposeTrain
from tests.helpers.ranks import ranks
from train import train

REPO = Path(__file__).resolve().parents[2]
COMMON = (
    "rollout.prompts=3", "rollout.n=2", "rollout.steps=2", "data.optimizer_steps=4",
    "labelling.pair_rule.margin=0", "labelling.filters.motion_ratio=0", "evaluation.n=1",
    "evaluation.split=select", "evaluation.prompts=3", "callbacks.iteration.checkpoint_every=2",
    "callbacks.progress=null", "callbacks.videos=null", "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu", "logger=none", "name=run",
)  # fmt: skip


SETTINGS = {
    "ddp": ("trainer=ddp",),
    "ddp, adapter": (
        "trainer=ddp",
        "experiment=shapes_lora",
        "reference=adapter",
        "critic=shapes_pairwise",  # whose evaluations are comparisons with the base's videos
    ),
    "fsdp": (
        "trainer=fsdp",
        "trainer.accumulate_grad_batches=2",
        "backbone.checkpointing=true",
        "optim.ema=0.5",
    ),
    "fsdp, adapter": (  # some ranks have no prompt left while others sample
        "trainer=fsdp",
        "experiment=shapes_lora",
        "step=two_pass",
        "trainer.strategy.gather_to_sample=false",
    ),
}


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
BY_TORCHRUN = "fsdp, adapter"
"""The setting whose processes torchrun starts; others are forked with their imports done. That
Lightning starts them is tested in tests/hub/test_checkpoints.py."""


def two_processes(compose_train: ComposeTrain, outputs: Path, *more: str) -> int:
    """Train on two CPU processes; their exit status."""
    words = (*COMMON, "trainer.devices=2", "data.batch_size=2", *more)
    if set(SETTINGS[BY_TORCHRUN]) <= set(more):
        program = [sys.executable, *TORCHRUN, "train.py", *words, f"paths.outputs={outputs}"]
        return subprocess.run(program, cwd=REPO, capture_output=True, check=False).returncode
    return ranks(train, compose_train(*words, outputs=outputs))


def lines(outputs: Path) -> list[dict[str, Any]]:
    """rounds.jsonl but for the seconds."""
    text = (outputs / "run" / "rounds.jsonl").read_text()
    return [{k: v for k, v in json.loads(row).items() if k != "seconds"}
            for row in text.splitlines()]  # fmt: skip


CRASHES = {
    # Lost in round 1's training, then in round 2's rollout (of its three units one rank begins a
    # second one), then let alone.
    "ddp": {
        "optimizer_steps:3": "round_2",
        "rollout:2,videos_of:2": "round_2/candidates.jsonl",
    },
    "fsdp": {"optimizer_steps:3": "round_1/policy.json"},
}
"""Where runs are lost, and what is not there yet."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", SETTINGS)
def test_two_processes_make_what_one_makes_and_survive_losses(
    tmp_path: Path, compose_train: ComposeTrain, kind: str
) -> None:
    two, lost, fewer, one = (tmp_path / name for name in ("two", "lost", "fewer", "one"))
    last = 2 if kind == "ddp" else 1
    settings = [*SETTINGS[kind], f"round={last}"]
    many = ("trainer=", "trainer.strategy")
    alone = [*COMMON, *(word for word in settings if not word.startswith(many)),
             "data.batch_size=4"]  # fmt: skip
    assert two_processes(compose_train, two, *settings) == 0
    for place, missing in CRASHES.get(kind, {}).items():
        crash = f"+callbacks.crash={{_target_:tests.helpers.interrupt.CrashAt,{place}}}"
        assert two_processes(compose_train, lost, *settings, crash) != 0
        assert (lost / "run/round_1").exists() and not (lost / "run" / missing).exists()
    train(compose_train(*alone, outputs=one))
    if kind in CRASHES:
        shutil.copytree(lost, fewer)
        assert two_processes(compose_train, lost, *settings) == 0
        assert lines(lost) == lines(two)
        train(compose_train(*alone, outputs=fewer))  # what two began, one goes on with
        nearly_alike(lines(fewer)[last], lines(one)[last])

    for name in ("candidates", "verdicts", "pairs"):
        file = f"run/round_1/{name}.jsonl"
        assert (one / file).read_text() == (two / file).read_text(), "one process differs"
    nearly_alike(lines(one)[last], lines(two)[last])
    assert len(read_jsonl(two / f"run/round_{last}/candidates.jsonl")) == 6


def nearly_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Training sums in another order on another number of ranks."""
    assert ours["train"] == pytest.approx(theirs["train"], rel=1e-2, abs=1e-6)
    assert ours["eval_score"] == pytest.approx(theirs["eval_score"], abs=1e-3)
