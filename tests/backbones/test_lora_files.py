"""LoRA files of others: every tensor is used, or the file is refused by the tensors' names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from ipo_lightning.errors import InputError
from ipo_lightning.policy import trained_weights
from tests.helpers import tiny, tiny_wan

RANK, ALPHA = 3, 5.0
FAMILIES = ("cogvideox", "wan")
Content = dict[str, Tensor]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "cogvideox": tiny.policy(tiny.save_pipeline(folder / "cogvideox")),
        "wan": tiny_wan.policy(tiny_wan.save_pipeline(folder / "wan")),
    }


def linear_layers(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]


def factors(network: nn.Module, layers: list[str] | None = None) -> Content:
    """Factors of a LoRA by the plain names, and what they add to the weights."""
    content = {}
    for number, layer in enumerate(layers or linear_layers(network)):
        weight = network.get_submodule(layer).weight
        content[f"{layer}.lora_A.weight"] = tiny.normal(2 * number, RANK, *weight.shape[1:])
        up = tiny.normal(2 * number + 1, weight.shape[0], RANK)
        content[f"{layer}.lora_B.weight"] = up.reshape(*up.shape, *[1] * (weight.ndim - 2))
    return content


def product(content: Content, layer: str, scale: float) -> Tensor:
    down, up = (content[f"{layer}.lora_{side}.weight"] for side in "AB")
    return scale * (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def effective(network: nn.Module) -> Content:
    """The weights that a network computes with, by the names of a base network."""
    found = {}
    for name, parameter in network.named_parameters():
        if ".lora_" not in name:
            found[name.replace(".base_layer.", ".")] = parameter.detach().clone()
    for layer, module in network.named_modules():
        if isinstance(module, LoraLayer):
            module.merge()
            found[f"{layer}.weight"] = module.get_base_layer().weight.detach().clone()
            module.unmerge()
    return found


def load(policy: Any, content: Content, file: Path, metadata: Any = None) -> nn.Module:
    save_file({name: one.contiguous() for name, one in content.items()}, file, metadata)
    network = policy.build()
    policy.load_lora(network, file)
    return network


def assert_changed(policy: Any, network: nn.Module, changes: Content) -> None:
    """Every weight is the base's plus its change, and no other differs."""
    base, own = dict(policy.build().named_parameters()), effective(network)
    assert own.keys() == base.keys() and changes.keys() <= base.keys()
    for name, weight in base.items():
        wanted = weight.detach() + changes.get(name, 0)
        torch.testing.assert_close(own[name], wanted, rtol=1e-5, atol=1e-5, msg=name)


def kohya(key: str) -> str:
    layer, _, side = key.removesuffix(".weight").partition(".lora_")
    return f"{layer.replace('.', '_')}.lora_{ {'A': 'down', 'B': 'up'}[side] }.weight"


def down_up(key: str) -> str:
    return key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")


def default(key: str) -> str:
    return key.replace(".weight", ".default.weight")


NAMINGS: dict[str, Callable[[str], str]] = {
    "bare": lambda key: key,
    "diffusers": lambda key: f"transformer.{key}",
    "comfy": lambda key: f"diffusion_model.{down_up(key)}",
    "comfy, nested": lambda key: f"model.diffusion_model.{down_up(key)}",
    "peft": lambda key: f"base_model.model.{key}",
    "peft of a pipeline": lambda key: f"base_model.model.transformer.{default(key)}",
    "named adapter": lambda key: f"transformer.{default(key)}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "old diffusers": lambda key: key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
    "diffsynth": lambda key: f"pipe.dit.{default(key)}",
    "kohya": lambda key: f"lora_unet_{kohya(key)}",
    "finetrainers": lambda key: f"lora_transformer_{kohya(key)}",
}


def renamed(policy: Any, key: str) -> str:
    """A key with its layer as in the family's original code."""
    layer, dot, rest = key.partition(".lora_")
    return f"{policy.original_layer(layer)}{dot}{rest}"


@pytest.mark.slow
@pytest.mark.parametrize("alphas", [False, True], ids=["rank", "alpha"])
@pytest.mark.parametrize("original", [False, True], ids=["ours", "original"])
@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_naming_gives_exactly_the_update(
    family: str, naming: str, original: bool, alphas: bool, policies: Any, tmp_path: Path
) -> None:
    policy = policies[family]
    content = factors(policy.build())
    own = {renamed(policy, key) if original else key: one for key, one in content.items()}
    named = {NAMINGS[naming](key): one for key, one in own.items()}
    if alphas:
        downs = [name for name in named if ".lora_A" in name or "down" in name]
        named |= {name.partition(".lora")[0] + ".alpha": torch.tensor(ALPHA) for name in downs}
    network = load(policy, named, tmp_path / "style.safetensors")
    layers = {key.partition(".lora_")[0] for key in content}
    scale = ALPHA / RANK if alphas else 1.0
    changes = {f"{layer}.weight": product(content, layer, scale) for layer in layers}
    assert_changed(policy, network, changes)


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "transformer."])
@pytest.mark.parametrize("original", [False, True], ids=["ours", "original"])
@pytest.mark.parametrize("family", FAMILIES)
def test_whole_changes_of_any_weight_and_bias_are_added(
    family: str, original: bool, prefix: str, policies: Any, tmp_path: Path
) -> None:
    policy = policies[family]
    base = policy.build()
    changes = {name: tiny.normal(number, *weight.shape)
               for number, (name, weight) in enumerate(base.named_parameters())}  # fmt: skip
    adapted = linear_layers(base)[:3]
    content = factors(base, adapted)

    def ending(name: str) -> str:
        layer, bias = name.removesuffix(".weight"), name.endswith(".bias")
        layer = layer.removesuffix(".bias")
        return f"{policy.original_layer(layer) if original else layer}.diff{'_b' if bias else ''}"

    named = {f"{prefix}{renamed(policy, key) if original else key}": one
             for key, one in content.items()}  # fmt: skip
    named |= {prefix + ending(name): change for name, change in changes.items()}
    network = load(policy, named, tmp_path / "style.safetensors")
    for layer in adapted:
        changes[f"{layer}.weight"] = changes[f"{layer}.weight"] + product(content, layer, 1.0)
    assert_changed(policy, network, changes)


def test_whole_changes_alone_are_a_lora_too(policies: Any, tmp_path: Path) -> None:
    norm, table = tiny.normal(0, 24), tiny.normal(1, 2, 24)
    change = {"blocks.0.norm3.diff": norm, "head.modulation.diff": table}
    network = load(policies["wan"], change, tmp_path / "norms.safetensors")
    wanted = {"blocks.0.norm2.weight": norm, "scale_shift_table": table[None]}
    assert_changed(policies["wan"], network, wanted)


def test_what_is_changed_beside_the_adapter_counts_as_trained(
    policies: Any, tmp_path: Path
) -> None:
    """sample.py names its files by these weights."""
    base = policies["cogvideox"].build()
    layer = linear_layers(base)[0]
    content = {**factors(base, [layer]), "norm_final.diff": tiny.normal(0, 32)}
    network = load(policies["cogvideox"], content, tmp_path / "style.safetensors")
    assert len(trained_weights(network)) == 3 and "norm_final.weight" in trained_weights(network)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_of_the_second_factor_is_scaled_as_the_update(
    family: str, policies: Any, tmp_path: Path
) -> None:
    policy = policies[family]
    layer = linear_layers(policy.build())[4]
    content = factors(policy.build(), [layer])
    bias = tiny.normal(9, len(content[f"{layer}.lora_B.weight"]))
    more = {f"{layer}.lora_B.bias": bias, f"{layer}.alpha": torch.tensor(ALPHA)}
    network = load(policy, {**content, **more}, tmp_path / "style.safetensors")
    scale = ALPHA / RANK
    update = product(content, layer, scale)
    assert_changed(policy, network, {f"{layer}.bias": scale * bias, f"{layer}.weight": update})


@pytest.mark.parametrize("settings", ["none", "header", "beside"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_convolution_has_an_update(
    family: str, settings: str, policies: Any, tmp_path: Path
) -> None:
    policy = policies[family]
    layer = {"cogvideox": "patch_embed.proj", "wan": "patch_embedding"}[family]
    content, metadata = factors(policy.build(), [layer]), None
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": [layer]}
    if settings == "header":
        metadata = {"lora_adapter_metadata": json.dumps(config)}
    elif settings == "beside":
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    network = load(policy, content, tmp_path / "style.safetensors", metadata)
    scale = 1.0 if settings == "none" else ALPHA / RANK
    assert_changed(policy, network, {f"{layer}.weight": product(content, layer, scale)})


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("part", ["dora_scale", "lora_magnitude_vector",
                                  "lora_magnitude_vector.default.weight"])  # fmt: skip
@pytest.mark.parametrize("family", FAMILIES)
def test_magnitudes_of_dora_are_used(
    family: str, part: str, alpha: float | None, policies: Any, tmp_path: Path
) -> None:
    policy = policies[family]
    layers = linear_layers(policy.build())[3:6]
    content, base = factors(policy.build(), layers), policy.build()
    sizes = {layer: tiny.normal(7, len(base.get_submodule(layer).weight), 1).abs() + 1
             for layer in layers}  # fmt: skip
    named = {f"transformer.{key}": one for key, one in content.items()}
    flat = part != "dora_scale"
    named |= {f"transformer.{layer}.{part}": size[:, 0] if flat else size
              for layer, size in sizes.items()}  # fmt: skip
    if alpha:
        named |= {f"transformer.{layer}.alpha": torch.tensor(alpha) for layer in layers}
    network = load(policy, named, tmp_path / "dora.safetensors")
    changes = {}
    for layer in layers:
        weight = base.get_submodule(layer).weight.detach()
        moved = weight + product(content, layer, alpha / RANK if alpha else 1.0)
        wanted = sizes[layer] * moved / moved.norm(dim=1, keepdim=True)
        changes[f"{layer}.weight"] = wanted - weight
    assert_changed(policy, network, changes)


# -------------------------------------------------------------------- refusals


LAYER = {"cogvideox": "transformer_blocks.0.attn1.to_q", "wan": "blocks.0.attn1.to_q"}
ODD = ("transformer_2.{layer}.lora_A.weight", "text_encoder.layers.0.q.lora_A.weight",
       "{layer}.set_weight", "{layer}.weight", "{layer}.reshape_weight",
       "lora_te_text.lora_up.weight", "transformer_blocks.99.attn1.to_q.lora_A.weight",
       "scale_weight", "{layer}.lora_C.weight", "nowhere.diff",
       "lora_unet_nowhere.lora_down.weight")  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tensor_without_a_place_is_named(
    family: str, odd: str, policies: Any, tmp_path: Path
) -> None:
    policy, layer = policies[family], LAYER[family]
    name = odd.format(layer=layer)
    content = {**factors(policy.build(), [layer]), name: torch.zeros(3, 3)}
    with pytest.raises(InputError, match="1 tensor .*have no place") as refused:
        load(policy, content, tmp_path / "style.safetensors")
    assert name in str(refused.value)


OTHER = {
    "LoKr": ["{flat}.lokr_w1", "{flat}.lokr_w2"],
    "LoHa": ["{flat}.hada_w1_a", "{flat}.hada_w1_b"],
    "OFT": ["{flat}.oft_blocks"],
    "OFT ": ["base_model.model.{layer}.oft_R.weight"],
    "Tucker": ["{flat}.lora_mid.weight", "{flat}.lora_up.weight", "{flat}.lora_down.weight"],
    "SAT": ["model.diffusion_model.transformer.layers.0.attention.query_key_value.weight"],
    "SAT ": ["transformer.layers.0.attention.query_key_value.matrix_A.0"],
    "whole checkpoint": ["model.diffusion_model.{layer}.weight", "first_stage_model.conv.weight"],
    "whole checkpoint ": ["{layer}.weight", "{layer}.bias"],
    "no tensors": [],
}


@pytest.mark.parametrize("kind", OTHER)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_no_lora_is_called_what_it_is(
    family: str, kind: str, policies: Any, tmp_path: Path
) -> None:
    layer = LAYER[family]
    flat = f"lora_unet_{layer.replace('.', '_')}"
    names = [name.format(layer=layer, flat=flat) for name in OTHER[kind]]
    with pytest.raises(InputError, match=kind.strip()) as refused:
        load(policies[family], {n: torch.ones(2, 2) for n in names}, tmp_path / "x.safetensors")
    assert str(refused.value).count("\n") == 0


BROKEN: dict[str, Callable[[str], Content]] = {
    "not both factors": lambda layer: {f"{layer}.lora_A.weight": torch.ones(3, 32)},
    "not both factors ": lambda layer: {f"{layer}.alpha": torch.tensor(1.0)},
    "of another model": lambda layer: {f"{layer}.lora_A.weight": torch.ones(3, 7),
                                       f"{layer}.lora_B.weight": torch.ones(7, 3)},
    "not finite": lambda layer: {f"{layer}.diff_b": torch.full((32,), torch.nan)},
    "change of norm_final": lambda layer: {"norm_final.diff": torch.ones(2)},
    "both the": lambda layer: {f"{layer}.lora_A.a.weight": torch.ones(3, 32),
                               f"{layer}.lora_A.b.weight": torch.ones(3, 32)},
    "not of floating point": lambda layer: {f"{layer}.diff": torch.ones(32, 32).int()},
    "takes no LoRA": lambda layer: {"norm_final.lora_A.weight": torch.ones(3, 32),
                                    "norm_final.lora_B.weight": torch.ones(32, 3)},
}  # fmt: skip


@pytest.mark.parametrize("said", BROKEN)
def test_damaged_factors_are_refused(said: str, policies: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"is no LoRA of this model: .*{said.strip()}"):
        load(policies["cogvideox"], BROKEN[said](LAYER["cogvideox"]), tmp_path / "x.safetensors")


SETTINGS = {
    "pissa": {"init_lora_weights": "pissa"},
    "peft_type": {"peft_type": "LOKR"},
    "not a number": {"r": "many"},
    "not a number ": {"lora_alpha": True},
    "rank_pattern": {"rank_pattern": {"(.+)+x": 3}},
    "alpha_pattern": {"alpha_pattern": ["to_q"]},
    "use_dora": {"use_dora": True},
    "use_rslora": {"use_rslora": "yes"},
    "by its settings": {"lora_alpha": 7.0},
    "layer_replication": {"layer_replication": [[0, 2]]},
    "not JSON": "{",
    "no settings": "[1]",
}


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("said", SETTINGS)
def test_settings_that_cannot_hold_are_refused(
    said: str, beside: bool, policies: Any, tmp_path: Path
) -> None:
    own, layer = SETTINGS[said], LAYER["cogvideox"]
    text = own if isinstance(own, str) else json.dumps({"r": RANK, "lora_alpha": ALPHA, **own})
    content = factors(policies["cogvideox"].build(), [layer])
    content[f"{layer}.alpha"] = torch.tensor(ALPHA)
    if beside:
        (tmp_path / "adapter_config.json").write_text(text)
    metadata = None if beside else {"lora_adapter_metadata": text}
    with pytest.raises(InputError, match=said.strip()):
        load(policies["cogvideox"], content, tmp_path / "x.safetensors", metadata)


def test_settings_of_a_stranger_import_nothing(policies: Any, tmp_path: Path) -> None:
    """peft imports the module that megatron_core names."""
    config = {"r": RANK, "lora_alpha": ALPHA, "megatron_config": {"a": 1}, "megatron_core": "this"}
    content = factors(policies["cogvideox"].build(), [LAYER["cogvideox"]])
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    with pytest.raises(InputError, match="megatron_config"):
        load(policies["cogvideox"], content, tmp_path / "x.safetensors", metadata)
