"""A critic's training that a signal ends goes on from its last look, with the same bits."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.signals import Stopped
from ipo_lightning.reward.module import RewardModule
from ipo_lightning.shapes.annotators import PAIRS_FILE, annotate
from tests import conftest
from train import train_critic

WORDS = (
    "network.steps=0", "network.clips=64", "network.width=8", "data.optimizer_steps=3",
    "data.batch_size=4", "stopping.epochs=3", "trainer.accelerator=cpu", "logger=none",
    "trainer.enable_progress_bar=false", "name=run",
)  # fmt: skip


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., DictConfig]:
    """The settings of ``python train.py task=critic OVERRIDES...``, a training of seconds."""
    annotate(tmp_path / "labels", pairs=20, source="renderer", candidates=2)
    path = f"data.path={tmp_path / 'labels' / PAIRS_FILE}"

    def compose_critic(outputs: str, *overrides: str) -> DictConfig:
        return conftest.composed("train_critic", path, *WORDS, *overrides,
                                 outputs=tmp_path / outputs)  # fmt: skip

    return compose_critic


@pytest.mark.slow
def test_a_signal_leaves_at_once_and_the_training_goes_on(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another run")
    monkeypatch.chdir(tmp_path)
    for name, value in {"NTASKS": "1", "JOB_ID": "7", "JOB_NAME": "critic"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    unbroken = train_critic(composed("unbroken"))
    step, count = RewardModule.training_step, iter(range(1, 100))

    def signalled(self: RewardModule, *args: Any) -> Any:
        if next(count) == 5:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RewardModule, "training_step", signalled)
        with pytest.raises(Stopped, match="stopped by SIGTERM; the same command") as stopped:
            train_critic(composed("outputs"))
    assert stopped.value.code == 143
    assert not (tmp_path / "outputs" / "run" / "critic").exists()
    assert train_critic(composed("outputs")) == unbroken


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*made anew")
def test_a_finished_critic_that_was_damaged_is_made_anew(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    figures = train_critic(composed("outputs"))
    folder = tmp_path / "outputs" / "run" / "critic"
    for name in ("model.safetensors", "network.json"):
        file = folder / name
        content = file.read_bytes()
        for damaged in (b"", content[:-1] + b"?", None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            with pytest.warns(UserWarning, match=f"{name} is gone, or not as it was written"):
                assert train_critic(composed("outputs")) == figures
            assert file.read_bytes() == content
    for name in ("best.ckpt", "last.ckpt"):
        (folder.parent / "checkpoints" / name).unlink()
        (folder / "model.safetensors").unlink()
        with pytest.warns(UserWarning, match=f"{name} is damaged .it is gone"):
            assert train_critic(composed("outputs")) == figures


@pytest.mark.parametrize(
    "word", ["max_time={minutes:1}", "max_steps=2", "limit_train_batches=1", "fast_dev_run=true"]
)
def test_a_training_cut_short_is_refused(composed: Callable[..., DictConfig], word: str) -> None:
    with pytest.raises(InputError, match=rf"trainer\.{word.partition('=')[0]}"):
        train_critic(composed("outputs", f"+trainer.{word}"))
