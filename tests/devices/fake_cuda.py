"""Fake CUDA: tensors of device "cuda" without contents, as strict as a GPU, where there is none.

Fake tensors know their device, dtype and shape alone: a step of real size takes seconds and no
memory. The CPU build of torch has CUDA's rules of autocast, but neither a device guard nor a choice
of attention kernels for it: fake_cuda.cpp and `attention` stand for these.
"""

import ctypes
import subprocess
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ipo_lightning.backbones import schedulers

aten: Any = torch.ops.aten

CUDA = torch.device("cuda", 0)
SOURCE = Path(__file__).with_suffix(".cpp")
LARGE = 1024
"""Elements from which float64 is no mere scalar."""
BLOCK = 512
"""Bytes that CUDA's allocator rounds up to."""
DRAWS = {aten.uniform_.default, aten.normal_.default}
"""What fills new weights: a fake tensor has no contents to fill."""
WIDE = (torch.float64, torch.complex128)
READ = {torch.bool: True, torch.int64: 500}
"""What a value that the host reads is taken for, by dtype; 0.5 elsewhere."""


class Refused(AssertionError):
    """What CUDA refuses, or what is far too slow on it."""


def load(folder: Path) -> None:
    """Compile fake_cuda.cpp against the installed torch and load it; about three CPU seconds."""
    root, library = Path(torch.__file__).parent, folder / "fake_cuda.so"
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    link = [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{root / 'lib'}"]
    words = ["-O0", "-std=c++20", "-shared", "-fPIC", abi, f"-I{root / 'include'}", str(SOURCE)]
    subprocess.run(["g++", *words, "-o", str(library), *link], check=True)
    ctypes.CDLL(str(library))


class Watch(TorchDispatchMode):
    """Refuses what a GPU refuses, and counts its memory and floating-point operations.

    Tensors of two devices are refused by fake tensors themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.held = self.peak = 0
        """Bytes on the GPU now, and at most since `restart`."""
        self._sizes: dict[int, int] = {}
        self._works = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation."""
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return READ.get(args[0].dtype, 0.5)
        for one in (*args, *kwargs.values()):
            if isinstance(one, torch.Generator):
                _refuse_other_generator(func, one, args, kwargs)
        if func in DRAWS:
            return args[0]
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                self._note(func, tensor)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **kwargs, out_val=result))
        return result

    def restart(self) -> int:
        """Count the peak and the operations from here on, and refuse float64: a network may come
        with a table in it. The bytes that are held here."""
        self.flops, self.peak, self._works = 0, self.held, True
        return self.held

    def _note(self, func: Any, tensor: Tensor) -> None:
        if self._works and tensor.dtype in WIDE and tensor.numel() > LARGE:
            raise Refused(f"{func} computes {tensor.numel()} numbers of {tensor.dtype} on a GPU")
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = -(-storage.nbytes() // BLOCK) * BLOCK
            self.held += self._sizes[key]
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.held -= self._sizes.pop(key)


def _refuse_other_generator(func: Any, one: torch.Generator, args: Any, kwargs: Any) -> None:
    """CUDA's: "Expected a 'cuda' device type for generator but found 'cpu'"."""
    tensors = (leaf.device for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    device = next(tensors, torch.device(kwargs.get("device") or "cpu"))
    if device.type != one.device.type:
        raise Refused(f"{func} on {device.type} draws with a generator of {one.device.type}")


@contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Make every new tensor a fake one; autocast, attention and moves are a GPU's; see `load`.

    Fake tensors' own cache of operations is off: with it torch 2.13 freed some storages of bfloat16
    networks twice, and the process died.
    """
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    fakes.cache_enabled = False
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.cuda.is_bf16_supported", lambda *_: True),
        mock.patch.object(F, "scaled_dot_product_attention", attention),
        mock.patch.object(nn.Module, "_apply", _apply),
        mock.patch.object(schedulers, "deepcopy", _copied),
        torch.autograd.set_multithreading_enabled(False),  # a device's thread may outlive Python
        fakes,
        Watch() as watch,
    ):
        yield watch


def mixed() -> Any:
    """The context that Lightning enters around a forward with bf16-mixed on a GPU."""
    return MixedPrecision("bf16-mixed", "cuda").forward_context()


_ON_CPU = F.scaled_dot_product_attention


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's attention with the kernel that CUDA takes: flash in half precision without a mask,
    else the memory-efficient one."""
    if query.device.type != "cuda":
        rest = (attn_mask, dropout_p, is_causal)
        return _ON_CPU(query, key, value, *rest, scale=scale, enable_gqa=enable_gqa)
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (one.to(torch.bfloat16) for one in (query, key, value))
    if not query.dtype == key.dtype == value.dtype:
        raise Refused(f"attention of {query.dtype}, {key.dtype} and {value.dtype}")
    if query.dtype != torch.float32 and attn_mask is None:
        made = aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )
    else:
        made = aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
        )
    return made[0]


def _copied(scheduler: Any) -> Any:
    """``deepcopy``, which fake tensors do not have."""
    other = copy(scheduler)
    for name, one in vars(scheduler).items():
        setattr(other, name, one.clone() if isinstance(one, Tensor) else copy(one))
    return other


@torch.no_grad()
def _apply(module: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """``nn.Module._apply``: torch's cannot put a fake tensor of another device into a parameter."""
    moved: dict[nn.Parameter, nn.Parameter] = {}  # layers may share one
    for part in module.modules() if recurse else [module]:
        for name, one in [*part.named_parameters(recurse=False)]:
            if one not in moved:
                moved[one] = nn.Parameter(function(one.data), one.requires_grad)
            part._parameters[name] = moved[one]
        for name, buffer in part.named_buffers(recurse=False):
            part._buffers[name] = function(buffer)
    return module
