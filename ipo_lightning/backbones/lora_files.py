"""LoRA files of other trainers: every tensor of a file finds its place, or the file is refused.

A LoRA's update is scaled by alpha over rank. diffusers writes alpha into the file's metadata, peft
into adapter_config.json beside it, others as a tensor beside each layer's weights; where alpha is
nowhere, it is the rank. Names are compared with the file's own header: converters of diffusers drop
what they do not know.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ipo_lightning.backbones.lora_names import (
    Named,
    counted,
    layer_names,
    other_kind,
    taken_apart,
)
from ipo_lightning.errors import printable

METADATA = "lora_adapter_metadata"
"""Under which diffusers keeps the adapter's settings in a file's header."""
SETTINGS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
"""Settings of peft that are taken from a file: no others, some of which name code to import."""
UNREAD = ("layer_replication", "use_qalora", "alora_invocation_tokens", "arrow_config",
          "use_bdlora", "megatron_config", "trainable_token_indices")  # fmt: skip
"""Settings of peft that change what a LoRA computes, and are not known here."""
HARMLESS = ("gaussian", "eva", "orthogonal")
"""Starts of an adapter that leave the base weights as they are; ``pissa`` and others do not."""
PATTERN = re.compile(r"\^?[\w.\\-]{1,300}\$?")
"""A layer's name in rank_pattern and alpha_pattern, which peft reads as regular expressions."""
CONFIG_SIZE = 10**6
"""Bytes that an adapter's settings may take."""


@dataclass
class LoraFile:
    """What a file changes in a network, by the names of the network's layers.

    Attributes:
        config: the keywords of `peft.LoraConfig`; None where they follow from ``weights``.
        weights: peft's own names: factors, where ``config`` is None with alpha / rank in the
            second, and DoRA's magnitudes.
        scales: alpha / rank of the layers that have a tensor for it.
        up_biases: biases of the second factor, which are scaled as the update is.
        differences: parameter -> what is added to it.
    """

    config: dict[str, Any] | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    up_biases: dict[str, Tensor] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)


def read_lora(file: Path, network: nn.Module, original: Callable[[str], str]) -> LoraFile:
    """The content of a safetensors file, sorted for a base network.

    Args:
        original: the name of a layer in the model's original code.

    Raises:
        ValueError: the file is no LoRA, or a tensor of it has no place in the network.
        OSError, SafetensorError: the file cannot be read.
    """
    with safe_open(file, "pt") as tensors:
        names, header = list(tensors.keys()), tensors.metadata() or {}
        parts = _parts(names, network, original)  # refused before gigabytes are read
        found = {named: _finite(name, tensors.get_tensor(name)) for named, name in parts.items()}
    content = LoraFile(_config(header, file))
    layers = dict.fromkeys(named.layer for named in found)
    given = {layer: {n.part: t for n, t in found.items() if n.layer == layer} for layer in layers}
    for layer, own in given.items():
        _add_differences(content, network, layer, own)
        _add_factors(content, network, layer, own)
    if any({"magnitude", "dora_scale"} & own.keys() for own in given.values()):
        _add_magnitudes(content, network, given)
    elif content.config is not None and content.config.pop("use_dora"):
        raise ValueError("its settings say use_dora, but it holds no magnitudes")
    return content


def _parts(
    names: Iterable[str], network: nn.Module, original: Callable[[str], str]
) -> dict[Named, str]:
    """Layer and part -> the tensor's name in the file; every tensor has one of its own."""
    every = list(names)
    if said := other_kind(every):
        raise ValueError(said)
    dotted, flat = layer_names((name for name, _ in network.named_parameters()), original)
    parts: dict[Named, str] = {}
    left = []
    for name in every:
        named = taken_apart(name, dotted, flat)
        if named is None:
            left.append(name)
        elif named in parts:
            both = f"{printable(parts[named])} and {printable(name)}"
            raise ValueError(
                f"{both} are both the {named.part} of {named.layer}: give a file with one LoRA"
            )
        else:
            parts[named] = name
    if left:
        raise ValueError(f"of its {len(every)}, {counted(left)} have no place in this network")
    return parts


def _finite(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() and tensor.numel() != 1:
        raise ValueError(f"{printable(name)} is {tensor.dtype}, not of floating point")
    if not torch.isfinite(tensor.float()).all():
        raise ValueError(f"{printable(name)} holds values that are not finite")
    return tensor.float() if tensor.element_size() == 1 else tensor  # 8 bits do no arithmetic


# -------------------------------------------------------------------- whole changes


def _add_differences(
    content: LoraFile, network: nn.Module, layer: str, own: Mapping[str, Tensor]
) -> None:
    weight = layer if _parameter(network, layer) is not None else f"{layer}.weight"
    for part, name in (("diff", weight), ("diff_b", f"{layer}.bias")):
        if part in own:
            content.differences[name] = _like(own[part], _parameter(network, name), name)
    if "up_bias" in own:
        name = f"{layer}.bias"
        content.up_biases[layer] = _like(own["up_bias"], _parameter(network, name), name)


def _parameter(network: nn.Module, name: str) -> Tensor | None:
    try:
        return network.get_parameter(name)
    except AttributeError:  # no parameter, or no module that could have it
        return None


def _like(tensor: Tensor, parameter: Tensor | None, name: str) -> Tensor:
    """What is added to a parameter, in its shape; trainers leave out or add axes of one."""
    if parameter is None:
        raise ValueError(f"it changes {name}, which this network does not have")
    if not parameter.is_floating_point():
        raise ValueError(f"it changes {name}, which is quantised: give backbone.quantize=null")
    if [n for n in tensor.shape if n != 1] != [n for n in parameter.shape if n != 1]:
        raise ValueError(
            f"its change of {name} is {tuple(tensor.shape)}, the weight {tuple(parameter.shape)}"
        )
    return tensor.reshape(parameter.shape)


# -------------------------------------------------------------------- factors


def _add_factors(
    content: LoraFile, network: nn.Module, layer: str, own: Mapping[str, Tensor]
) -> None:
    """The factors of a layer, checked; alpha in the second where no settings say it."""
    if not own.keys() - {"diff", "diff_b"}:
        return
    if not {"down", "up"} <= own.keys():
        have = ", ".join(sorted(own))
        raise ValueError(f"{layer} has {have}, but not both factors of a LoRA")
    down, up = own["down"], own["up"]
    _check_shapes(layer, down, up, _weight_shape(network, layer))
    rank = down.shape[0]
    if "alpha" in own:
        if own["alpha"].numel() != 1:
            raise ValueError(f"alpha of {layer} is {tuple(own['alpha'].shape)}, not one number")
        content.scales[layer] = float(own["alpha"]) / rank
    factor = 1.0 if content.config is not None else content.scales.get(layer, 1.0)
    content.weights[f"{layer}.lora_A.weight"] = down
    content.weights[f"{layer}.lora_B.weight"] = up if factor == 1 else up.float() * factor


def _weight_shape(network: nn.Module, layer: str) -> tuple[int, ...]:
    """(out, in, ...) of a layer that can have an adapter; a quantised weight has another shape."""
    module = network.get_submodule(layer) if _parameter(network, layer) is None else None
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups == 1:
        return tuple(module.weight.shape)
    raise ValueError(f"{layer} is neither a linear layer nor a convolution: it takes no LoRA")


def _check_shapes(layer: str, down: Tensor, up: Tensor, weight: tuple[int, ...]) -> None:
    wanted_down = (down.shape[0] if down.ndim else 0, *weight[1:])
    wanted_up = (weight[0], wanted_down[0], *(1 for _ in weight[2:]))
    if wanted_down[0] < 1 or tuple(down.shape) != wanted_down or tuple(up.shape) != wanted_up:
        raise ValueError(
            f"the factors of {layer} are {tuple(down.shape)} and {tuple(up.shape)}; its weight is "
            f"{weight}: they are of another model or damaged"
        )


def _add_magnitudes(
    content: LoraFile, network: nn.Module, given: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """DoRA's magnitudes, one for each output. Where one layer has them, peft wants all to."""
    lacking = []
    for layer, own in given.items():
        if "down" not in own:
            continue
        shape = _weight_shape(network, layer)
        if not network.get_parameter(f"{layer}.weight").is_floating_point():
            raise ValueError(f"DoRA on {layer}, which is quantised: give backbone.quantize=null")
        magnitude = own.get("magnitude", own.get("dora_scale"))
        if magnitude is None:
            lacking.append(layer)
            continue
        by_output = "magnitude" in own or magnitude.shape[:1] == shape[:1]
        if magnitude.numel() != shape[0] or not by_output:
            raise ValueError(
                f"DoRA's magnitudes of {layer} are {tuple(magnitude.shape)}: of its inputs, or of "
                f"another layer; only those of its {shape[0]} outputs are read"
            )
        of_peft = (-1,) if len(shape) == 2 else (1, -1, *(1 for _ in shape[2:]))
        content.weights[f"{layer}.lora_magnitude_vector"] = magnitude.float().reshape(of_peft)
    if lacking:
        raise ValueError(
            f"some of its layers have DoRA's magnitudes, others, as {lacking[0]}, none"
        )
    if content.config is not None:
        content.config["use_dora"] = True


# -------------------------------------------------------------------- settings


def _config(header: Mapping[str, str], file: Path) -> dict[str, Any] | None:
    """The adapter's settings, from the file's header or from peft's adapter_config.json."""
    if METADATA in header:
        found = _parsed(header[METADATA], f"the {METADATA} in its header")
        own = {name.removeprefix("transformer."): value for name, value in found.items()
               if name.startswith("transformer.") or "." not in name}  # fmt: skip
        return _checked(own) if own else None
    beside = file.with_name("adapter_config.json")
    if not beside.is_file():
        return None
    if beside.stat().st_size > CONFIG_SIZE:
        raise ValueError(f"{beside} has more than {CONFIG_SIZE} bytes: these are no settings")
    found = _parsed(beside.read_bytes(), str(beside))
    return _checked(found) if "r" in found or "lora_alpha" in found else None


def _parsed(text: str | bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(text[:CONFIG_SIZE])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError(f"{place} holds no settings")
    return found


def _checked(found: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say how a LoRA is scaled; refused where others change what it computes."""
    kind, start = found.get("peft_type", "LORA"), found.get("init_lora_weights", True)
    if kind != "LORA":
        raise ValueError(f"its settings say peft_type {kind!r}; only LORA is read")
    if isinstance(start, str) and start not in HARMLESS:
        raise ValueError(f"it was started with init_lora_weights={start!r}, which changes the base "
                         "weights; convert it to a plain LoRA with peft")  # fmt: skip
    if odd := [name for name in UNREAD if found.get(name)]:
        raise ValueError(f"its settings have {odd[0]}, which is not read here")
    config = {name: found[name] for name in SETTINGS if found.get(name) is not None}
    for name in ("r", "lora_alpha"):
        if name in config and not _number(config[name]):
            raise ValueError(f"its settings have {name}={config[name]!r}, not a number above 0")
    for name in ("rank_pattern", "alpha_pattern"):
        _check_pattern(name, config.get(name, {}))
    if not isinstance(config.get("use_rslora", False), bool):
        raise ValueError(f"its settings have use_rslora={config['use_rslora']!r}; true or false")
    return {**config, "use_dora": bool(found.get("use_dora"))}


def _check_pattern(name: str, pattern: Any) -> None:
    if not isinstance(pattern, dict) or not all(
        PATTERN.fullmatch(key) and _number(value) for key, value in pattern.items()
    ):
        raise ValueError(f"its settings have a {name} that is not of layers' names and numbers")


def _number(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > 0
    )
