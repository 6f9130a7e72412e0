"""What a network is made into while videos are sampled from it; afterwards it is what it was."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

import torch
from diffusers.models import attention_dispatch as dispatch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ipo_lightning.backbones.lora_overlay import Overlay, overlaid
from ipo_lightning.backbones.quantised import QuantisedLinear
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.sharding import blocks
from ipo_lightning.policy import Sampling

_one_sampling = Lock()
"""The network is changed for one sampling at a time, however many threads there are."""
COMPILED = "_ipo_compiled"
"""Attribute of a block that has been compiled for rollouts: compiled once in a process."""


class Kept:
    """A block's compiled call, which copies of the block do not have."""

    def __init__(self, call: Any = None) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return Kept, ()


@contextmanager
def for_rollout(network: nn.Module, sampling: Sampling, overlay: Overlay | None) -> Iterator[None]:
    """The network as a sampling wants it: attention, compilation, a LoRA over it, its precision.

    Args:
        overlay: the content of ``sampling.lora``.
    """
    with ExitStack() as stack:
        if sampling.changes_network:
            stack.enter_context(_one_sampling)
            stack.enter_context(compiled(network, sampling.compiles))
        if overlay is not None:
            stack.enter_context(overlaid(network, overlay))
        if sampling.weights is not None:
            stack.enter_context(stored_in_8_bits(network, sampling.weights))
        if sampling.attention is not None:
            stack.enter_context(Dispatched(sampling.attention))
        yield


# -------------------------------------------------------------------- attention


def check_attention(name: str) -> None:
    """Refuse an attention backend that diffusers does not have, or whose package is missing."""
    known = sorted(one.value for one in dispatch._AttentionBackendRegistry.list_backends())
    if name not in known:
        raise InputError(f"attention={name}: this diffusers has {', '.join(known)}")
    backend = dispatch.AttentionBackendName(name)
    try:
        dispatch._check_attention_backend_requirements(backend)
    except RuntimeError as error:
        raise InputError(f"attention={name}: {error}") from error


class Dispatched(TorchFunctionMode):
    """Within it, torch's attention is computed by a backend of diffusers, in this thread alone.

    `set_attention_backend` does not reach CogVideoX, which calls torch's attention itself, and
    would stay for the training.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backend = dispatch.AttentionBackendName(name)
        dispatch._maybe_download_kernel_for_backend(self.backend)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call ``func``, unless it is attention."""
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        try:
            return self._attention(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            device = (args[0] if args else kwargs["query"]).device.type
            raise InputError(
                f"attention={self.backend.value} does not compute this network's attention on "
                f"{device}: {error}; choose another, or null"
            ) from error

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, *masked: Any, **more: Any
    ) -> Tensor:
        """(B, heads, L, D), as torch's has it; diffusers' has (B, L, heads, D)."""
        turned = [one.transpose(1, 2) for one in (query, key, value)]
        output = dispatch.dispatch_attention_fn(*turned, *masked, **more, backend=self.backend)
        return output.transpose(1, 2)


# -------------------------------------------------------------------- compilation


@contextmanager
def compiled(network: nn.Module, wanted: bool | None) -> Iterator[None]:
    """Let the blocks run compiled, or not; None: as they are."""
    parts: list[Any] = [] if wanted is None else list(blocks(network))
    before = [part._compiled_call_impl for part in parts]
    try:
        for part, own in zip(parts, before, strict=True):
            part._compiled_call_impl = (own or _compiled_call(part)) if wanted else None
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            part._compiled_call_impl = own


def _compiled_call(block: Any) -> Any:
    kept = block.__dict__.setdefault(COMPILED, Kept())
    if kept.call is None:
        block.compile()
        kept.call = block._compiled_call_impl
    return kept.call


# -------------------------------------------------------------------- precision


@contextmanager
def stored_in_8_bits(network: nn.Module, kind: Any) -> Iterator[None]:
    """Let the linear layers of the blocks compute with rounded copies of their weights.

    The weights themselves stay where they are, untouched; an adapter is not rounded.

    Raises:
        InputError: the weights are in shards, or quantised already.
    """
    layers = [
        part
        for block in blocks(network)
        for name, part in block.named_modules()
        if isinstance(part, nn.Linear) and "lora_" not in name
    ]
    if any(isinstance(one, QuantisedLinear) or isinstance(one.weight, DTensor) for one in layers):
        raise InputError(
            f"weights={kind}: the network's weights are quantised already, or in shards; give null"
        )
    try:
        for layer in layers:
            layer.forward = QuantisedLinear(layer, kind).forward  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
