"""A LoRA laid over a network for a while, whatever is trained in it; no weight is replaced.

A few-step or distilled LoRA makes drafts in fewer steps this way, over the round's own policy.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from ipo_lightning.backbones.lora import add_difference, of_a_lora, put_lora
from ipo_lightning.backbones.lora_files import LoraFile, read_lora
from ipo_lightning.errors import InputError


class Factors(NamedTuple):
    """The update of a layer: ``scale (up (down x) + bias)``."""

    down: Tensor
    """(r, in), or a convolution's kernel."""
    up: Tensor
    """(out, r), or (out, r, 1, ...)."""
    bias: Tensor | None
    scale: float

    def to(self, device: torch.device) -> "Factors":
        """The same on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return Factors(self.down.to(device), self.up.to(device), bias, self.scale)

    def added(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """What the layer gives with the update, as a forward hook has it; inputs: (..., in)."""
        (x,) = inputs
        narrow = torch.is_autocast_enabled(x.device.type)
        x = x if narrow else x.to(self.down.dtype)
        if self.down.ndim == 2:
            update = F.linear(F.linear(x, self.down), self.up, self.bias)
        else:
            convolve = getattr(F, f"conv{self.down.ndim - 2}d")
            of = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
            small = convolve(x, self.down, None, of.stride, of.padding, of.dilation)
            update = convolve(small, self.up, self.bias)
        return output + (self.scale * update).to(output.dtype)


class Overlay(NamedTuple):
    """A LoRA's content, by the names of a network's layers and parameters."""

    factors: dict[str, Factors]
    differences: dict[str, Tensor]
    """Parameter -> what is added to it."""


def read_overlay(file: Path, network: Any, original: Callable[[str], str]) -> Overlay:
    """The LoRA of a safetensors file.

    Args:
        network: one of the base model's shapes, without an adapter; it is given the LoRA's.
        original: the name of a layer in the model's original code.

    Raises:
        InputError: the file is no LoRA of this network, or has DoRA's magnitudes.
    """
    with of_a_lora(file):
        content = read_lora(file, network, original)
        if any(".lora_magnitude" in name for name in content.weights):
            raise ValueError("it has DoRA's magnitudes; as a drafter only a plain LoRA is read")
        factors_alone = replace(content, differences={}, up_biases={})
        put_lora(network, factors_alone)  # as one that is to stay: it checks, and tells the scales
        layers = dict.fromkeys(name.partition(".lora_")[0] for name in content.weights)
        factors = {layer: _factors(network, content, layer) for layer in layers}
    return Overlay(factors, content.differences)


def _factors(network: Any, content: LoraFile, layer: str) -> Factors:
    (scale,) = network.get_submodule(layer).scaling.values()
    down, up = (content.weights[f"{layer}.lora_{part}.weight"].float() for part in "AB")
    bias = content.up_biases.get(layer)
    if bias is None:
        return Factors(down, up, None, scale)
    folded = content.scales.get(layer, 1.0) if content.config is None else 1.0  # in ``up`` already
    return Factors(down, up, bias.float() * folded, scale)


@contextmanager
def overlaid(network: nn.Module, overlay: Overlay) -> Iterator[None]:
    """Lay a LoRA over a network, at scale 1; afterwards the network is what it was, to the bit.

    Raises:
        InputError: the LoRA changes whole weights that are in shards or quantised.
    """
    device = next(network.parameters()).device
    handles, kept = [], list[tuple[Tensor, Tensor]]()
    try:
        for layer, factors in overlay.factors.items():
            module = network.get_submodule(layer)
            handles.append(module.register_forward_hook(factors.to(device).added))
        for name, difference in overlay.differences.items():
            parameter = _base_parameter(network, name)
            kept.append((parameter, parameter.detach().clone()))
            add_difference(parameter, difference)
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for parameter, before in kept:
                parameter.copy_(before)


def _base_parameter(network: nn.Module, name: str) -> Tensor:
    layer, _, own = name.rpartition(".")
    module: Any = network.get_submodule(layer)
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    parameter: Tensor = getattr(module, own)
    if isinstance(parameter, DTensor) or not parameter.is_floating_point():
        raise InputError(
            f"lora: it changes {name} as a whole, which is in shards or quantised here; give a "
            "LoRA of factors alone"
        )
    return parameter
