"""Peak memory and operations of a piece of work, found on fake tensors.

Fake tensors have shapes and no contents: a step of a network of 14 billion parameters takes seconds
and no memory, and runs the very code that trains it. Not counted are the kernels' own workspaces
(of convolutions and of attention's backward) and the allocator's fragmentation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten: Any = torch.ops.aten


class Peak(NamedTuple):
    """Peak memory of a piece of work."""

    held: int
    """Bytes allocated beyond those at its start."""
    casts: int
    """Of these: copies of weights in a lower precision, which autocast makes for a layer, and the
    graph keeps for the backward."""


class Tracer(TorchDispatchMode):
    """Counts the bytes of all tensors that are allocated, and floating-point operations.

    Enter it within `weightless`, and build there what is to be counted: it does not know tensors
    that were made before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        """Operations of matrix products, convolutions and attention so far."""
        self._sizes: dict[int, int] = {}
        self._casts: set[int] = set()
        self.held = self._held_casts = self._start = 0
        self._peak = Peak(0, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation, and count its outputs and its floating-point operations."""
        kwargs = kwargs or {}
        if func is _DEVICE:
            return _device(args[0])
        if func in _DRAWS:
            return args[0]
        result = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        cast = func is aten._to_copy.default and isinstance(args[0], nn.Parameter)
        for tensor in made:
            self._note(tensor, cast)
        count = _COUNTS.get(func._overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **kwargs, out_val=result))
        return result

    def restart(self) -> None:
        """Measure the next peak from here on, beyond what is allocated now."""
        self._start = self.held
        self._peak = Peak(0, 0)

    def next_phase(self) -> Peak:
        """The peak since `restart` or the last phase; the next phase starts here."""
        peak, self._peak = self._peak, Peak(self.held - self._start, self._held_casts)
        return peak

    def _note(self, tensor: Tensor, cast: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.held += storage.nbytes()
        if cast:
            self._casts.add(key)
            self._held_casts += storage.nbytes()
        self._peak = max(self._peak, Peak(self.held - self._start, self._held_casts))
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        size = self._sizes.pop(key)
        self.held -= size
        if key in self._casts:
            self._casts.remove(key)
            self._held_casts -= size


@contextmanager
def weightless() -> Iterator[Tracer]:
    """Make every new tensor a fake one, counted by a tracer; real tensors may be used with them."""
    swapping = nn.Module._apply
    nn.Module._apply = _apply  # type: ignore[method-assign]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Tracer() as tracer:
            yield tracer
    finally:
        nn.Module._apply = swapping  # type: ignore[method-assign]


@torch.no_grad()
def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """``nn.Module._apply``, which moves and converts modules: torch's refuses fake tensors."""
    for part in module.modules() if recurse else [module]:
        for parameter in part.parameters(recurse=False):
            parameter.data = function(parameter.data)
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = function(buffer)
    return module


class GpuRules(TorchFunctionMode):
    """Makes autocast on the CPU do what it does on a GPU: norms, sums and the like in float32.

    The CPU's own rules leave these in bfloat16, at half the activations. Enter it around the
    forward and the backward, which recomputes what is checkpointed.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a torch function, in float32 where a GPU's autocast would."""
        kwargs = kwargs or {}
        if not torch.is_autocast_enabled("cpu") or func.__name__ not in _FLOAT32:
            return func(*args, **kwargs)
        args, kwargs = tree_map(_raised, (args, kwargs))
        with torch.autocast("cpu", enabled=False):
            return func(*args, **kwargs)


def backward(loss: Tensor) -> None:
    """``loss.backward()`` with `GpuRules` in force for what is recomputed: within a call of torch's
    own they are off."""
    _engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), True, True)


_FLOAT32 = {
    "__pow__", "cosine_similarity", "cumsum", "exp", "group_norm", "layer_norm", "log",
    "log_softmax", "mse_loss", "norm", "pow", "prod", "reciprocal", "rms_norm", "rsqrt",
    "softmax", "softplus", "sum",
}  # fmt: skip
"""Of the operations that autocast computes in float32 on CUDA, those of such networks: torch's
documentation, "CUDA ops that can autocast to float32"."""


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype is torch.bfloat16 else value


_DEVICE = torch.ops.prim.device.default
"""What ``tensor.device`` calls: as often as all other operations together, and nothing to count."""
_DRAWS = {aten.uniform_.default, aten.normal_.default}
"""What fills new weights: a fake tensor has no contents to fill."""


def _device(tensor: FakeTensor) -> torch.device:
    """The device that a fake tensor says it is on, as `FakeTensorMode` answers it."""
    within = tensor.fake_mode.in_kernel_invocation
    return torch.device("meta") if within else tensor.fake_device


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape))


# Fake tensors on the CPU take its flash attention, which torch does not count.
_COUNTS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
