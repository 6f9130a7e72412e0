"""The examples of one's own loss, critic and backbone run as they are, at tiny size."""

from functools import wraps
from pathlib import Path
from unittest.mock import Mock

import pytest

from app.entry import REPO
from examples import own_backbone, own_critic, own_loss
from ipo_lightning.policy import LORA_FILE
from ipo_lightning.storage.layout import RunDir
from tests.test_readme import OWN

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning's, of torch's newest


@pytest.fixture(autouse=True)
def clone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples run in the clone, beside the included pipeline."""
    monkeypatch.chdir(REPO)


@pytest.mark.slow
def test_a_loss_of_ones_own_trains_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = Mock(wraps=own_loss.bounded_loss)
    monkeypatch.setattr(own_loss, "bounded_loss", wraps(own_loss.bounded_loss)(called))
    own_loss.train(str(tmp_path), prompts_a_round=2, steps=2)
    assert called.call_count >= 4
    line = RunDir(tmp_path / "own_loss").line(1)
    assert line is not None and 0 < line["train"]["loss"] < 1


def test_the_loss_is_the_readmes() -> None:
    _, _, function = OWN["my_losses.py"].partition("def bounded_loss")
    assert function.strip() in (REPO / "examples/own_loss.py").read_text()


@pytest.mark.slow
def test_a_critic_of_ones_own_labels_a_round(tmp_path: Path) -> None:
    pairs = own_critic.label(str(tmp_path), prompts_a_round=2, steps=2)
    verdicts = {one.video: one for one in RunDir(tmp_path / "own_critic").round(1).verdicts()}
    assert len(verdicts) == 12 and pairs
    for pair in pairs:
        assert verdicts[pair.winner_video].score > verdicts[pair.loser_video].score
        assert verdicts[pair.winner_video].raw.endswith("grey levels")


@pytest.mark.slow
def test_a_model_of_ones_own_is_trained_by_an_adapter(tmp_path: Path) -> None:
    policy = own_backbone.train(outputs=str(tmp_path), prompts_a_round=2, steps=2)
    assert (Path(policy) / LORA_FILE).exists()
    assert (RunDir(tmp_path / "own_backbone").round(1).path / "beta.json").exists()
