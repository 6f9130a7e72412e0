"""A multimodal model trained as a critic: what learns, what stays to the bit, what is saved."""

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.protocols import PointCritic
from ipo_lightning.critics.scorers.reward import RewardCritic
from ipo_lightning.critics.scorers.reward_model import RewardModel, load_reward
from ipo_lightning.errors import InputError
from ipo_lightning.reward.losses import RewardScale, bradley_terry_ties
from ipo_lightning.reward.module import measure_scale
from ipo_lightning.reward.multimodal import (
    CriticLora,
    MultimodalReward,
    default_rubric,
    token,
)
from tests.helpers import tiny_vlm

PROMPTS = ["a dog", "a cat that runs", "<|VQ_reward|> a trap", "rain"]
EMBEDDINGS = "language_model.embed_tokens.weight"


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.save_model(tmp_path_factory.mktemp("vlm") / request.param, request.param)


def family(folder: Path, **settings: Any) -> MultimodalReward:
    defaults: dict[str, Any] = {
        "dims": ("VQ", "TA"), "dtype": "float32", "viewing": Viewing(**tiny_vlm.SMALL),
        "lora": CriticLora(rank=4, alpha=8),
    }  # fmt: skip
    return MultimodalReward(str(folder), **(defaults | settings))


def batch(made: MultimodalReward) -> dict[str, Tensor]:
    """Two pairs: the first two videos are better."""
    return made.inputs([tiny_vlm.clip(seed) for seed in range(4)], PROMPTS[:2] * 2)


def train(network: torch.nn.Module, inputs: dict[str, Tensor], steps: int = 25) -> list[float]:
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    labels = torch.tensor([[1.0, -1.0], [1.0, math.nan]])
    losses = []
    for _ in range(steps):
        first, second = network(**dict(inputs)).chunk(2)
        loss = bradley_terry_ties(first, second, labels, ties=1.5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def base_weights(folder: Path) -> dict[str, Tensor]:
    """The untrained backbone's, by the names of a reward model."""
    plain = family(folder)
    network = plain.build()
    state: dict[str, Tensor] = network.backbone.state_dict()  # type: ignore[union-attr,operator]
    return {_plain(name): value.clone() for name, value in state.items() if "lora" not in name}


def _plain(name: str) -> str:
    for part in ("base_model.model.", "base_layer.", "token_adapter."):
        name = name.replace(part, "")
    return name


@pytest.mark.slow
def test_the_loss_falls_and_the_critic_says_the_same_after_saving(
    folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = family(folder)
    network, inputs = made.build().train(), batch(made)
    losses = train(network, inputs)
    assert losses[-1] < 0.3 * losses[0]
    network.eval()
    clips = [tiny_vlm.clip(seed) for seed in range(4)]
    with torch.no_grad():
        rewards = network(**dict(inputs))
    scale = measure_scale(network, [inputs], torch.device("cpu"))
    made.export(network, tmp_path / "critic", scale)

    critic = RewardCritic(str(tmp_path / "critic"), dtype="float32")
    assert isinstance(critic, PointCritic)
    critic.load("cpu")
    ratings = critic.rate(clips, PROMPTS[:2] * 2)
    found = torch.tensor([[rating.dims[name] for name in ("VQ", "TA")] for rating in ratings])
    torch.testing.assert_close(found.double(), scale.scores(rewards), atol=2e-4, rtol=1e-4)
    assert found.mean(0).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert found[0, 0] > found[2, 0] and found[0, 1] < found[2, 1], "as the labels say"


@pytest.mark.slow
def test_only_adapters_head_and_the_tokens_rows_move(folder: Path, tmp_path: Path) -> None:
    """Under weight decay, which would shrink rows that have no gradient."""
    torch.manual_seed(0)
    before = base_weights(folder)
    made = family(folder)
    network = made.build().train()
    assert isinstance(network, RewardModel)
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert all("lora_" in n or n == "head.weight" or "trainable_tokens" in n for n in names)
    assert all(p.dtype == torch.float32 for p in network.parameters() if p.requires_grad)
    train(network, batch(made), steps=3)
    made.export(network, tmp_path, RewardScale((0.0, 0.0), (1.0, 1.0)))
    model, inputs = load_reward(tmp_path, torch.float32)
    after = {n.removeprefix("backbone."): v for n, v in model.state_dict().items()}
    rows = torch.ones(len(after[EMBEDDINGS]), dtype=torch.bool)
    rows[list(inputs.tokens)] = False
    assert after[EMBEDDINGS][rows].equal(before[EMBEDDINGS][rows])
    assert (after[EMBEDDINGS][~rows] != before[EMBEDDINGS][~rows]).all(1).all()
    vision = [name for name in before if "visual" in name]
    assert vision and all(after[name].equal(before[name]) for name in vision)
    linears = [name for name in before if name.endswith("q_proj.weight")]
    assert linears and all((after[name] != before[name]).any() for name in linears)


def test_the_merger_is_trained_on_request(folder: Path) -> None:
    made = family(folder, merger=True)
    network = made.build().train()
    merger = [(n, p) for n, p in network.named_parameters() if "visual" in n and p.requires_grad]
    assert merger and all("merger" in name for name, _ in merger)
    train(network, batch(made), steps=1)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for _, p in merger)


@pytest.mark.slow
def test_checkpointing_changes_no_gradient(folder: Path) -> None:
    gradients = []
    for checkpointing in (True, False):
        torch.manual_seed(0)
        made = family(folder, checkpointing=checkpointing)
        network = made.build().train()
        network(**batch(made)).sum().backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 4
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_what_comes_before_the_prompt_cannot_depend_on_it(folder: Path) -> None:
    torch.manual_seed(0)
    made = family(folder)
    network = made.build().eval()
    with torch.no_grad():
        rewards = network(**made.inputs([tiny_vlm.clip(0)] * 4, PROMPTS))
    assert rewards[:, 0].tolist() == pytest.approx([rewards[0, 0].item()] * 4, abs=1e-5)
    assert rewards[:, 1].std() > 1e-4


def test_bfloat16_is_frozen_and_float32_learns(folder: Path) -> None:
    made = family(folder, dtype="bfloat16")
    network = made.build()
    kinds = {p.requires_grad: p.dtype for p in network.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_the_identity_is_of_the_settings_and_the_backbone(folder: Path) -> None:
    same = family(folder).identity
    assert same == family(folder).identity
    others = [{"dims": ("VQ",)}, {"positions": "sequential"}, {"lora": CriticLora(8, 8)},
              {"merger": True}, {"dtype": "bfloat16"}]  # fmt: skip
    assert len({same, *(family(folder, **other).identity for other in others)}) == 6


def test_the_shipped_rubric_has_each_token_once_and_quality_before_the_prompt() -> None:
    words = default_rubric(("TA", "VQ", "MQ", "Overall"))
    assert all(words.count(token(dim)) == 1 for dim in ("TA", "VQ", "MQ", "Overall"))
    places = [
        words.index(mark) for mark in (token("VQ"), token("MQ"), "{text_prompt}", token("TA"))
    ]
    assert places == sorted(places)


def test_what_cannot_work_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text for wit"):
        family(folder, dims=("VQ", "wit"))
    with pytest.raises(InputError, match="^rubric=.*no such file"):
        family(folder, rubric=str(tmp_path / "none.txt"))
    with pytest.raises(InputError, match="rank=0"):
        CriticLora(rank=0)
    with pytest.raises(InputError, match="^dtype=float16: "):
        family(folder, dtype="float16")
    with pytest.raises(InputError, match=r"^model=.*neither a folder"):
        family(tmp_path / "nowhere")


def test_weights_are_read_from_safetensors_only(folder: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    weights = load_file(pickled / "model.safetensors")
    torch.save(weights, pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"network\.model=.*cannot be read"):
        family(pickled).build()
