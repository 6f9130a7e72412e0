"""How a network is held in memory, and with which kernels it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ipo_lightning.backbones.quantised import Kind, check_quantisation, quantise
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.sharding import blocks
from ipo_lightning.settings import Null, checked

Precision = Literal["float32", "bfloat16"]
Attention = Literal["flash", "efficient", "cudnn", "math"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}

NO_KERNEL = ("No available kernel", "No viable backend")
"""What torch says, on a GPU and on a CPU, where it lacks the one kernel that it may use."""


@checked
@dataclass(frozen=True)
class Held:
    """How a network is held; all but ``checkpointing`` changes the bits of what it answers."""

    weights: Precision = "float32"
    """Of the weights, and so of their gradients; modules that diffusers keeps in float32 stay."""
    quantize: Kind | None = None
    """Round the linear layers of the blocks, which do not train then; the rest is as ``weights``
    says."""
    compile: bool = False
    """Compile each block when it first runs."""
    attention: Annotated[Attention | None, Null("torch's own choice")] = None
    """The one kernel that attention may use; None: torch's choice for each shape."""
    checkpointing: bool = False
    """Keep the blocks' inputs alone, and recompute the rest in the backward."""

    def __post_init__(self) -> None:
        check_quantisation(self.quantize)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return DTYPES[self.weights]

    @property
    def settings(self) -> dict[str, Any]:
        """What answers depend on; empty where all is as it is by default."""
        mine = {
            name: getattr(self, name) for name in ("weights", "quantize", "compile", "attention")
        }
        return {name: value for name, value in mine.items() if value != getattr(Held, name)}

    def quantise(self, network: nn.Module) -> None:
        """Round the blocks of a loaded network; embeddings and the last layers stay whole."""
        if self.quantize is not None:
            network.requires_grad_(False)
            for block in blocks(network):
                quantise(block, self.quantize)

    def settle(self, network: Any) -> None:
        """The rest, once the network has its adapter."""
        for block in blocks(network):
            if self.attention is not None:
                _bind_kernel(block, KERNELS[self.attention])
            if self.compile:
                block.compile()
        if self.checkpointing:
            network.enable_gradient_checkpointing()

    @contextmanager
    def computing(self, device: torch.device) -> Iterator[None]:
        """Entered around a forward: weights in bfloat16 are computed with in bfloat16, also where
        no trainer says so."""
        narrow = self.weights == "bfloat16"
        try:
            with torch.autocast(device.type, torch.bfloat16) if narrow else nullcontext():
                yield
        except RuntimeError as error:
            if self.attention is None or not any(word in str(error) for word in NO_KERNEL):
                raise
            raise InputError(
                f"backbone.attention={self.attention}: torch has no such kernel on {device.type} "
                "for this network's shapes and precision (flash and cudnn want bf16-mixed on a "
                "GPU); choose another, or null"
            ) from error


def _bind_kernel(block: nn.Module, kernel: SDPBackend) -> None:
    """Let a block's attention use one kernel, also where its forward is recomputed in a backward.

    CogVideoX calls torch's attention itself: diffusers' `set_attention_backend` does not reach it.
    """
    forward: Callable[..., Any] = block.forward

    @wraps(forward)
    def bound(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return forward(*args, **kwargs)

    block.forward = bound
