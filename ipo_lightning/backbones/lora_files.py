"""LoRA files of other trainers: how they name the layers, and where they keep alpha.

A LoRA's update is scaled by alpha over rank. diffusers writes alpha into the file's metadata, peft
into adapter_config.json beside it, others as a tensor beside each layer's weights; diffusers reads
only the first and ignores the others without a warning. Where alpha is nowhere, it is the rank.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

PREFIXES = ("transformer.", "base_model.model.", "diffusion_model.")
"""Prefixes of the layers' names: of diffusers, peft and the original code."""
FLAT = ("lora_transformer_", "lora_unet_")
"""Kohya's trainers write the layers' names with ``_`` for every dot."""


def plain_lora(
    weights: Mapping[str, Tensor],
    metadata: Mapping[str, Any] | None,
    file: Path,
    layers: Iterable[str],
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Weights named ``LAYER.lora_A.weight`` and ``LAYER.lora_B.weight``, and a config for peft.

    Args:
        weights, metadata: the content of ``file``.
        layers: names of the network's modules.

    Returns:
        The weights of the network, alphas of single layers multiplied in; the keywords of
        `peft.LoraConfig`, or None where they follow from the weights.
    """
    dotted = {name.replace(".", "_"): name for name in layers}
    named = {_dotted(name, dotted): tensor for name, tensor in weights.items()}
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in named)), "")
    own = {
        re.sub(r"\.lora[._](down|up)\.", _peft_name, name.removeprefix(prefix)): tensor
        for name, tensor in named.items()
        if name.startswith(prefix)
    }
    config = _config(metadata, file)
    alphas = {name.removesuffix(".alpha"): own.pop(name) for name in [*own] if _is_alpha(name)}
    for layer, alpha in alphas.items() if config is None else ():
        rank = own[f"{layer}.lora_A.weight"].shape[0]
        own[f"{layer}.lora_B.weight"] = own[f"{layer}.lora_B.weight"] * (float(alpha) / rank)
    return own, config


def _is_alpha(name: str) -> bool:
    return name.endswith(".alpha")


def _peft_name(match: re.Match[str]) -> str:
    return ".lora_A." if match[1] == "down" else ".lora_B."


def _dotted(name: str, dotted: Mapping[str, str]) -> str:
    """A name of Kohya's trainers as the network has it; any other name as it is."""
    for prefix in FLAT:
        if name.startswith(prefix):
            layer, dot, rest = name.removeprefix(prefix).partition(".")
            return f"{dotted.get(layer, layer)}{dot}{rest}"
    return name


def _config(metadata: Mapping[str, Any] | None, file: Path) -> dict[str, Any] | None:
    """The adapter's settings, from the file's metadata or from peft's adapter_config.json."""
    if metadata is not None:
        return {
            name.removeprefix("transformer."): value
            for name, value in metadata.items()
            if name.startswith("transformer.") or "." not in name
        }
    peft_file = file.with_name("adapter_config.json")
    if not peft_file.is_file():
        return None
    known = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")
    return {
        name: value for name, value in json.loads(peft_file.read_text()).items() if name in known
    }
