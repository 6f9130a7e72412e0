"""A critic of foreseen latents, taught by a round's own candidates."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ipo_lightning.critics.protocols import LatentCritic
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.agreement import spearman
from ipo_lightning.reward.latents import (
    Foreseen,
    TrainedLatentCritic,
    foreseen_of,
    save_latent_critic,
    train_latent_critic,
)
from ipo_lightning.storage.layout import RunDir, drafts_in
from ipo_lightning.storage.records import Candidate, Verdict
from ipo_lightning.storage.store import Store
from tests.helpers.tiny import normal

PROMPTS = ("more red", "less red")
SHAPE = (2, 3, 4, 4)


def videos(prompt: str, seed: int, level: float) -> tuple[Tensor, Tensor]:
    """Six latents (F, C, H, W), blurred by the noise level, and their scores: how high the second
    channel is, or how low, as the prompt asks."""
    clean = normal(seed, 6, *SHAPE) + normal(seed + 1, 6, 1, SHAPE[1], 1, 1)
    wanted = clean[:, :, 1].flatten(1).mean(1) * (1 if prompt == PROMPTS[0] else -1)
    return clean * (1 - level), torch.stack([wanted, clean[:, :, 0].flatten(1).mean(1)], 1)


def rows(count: int, seed: int) -> list[Foreseen]:
    """Prompts with their videos, each foreseen at two levels."""
    found = []
    for place in range(count):
        prompt, one = PROMPTS[place % 2], seed + 2 * place
        levels = [0.5, 0.0]
        latents = torch.stack([videos(prompt, one, level)[0] for level in levels])
        found.append(Foreseen(prompt, latents, levels, videos(prompt, one, 0.0)[1]))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained critic's folder."""
    place = tmp_path_factory.mktemp("latent")
    net = train_latent_critic(rows(24, 0), 2, steps=150, prompts_a_step=4, width=8, lr=1e-2)
    save_latent_critic(net, place)
    return place


@pytest.mark.slow
def test_it_orders_other_videos_as_the_critic_does(folder: Path) -> None:
    """By the prompt's words, at each noise level; each video by itself."""
    critic = TrainedLatentCritic(str(folder))
    assert isinstance(critic, LatentCritic) and critic.identity.startswith("latents@")
    critic.load("cpu")
    for prompt in PROMPTS:
        for level in (0.5, 0.0):
            latents, scores = videos(prompt, 900, level)
            found = critic.rate_latents(latents, level, [prompt] * 6)
            ours = torch.tensor([one.score for one in found])
            assert spearman(ours, scores[:, 0]) > 0.8
            assert critic.rate_latents(latents[2:3], level, [prompt]) == found[2:3]
    critic.release()
    with pytest.raises(RuntimeError, match="load the latent critic"):
        critic.rate_latents(latents, 0.0, [prompt] * 6)


def test_training_is_a_function_of_its_seed() -> None:
    first, again, other = (
        train_latent_critic(rows(2, 0), 1, steps=2, width=4, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first.words.weight, again.words.weight)
    assert not torch.equal(first.words.weight, other.words.weight)
    assert first.spec.channels == SHAPE[0]  # Wan's axis


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no latent critic"):
        TrainedLatentCritic(str(tmp_path))


def test_what_a_runs_rounds_can_teach(tmp_path: Path) -> None:
    """Finished candidates, and pruned ones as they were foreseen; only what the critic scored."""
    store, run = Store(tmp_path / "store"), RunDir(tmp_path / "run")
    for folder, level in ((run.round(1), None), (drafts_in(run.round(1)), 0.75)):
        candidates, verdicts = [], []
        for k in range(3):
            tensors = {"latents": torch.full(SHAPE, float(k))}
            if level is not None:
                tensors |= {"noise_level": torch.tensor(level)}
            name = store.put_tensors("latents", tensors)
            candidates.append(Candidate(7, "a red ring", k, k, name, f"video{k}"))
            score = None if k == 1 else 0.1 * k
            verdicts.append(Verdict(7, k, f"video{k}", "rules", score, {"motion": 0.5}))
        folder.write(folder.candidates_file, candidates)
        folder.write(folder.verdicts_file, verdicts)
    finished, pruned = foreseen_of(run, store)
    assert (finished.noise_levels, pruned.noise_levels) == ([0.0], [0.75])
    assert finished.latents.shape == (1, 2, *SHAPE) and finished.prompt == "a red ring"
    assert torch.allclose(pruned.scores, torch.tensor([[0.0, 0.5], [0.2, 0.5]]))
