"""Frozen linear layers kept in 4 or 8 bits, for the base under an adapter.

Only the stored weight is small: each use dequantises it to the precision of its input, in the
forward and once more in the backward, so that no graph holds it. bitsandbytes' own layers are not
used: they fix their precision by their first input, ignore autocast's, and repack their weights in
evaluation mode on some CPUs.
"""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipo_lightning.errors import InputError

Kind = Literal["nf4", "int8"]
EightBits = Literal["int8", "fp8"]
"""Of copies, for rollouts alone."""

BLOCK = 64
"""Values that share a scale in nf4, as in QLoRA (arXiv 2305.14314)."""


def check_quantisation(kind: str | None) -> None:
    """Refuse a kind whose package is missing."""
    if kind == "nf4" and find_spec("bitsandbytes") is None:
        raise InputError(
            setting="quantize",
            value=kind,
            expected="it needs the package bitsandbytes: install the extra gpu (make extras "
            "EXTRAS=gpu), or choose int8",
        )


class QuantisedLinear(nn.Linear):
    """A linear layer whose weight was quantised once and does not train.

    nf4: 4 bits a weight and a float32 scale for each 64, by bitsandbytes: 0.5625 bytes a weight.
    int8, fp8 (e4m3): 8 bits a weight and a float32 scale for each output. Inputs are quantised in
    none: the gradient that reaches an adapter is the exact one of the quantised network.

    Args:
        linear: the layer to quantise, on the device that it is on.
    """

    def __init__(self, linear: nn.Linear, kind: Kind | EightBits) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make, and initialise, a whole weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.kind: Kind | EightBits = kind
        self.quantise(linear.weight)
        self.bias = linear.bias

    def quantise(self, weight: Tensor) -> None:
        """Take a weight, (out, in), rounded."""
        codes, scale = ROUNDED[self.kind](weight)
        # Parameters, not buffers: DDP sends buffers to all ranks at each step.
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The rounded weight, (out, in), in a dtype."""
        if self.kind == "nf4":
            size = self.out_features * self.in_features
            return _from_nf4(self.weight, self.scale, size, dtype).view(self.out_features, -1)
        codes = self.weight.float() if self.kind == "fp8" else self.weight
        return (codes * self.scale[:, None]).to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias``, (..., out) of (..., in); under autocast in its precision."""
        device = input.device.type
        if torch.is_autocast_enabled(device):
            input = input.to(torch.get_autocast_dtype(device))
        bias = None if self.bias is None else self.bias.to(input.dtype)
        output: Tensor = _FrozenLinear.apply(input, bias, self)
        return output

    def extra_repr(self) -> str:
        """What ``print(network)`` shows of the layer."""
        return f"{super().extra_repr()}, kind={self.kind}"


class _FrozenLinear(torch.autograd.Function):
    """``x @ weight.T + bias``; torch's own would keep the dequantised weight until the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantised(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantised(gradient.dtype), None, None


def quantise(module: nn.Module, kind: Kind) -> None:
    """Replace every linear layer within a module by a `QuantisedLinear`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, QuantisedLinear(child, kind))
        else:
            quantise(child, kind)


@torch.no_grad()
def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    codes, state = quantize_4bit(weight.contiguous(), blocksize=BLOCK, quant_type="nf4")
    return codes, state.absmax


def _from_nf4(codes: Tensor, scale: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    # As one row: blocks run on from row to row, but bitsandbytes 0.50 starts anew with each on the
    # CPU, and gives other weights than went in where rows are no multiple of a block.
    row = torch.Size((1, size))
    state = QuantState(scale, row, dtype=dtype, blocksize=BLOCK, quant_type="nf4")
    return dequantize_4bit(codes, state)


@torch.no_grad()
def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight.float()
    scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


@torch.no_grad()
def _to_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight.float()
    tiny, largest = torch.finfo(torch.float32).tiny, torch.finfo(torch.float8_e4m3fn).max
    scale = weight.abs().amax(1).clamp_min(tiny) / largest
    return (weight / scale[:, None]).to(torch.float8_e4m3fn), scale


ROUNDED = {"nf4": _to_nf4, "int8": _to_int8, "fp8": _to_fp8}
"""Kind -> codes and scales of a weight (out, in)."""
