"""Networks whose weights are sharded over several ranks (FSDP2), and how to gather them.

FSDP2 swaps the class of a network and turns its parameters into DTensors; names, configs and
adapters stay. The functions here also take a network that is not sharded, and leave it alone.
FSDP2 is imported where something is sharded: it takes half a second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import TypeIs

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor


def is_shards(tensor: Tensor) -> TypeIs[DTensor]:
    """Whether a tensor lies in shards; none does before their module is loaded."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def _is_group(module: object) -> TypeIs[FSDPModule]:
    """Whether a module's weights are in shards that are gathered together."""
    loaded = sys.modules.get("torch.distributed.fsdp")
    return loaded is not None and isinstance(module, loaded.FSDPModule)


def as_it_is(part: nn.Module) -> None:
    """A part of a network that needs nothing before it is moved or sharded."""


def move(
    network: nn.Module, device: torch.device, prepare: Callable[[nn.Module], None] = as_it_is
) -> None:
    """Move a network to a device: each block of its lists, then the rest.

    Args:
        prepare: called with each part before it is moved, such as to fill in its weights.
    """
    for part in (*blocks(network), network):
        prepare(part)
        part.to(device)


def shard(
    network: nn.Module, mesh: DeviceMesh, prepare: Callable[[nn.Module], None] = as_it_is
) -> None:
    """Shard a network over a mesh of one dimension: each block of its lists, then the rest.

    Compilation and checkpointing of blocks come first, see `NetworkSettings.configure`.

    Args:
        prepare: called with each part before it is sharded, as in `move`.
    """
    from torch.distributed.fsdp import fully_shard

    for part in (*blocks(network), network):
        prepare(part)
        # torch reduces gradients of one dtype a group: modules within become groups of their own.
        for narrow in [*_narrow_parts(part)]:
            fully_shard(narrow, mesh=mesh)
        # By default the outermost group stays whole after a forward: an optimizer or a copy would
        # then meet plain tensors among the shards.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def _narrow_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The largest modules within one of trained weights in mixed precisions that have none in
    float32; nothing where all trained weights are of one dtype."""
    if len(_trained_dtypes(module)) < 2:
        return
    for child in module.children():
        dtypes = set() if _is_group(child) else _trained_dtypes(child)
        if dtypes and torch.float32 not in dtypes:
            yield child
        else:
            yield from _narrow_parts(child)


def _trained_dtypes(module: nn.Module) -> set[torch.dtype]:
    """The dtypes of a module's trained weights that are in no shards yet."""
    return {
        weight.dtype
        for weight in module.parameters()
        if weight.requires_grad and not is_shards(weight)
    }


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network's lists, in the order in which they run."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child


def mesh_of(network: nn.Module) -> DeviceMesh | None:
    """The mesh that a network is sharded over; None where it is not."""
    tensors = (p for p in network.parameters() if is_shards(p))
    return next((tensor.device_mesh for tensor in tensors), None)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of its shards on all ranks; every rank must call it."""
    return tensor.full_tensor() if is_shards(tensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The full tensors of shards, by name; every rank must call it."""
    return {name: whole(tensor) for name, tensor in tensors.items()}


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A full tensor, the same on all ranks, sharded as ``other`` is; nothing is sent."""
    if is_shards(tensor) or not is_shards(other):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    near = tensor.to(other.to_local().device)
    return distribute_tensor(near, other.device_mesh, other.placements, src_data_rank=None)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Keep all weights gathered on every rank within the context.

    A forward of a sharded network is a collective: ranks that make unequal numbers of forwards
    would wait for each other for ever. Only for work without gradients.
    """
    groups = _groups(network)
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.set_reshard_after_forward(True, recurse=False)
            group.reshard()


class Pace:
    """Keeps ranks in step that make unequal numbers of forwards of a network in shards.

    Each forward gathers blocks one by one, and all ranks must take part. So all vote before each:
    a rank that has nothing to do until the others are ready gathers the same blocks in turn, and
    computes nothing.

    Args:
        network: in shards; its groups run in the order in which they are defined.
    """

    def __init__(self, network: nn.Module) -> None:
        self._groups, self._mesh = _groups(network), mesh_of(network)
        self._device = next(network.parameters()).device

    def before_forward(self, *_: Any) -> None:
        """A hook of the network: this rank makes a forward next."""
        self._any_works(True)

    def wait(self) -> None:
        """Take part in the forwards of the others until none has one to make."""
        while self._any_works(False):
            for group in self._groups:
                group.unshard()
                group.reshard()

    def _any_works(self, works: bool) -> bool:
        if self._mesh is None:
            return False
        vote = torch.tensor(works, dtype=torch.int32, device=self._device)
        dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._mesh.get_group())
        return bool(vote.item())


@contextmanager
def in_step(network: nn.Module) -> Iterator[Pace]:
    """Let ranks make unequal numbers of forwards within the context, in shards as they are.

    Each rank must `Pace.wait` before it waits for the others elsewhere. Only for work without
    gradients, all of whose forwards run every block.
    """
    pace = Pace(network)
    hook = network.register_forward_pre_hook(pace.before_forward, prepend=True)
    try:
        yield pace
        pace.wait()
    finally:
        hook.remove()


def _groups(network: nn.Module) -> list[FSDPModule]:
    """The modules whose weights are gathered together, outermost first."""
    return [module for module in network.modules() if _is_group(module)]


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, over all shards; a plain scalar."""
    return whole(torch.nn.utils.get_total_norm(gradients))
