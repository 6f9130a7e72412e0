"""How a network is stored and computed: precision, quantisation, kernels, checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, wraps
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

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
class NetworkSettings:
    """How a network is stored and computed; all but ``checkpointing`` changes its outputs' bits."""

    weights: Precision = "float32"
    """Precision of the weights and of their gradients; modules that diffusers always keeps in
    float32 stay in float32."""
    quantize: Kind | None = None
    """Quantise the linear layers of the blocks, which then do not train; None: none."""
    compile: bool = False
    """Compile each block with `torch.compile` when it first runs."""
    attention: Annotated[Attention | None, Null("torch's own choice")] = None
    """The one kernel that attention may use; None: torch chooses one for each shape."""
    checkpointing: bool = False
    """Gradient checkpointing: keep only the blocks' inputs, recompute the rest in the backward."""

    def __post_init__(self) -> None:
        check_quantisation(self.quantize)

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of the weights."""
        return DTYPES[self.weights]

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that outputs depend on, where they are not the default; plain JSON."""
        names = ("weights", "quantize", "compile", "attention")
        chosen = {name: getattr(self, name) for name in names}
        return {k: value for k, value in chosen.items() if value != getattr(NetworkSettings, k)}

    def quantise(self, network: nn.Module) -> None:
        """Quantise the blocks of a loaded network; embeddings and the last layers stay whole."""
        if self.quantize is not None:
            network.requires_grad_(False)
            for block in blocks(network):
                quantise(block, self.quantize)

    def configure(self, network: Any) -> None:
        """Set kernels, checkpointing and compilation, once the network has its adapter.

        In torchtitan's order: a block's compiled code recomputes its own activations, and shards
        (`sharding.shard`) are gathered outside of both, once for a block's whole backward.
        """
        for block in blocks(network):
            if self.attention is not None:
                _bind_kernel(block, KERNELS[self.attention])
            if self.checkpointing:
                _bind_checkpointing(block)
            if self.compile:
                block.compile()

    @contextmanager
    def autocast(self, device: torch.device) -> Iterator[None]:
        """Entered around a forward: bfloat16 weights compute in bfloat16, also without a trainer.

        Raises:
            InputError: torch has no such attention kernel for the network on this device.
        """
        narrow = self.weights == "bfloat16"
        try:
            with torch.autocast(device.type, torch.bfloat16) if narrow else nullcontext():
                yield
        except RuntimeError as error:
            if self.attention is None or not any(word in str(error) for word in NO_KERNEL):
                raise
            raise InputError(
                f"backbone.attention={self.attention}: torch has no such kernel on {device.type} "
                "for this network's shapes and precision (flash and cudnn need bf16-mixed on a "
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


def _bind_checkpointing(block: nn.Module) -> None:
    """Let a block keep its inputs alone, and recompute the rest in the backward.

    diffusers' own checkpointing calls the block from outside, with the hooks that gather its
    shards.
    """
    forward: Callable[..., Any] = block.forward

    @wraps(forward)
    def recomputing(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # What is held by name, here or in a closure, is kept where a whole forward is recomputed.
        by_place = partial(_by_place, forward, tuple(kwargs))
        return checkpoint(by_place, *args, *kwargs.values(), use_reentrant=False)

    block.forward = recomputing


def _by_place(forward: Callable[..., Any], names: tuple[str, ...], *given: Any) -> Any:
    """Call a forward whose last inputs have names."""
    first = len(given) - len(names)
    return forward(*given[:first], **dict(zip(names, given[first:], strict=True)))
