"""The published transformers, without their weights: torch's meta device holds shapes alone."""

from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from torch import nn

from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.backbones.lora import Lora, add_adapter
from ipo_lightning.backbones.wan import Wan
from ipo_lightning.planning.published import MODELS, T5_XXL, UMT5_XXL, write_configs


def build(name: str) -> nn.Module:
    config = MODELS[name].parts["transformer"]
    with torch.device("meta"):
        network: nn.Module = getattr(diffusers, config["_class_name"]).from_config(config)
    return network


@pytest.mark.parametrize("name", MODELS)
def test_a_transformer_of_the_published_shape_has_the_published_size(name: str) -> None:
    network, published = build(name), MODELS[name]
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == published.parameters
    assert published.gigabytes == pytest.approx(count * published.bytes_each / 1e9, rel=0.005)


@pytest.mark.parametrize("name", ["zai-org/CogVideoX-2b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"])
def test_the_default_adapter_fits_all_attention_layers(name: str) -> None:
    config = MODELS[name].parts["transformer"]
    network, lora = build(name), Lora(rank=4, alpha=4)
    attentions = 2 if name.startswith("Wan-AI") else 1  # Wan attends to itself and text apart
    layers = attentions * config["num_layers"]
    with torch.device("meta"):
        add_adapter(network, lora)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert trained == layers * 4 * 2 * lora.rank * width  # four layers, two factors each


def test_the_first_patch_is_what_makes_1_5_larger() -> None:
    """Two latent frames in and out of each patch, where 1.0 has one."""
    width, patch = 48 * 64, 2 * 2 * 16
    more = patch * width + (patch * width + patch)
    names = ("zai-org/CogVideoX-5b", "zai-org/CogVideoX1.5-5B")
    sizes = [MODELS[name].parameters for name in names]
    assert sizes[1] - sizes[0] == more


@pytest.mark.parametrize(("config", "billions"), [(T5_XXL, 4.762), (UMT5_XXL, 5.681)])
def test_a_text_encoder_has_the_published_size(config: dict[str, str], billions: float) -> None:
    kind = getattr(transformers, config["_class_name"])
    with torch.device("meta"):
        encoder = kind(kind.config_class(**config))
    assert sum(p.numel() for p in encoder.parameters()) / 1e9 == pytest.approx(billions, abs=0.001)


@pytest.mark.parametrize("name", MODELS)
def test_published_configs_are_a_folder_that_policies_read(name: str, tmp_path: Path) -> None:
    path = str(write_configs(MODELS[name], tmp_path))
    policy = Wan(path) if name.startswith("Wan-AI") else CogVideoX(path)
    assert policy.latent_shape and policy.objective()
    own = getattr(diffusers, MODELS[name].parts["vae"]["_class_name"])
    written = own.load_config(path, subfolder="vae")
    with torch.device("meta"):
        taken = own.from_config(written).config
    for key in written.keys() - {"_class_name"}:
        value = taken[key]  # a key that the class does not know would be missing
        assert (list(value) if isinstance(value, tuple) else value) == written[key]
