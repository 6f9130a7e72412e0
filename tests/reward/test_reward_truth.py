"""A critic that is trained on noisy labels comes to see the truth, and labels a round."""

import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from app.entry import CONF, register_resolvers
from ipo_lightning.reward.trained import TrainedCritic
from ipo_lightning.seeds import derive_seed
from ipo_lightning.shapes.annotators import (
    PAIRS_FILE,
    WEIGHTS,
    annotate,
    qualities,
    rendered_clips,
)
from ipo_lightning.shapes.prompts import prompts
from ipo_lightning.shapes.reward_encoder import ShapesReward
from tests.conftest import ComposeTrain
from tests.reward.test_reward import DIMS, rate
from train import train, train_critic


@pytest.mark.slow
def test_a_critic_of_noisy_labels_sees_the_truth_and_labels_a_round(
    small: ComposeTrain, tmp_path: Path
) -> None:
    """With half the encoder and labels of renders, on prompts that nobody has labelled; what a
    policy makes of a critic is measured by benchmarks/trained_critic.py."""
    annotate(tmp_path / "labels", pairs=300, source="renderer", candidates=4)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = [f"data.path={tmp_path / 'labels' / PAIRS_FILE}", f"paths.outputs={tmp_path}",
                 "name=critic", "network.steps=1000", "network.clips=2048", "logger=none",
                 "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]  # fmt: skip
        train_critic(compose("train_critic", words))
    folder = tmp_path / "critic/critic"
    critic = TrainedCritic(str(folder), ShapesReward())
    right = []
    for prompt in prompts("select"):
        clips = rendered_clips(prompt, [derive_seed(99, prompt, i) for i in range(6)])
        truth = [sum(WEIGHTS[n] * one[n] for n in WEIGHTS) for one in qualities(clips, prompt)]
        scores = rate(critic, clips, [prompt] * len(clips))
        right += [(scores[i] > scores[j]) == (truth[i] > truth[j])
                  for i, j in itertools.combinations(range(len(clips)), 2)]  # fmt: skip
    assert sum(right) / len(right) > 0.65, "of 360 pairs; chance is 0.5, 0.73 was measured"
    line = train(small("critic=trained", f"critic.path={folder}", "round=1"))
    assert line is not None and line["n_pairs"] == 3
    assert line["dims"].keys() == set(DIMS)
