"""What critics take of a device, by the plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from app.entry import build
from app.planning.critics import critic_lines, served_hours, unknown_critics
from app.planning.fitting import smallest_change
from app.planning.jobs import job_of
from ipo_lightning.critics.pretrained import sizes
from ipo_lightning.critics.pretrained.published import MODELS, QWEN2_VL_2B, Config
from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.stage.costs import Cost, Watched, combined, cost_of, unknown_cost
from ipo_lightning.critics.vlm.local import LocalVLM
from ipo_lightning.planning.estimate import GIB, Estimate
from ipo_lightning.planning.tracing import Tracer
from tests.conftest import ComposeTrain

VIDEO = Watched(49, 480, 720, 8.0)
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "openai/clip-vit-large-patch14": 427_616_513,
    "yuvalkirstain/PickScore_v1": 986_109_441,
}
"""Parameters, of the weights' files on the hub."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_counted(name: str) -> None:
    speaks = "Qwen" in name
    found = sizes.network_of(name, None, speaks=speaks)
    assert isinstance(found, sizes.Network)
    assert found.parameters == PUBLISHED[name] and found.source == "as published"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_published_config_is_computed(name: str) -> None:
    speaks = "vl" in MODELS[name]["model_type"]
    assert isinstance(sizes.network_of(name, None, speaks=speaks), sizes.Network)


def small() -> Config:
    """A Qwen2-VL of a few thin layers."""
    words = 3000
    text = {
        **QWEN2_VL_2B["text_config"], "hidden_size": 512, "intermediate_size": 2560,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1,
        "vocab_size": words, "bos_token_id": None, "eos_token_id": None,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24],
                            "rope_theta": 1e4},
    }  # fmt: skip
    vision = {**QWEN2_VL_2B["vision_config"], "depth": 5, "embed_dim": 256, "num_heads": 4}
    return {
        "model_type": "qwen2_vl", "tie_word_embeddings": False, "text_config": text,
        "vision_config": vision | {"hidden_size": 512}, "video_token_id": words - 1,
        "image_token_id": words - 2, "vision_start_token_id": words - 3,
        "vision_end_token_id": words - 4,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("videos", [1, 2])
def test_activations_are_those_that_a_network_makes(videos: int) -> None:
    config, viewing = small(), Viewing(least_frames=8, most_frames=8)
    network = sizes._network(json.dumps(config), True)
    seen = sizes.sight(network, viewing, Watched(17, 240, 360, 8.0))
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config)).eval()
    assert sum(one.numel() for one in model.parameters()) == network.parameters
    inputs = asked(config, viewing, videos, seen.tokens)
    with torch.inference_mode(), Tracer() as tracer:
        tracer.restart()
        model(**inputs, logits_to_keep=1)
        peak = tracer.next_phase().held
    outside = 2 * videos * seen.bytes  # the pixels, which are made before
    found = sizes.cost(network, seen, "float32", videos=videos).activations
    assert found is not None and 0.9 < (found - outside) / peak < 1.2


def asked(config: Config, viewing: Viewing, videos: int, tokens: int) -> dict[str, Any]:
    """A question's inputs."""
    height, width = viewing.fitted(240, 360, 28)
    grid = torch.tensor([[4, height // 14, width // 14]] * videos)
    start, mark, end = (
        config[f"{one}_token_id"] for one in ("vision_start", "video", "vision_end")
    )
    shown = [start, *[mark] * tokens, end] * videos
    ids = torch.tensor([[*shown, *range(sizes.WORDS)]])
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "video_grid_thw": grid,
        "pixel_values_videos": torch.zeros(int(grid.prod(1).sum()), 3 * 2 * 14 * 14),
        "mm_token_type_ids": (ids == mark).int() * 2,
    }  # fmt: skip


def test_a_critic_of_somebody_else_is_unknown_and_said_to_be() -> None:
    class Mine:
        def rate(self) -> None: ...

    found = cost_of(Mine(), VIDEO)
    assert found.held is None and found.read is None and "method cost" in found.unknown


def test_a_model_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    for model in ("some/model", str(tmp_path)):
        found = LocalVLM(model).cost(VIDEO)
        assert found.weights is None and found.unknown


def test_several_critics_are_in_memory_together_or_in_turn() -> None:
    one, two = Cost("one", weights=3, activations=1), Cost("two", weights=5)
    nothing = Cost("rules", "none")
    assert combined([one, two, nothing], together=False).held == 5
    assert combined([one, two, nothing], together=True).held == 9
    assert combined([one, unknown_cost("x", "give")], together=False).held is None
    assert combined([nothing], together=False).place == "none"


CASES = {
    "shapes": ("none", 0),
    "videoreward": ("device", 4.5),
    "clip": ("device", 1.7),
    "hpsv3": ("device", 15.3),
    "vbench": ("device", 1.9),
    "unifiedreward": ("device", 16.2),
    "vlm_pointwise": ("device", 16.1),
    "compared": ("none", 0),
    "human": ("none", 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_shipped_critic_says_its_cost(name: str, compose_train: ComposeTrain) -> None:
    cfg = compose_train(f"critic={name}")
    found, (place, size) = cost_of(build(cfg.critic, "critic"), VIDEO), CASES[name]
    assert found.place == place and not found.unknown
    assert found.held is not None and found.held / GIB == pytest.approx(size, abs=0.15)


def test_a_served_critic_takes_no_memory_and_hours_where_they_are_given(
    compose_train: ComposeTrain,
) -> None:
    cfg = compose_train("critic=vlm_pointwise", "critic/vlm=openai", "critic.vlm.model=mine")
    estimate = Estimate(job_of(cfg))
    assert "mine, at http://localhost:8000/v1" in "\n".join(critic_lines(estimate))
    assert "critique" not in [stage.name for stage in estimate.stages]
    answers = {"critic": 1800, "held-out judge": 1}
    assert list(served_hours(estimate, answers, 2.0)) == [
        "critic at its server: 1800 calls x 2 s = 1 h"
    ]
    assert "plan.critic_seconds" in next(served_hours(estimate, answers, None))
    assert unknown_critics(estimate) == ""


JUDGE = "CodeGoat24/UnifiedReward-2.0-qwen-7b"
LEVERS = {
    "critic=clip": "critic.dtype=bfloat16",
    "critic=hpsv3": "critic.frames=2",
    "critic=unifiedreward": f"critic/vlm=openai critic.vlm.model={JUDGE}",
    "eval_critic=unifiedreward": f"critic/vlm@eval_critic.vlm=openai eval_critic.vlm.model={JUDGE}",
}


@pytest.mark.slow
@pytest.mark.parametrize("choice", LEVERS)
def test_a_critic_that_does_not_fit_has_levers_of_its_own(
    choice: str, compose_train: ComposeTrain
) -> None:
    cfg = compose_train(choice)
    estimate = Estimate(job_of(cfg))
    assert estimate.fullest.name in ("critique", "evaluation")
    less = 0.7 if "hpsv3" not in choice else 0.999
    found = smallest_change(cfg, less * estimate.fullest.total)
    assert found is not None and found.changes[0].shown == LEVERS[choice]
