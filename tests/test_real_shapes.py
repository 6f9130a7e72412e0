"""The published transformers, without their weights: torch's meta device holds shapes alone."""

from typing import Any, NamedTuple

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import nn

from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.backbones.diffusers_folder import Lora
from ipo_lightning.backbones.wan import Wan


class Published(NamedTuple):
    """A transformer of a hub and the size of its files there."""

    kind: Any
    config: dict[str, Any]
    """Where it differs from the class's defaults."""
    parameters: int
    gigabytes: float
    """Of the published weights, in 10^9 bytes."""
    bytes_each: int


COGVIDEOX_5B = {
    "num_attention_heads": 48,
    "attention_head_dim": 64,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
}
COGVIDEOX_1_5 = {"patch_size_t": 2, "patch_bias": False, "sample_frames": 81}
WAN = {"attention_head_dim": 128, "freq_dim": 256, "text_dim": 4096, "in_channels": 16}

MODELS = {
    "CogVideoX-2b": Published(
        CogVideoXTransformer3DModel,
        {"num_attention_heads": 30, "attention_head_dim": 64, "num_layers": 30},
        1_693_783_872, 3.39, 2,
    ),
    "CogVideoX-5b": Published(
        CogVideoXTransformer3DModel, COGVIDEOX_5B, 5_570_283_072, 11.1, 2
    ),
    "CogVideoX1.5-5B": Published(
        CogVideoXTransformer3DModel, {**COGVIDEOX_5B, **COGVIDEOX_1_5}, 5_570_676_352, 11.15, 2
    ),
    "Wan2.1-T2V-1.3B": Published(
        WanTransformer3DModel,
        {**WAN, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        1_418_996_800, 5.68, 4,
    ),
    "Wan2.1-T2V-14B": Published(
        WanTransformer3DModel,
        {**WAN, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
        14_288_491_584, 28.58, 2,
    ),
}  # fmt: skip


def build(name: str) -> nn.Module:
    with torch.device("meta"):
        network: nn.Module = MODELS[name].kind(**MODELS[name].config)
    return network


@pytest.mark.parametrize("name", MODELS)
def test_a_transformer_of_the_published_shape_has_the_published_size(name: str) -> None:
    network, published = build(name), MODELS[name]
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == published.parameters
    assert published.gigabytes == pytest.approx(count * published.bytes_each / 1e9, rel=0.005)


@pytest.mark.parametrize("name", ["CogVideoX-2b", "Wan2.1-T2V-1.3B"])
def test_the_default_adapter_fits_all_attention_layers(name: str) -> None:
    family = Wan if name.startswith("Wan") else CogVideoX
    network, lora = build(name), Lora(rank=4, alpha=4)
    attentions = 2 if family is Wan else 1  # Wan attends to itself and to the text apart
    layers = attentions * MODELS[name].config["num_layers"]
    policy = object.__new__(family)  # no folder: the adapter alone is asked for
    with torch.device("meta"):
        policy._add_adapter(network, lora)
    width = MODELS[name].config["num_attention_heads"] * MODELS[name].config["attention_head_dim"]
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == layers * 4 * 2 * lora.rank * width  # four layers, two factors each


def test_the_first_patch_is_what_makes_1_5_larger() -> None:
    """Two latent frames in and out of each patch, where 1.0 has one."""
    width, patch = 48 * 64, 2 * 2 * 16
    more = patch * width + (patch * width + patch)
    sizes = [MODELS[name].parameters for name in ("CogVideoX-5b", "CogVideoX1.5-5B")]
    assert sizes[1] - sizes[0] == more
