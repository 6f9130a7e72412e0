"""Networks whose weights are sharded over several ranks (FSDP2), and how to gather them.

FSDP2 swaps the class of a network and turns its parameters into DTensors; names, configs and
adapters stay. The functions here also take a network that is not sharded, and leave it alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


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

    Args:
        prepare: called with each part before it is sharded, as in `move`.
    """
    for block in blocks(network):
        prepare(block)
        fully_shard(block, mesh=mesh)
    prepare(network)
    # By default the outermost group stays whole after a forward: an optimizer or a copy would then
    # meet plain tensors among the shards.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network's lists, in the order in which they run."""
    for child in network.children():
        if isinstance(child, nn.ModuleList):
            yield from child


def mesh_of(network: nn.Module) -> DeviceMesh | None:
    """The mesh that a network is sharded over; None where it is not."""
    tensors = (p for p in network.parameters() if isinstance(p, DTensor))
    return next((tensor.device_mesh for tensor in tensors), None)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of its shards on all ranks; every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The full tensors of shards, by name; every rank must call it."""
    return {name: whole(tensor) for name, tensor in tensors.items()}


def placed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A full tensor, the same on all ranks, sharded as ``other`` is; nothing is sent."""
    if isinstance(tensor, DTensor) or not isinstance(other, DTensor):
        return tensor
    near = tensor.to(other.to_local().device)
    return distribute_tensor(near, other.device_mesh, other.placements, src_data_rank=None)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Keep all weights gathered on every rank within the context.

    A forward of a sharded network is a collective: ranks that make unequal numbers of forwards
    would wait for each other for ever. Only for work without gradients.
    """
    groups = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for group in groups:
        group.set_reshard_after_forward(False, recurse=False)
        group.unshard()
    try:
        yield
    finally:
        for group in groups:
            group.set_reshard_after_forward(True, recurse=False)
            group.reshard()


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all gradients together, over all shards; a plain scalar."""
    return whole(torch.nn.utils.get_total_norm(gradients))
