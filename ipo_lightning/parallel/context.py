"""Context parallelism: groups of ranks that make each forward together.

The tokens of a video are divided among the ranks of a group, which meet in attention: Ulysses gives
each rank some heads of all tokens (Jacobs et al. 2023, arXiv 2309.14509), ring attention passes
keys and values round (Liu et al. 2023, arXiv 2310.01889). A group is one replica of the data: its
ranks have the same batch, and sample the same prompt. How a network is divided is its family's
matter.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.degrees import Degrees, check_divisible, check_world

MESH = "_context_mesh"
"""Where a network whose tokens are divided keeps the mesh of its group."""


@dataclass(frozen=True)
class Replica:
    """Which share of the data a rank has: that of its group."""

    rank: int
    count: int
    leads: bool
    """Whether this rank counts what its group computes."""


class ContextGroup:
    """This rank's group; every rank of the run must make one at the same time.

    Args:
        degrees: of the group. device_type: ``cuda`` or ``cpu``.
        timeout: how long its ranks wait for the leading one, which decodes and stores.

    Raises:
        InputError: the ranks cannot be divided into such groups.
    """

    def __init__(self, degrees: Degrees, device_type: str, timeout: timedelta | None) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        check_world(degrees, world)
        shape, names = (world // degrees.size, degrees.ring, degrees.ulysses), ("replica", *DIMS)
        self.degrees = degrees
        self.mesh: DeviceMesh = init_device_mesh(device_type, shape, mesh_dim_names=names)[DIMS]
        self.first = rank - rank % degrees.size
        self._others = [
            dist.new_group([*range(first, first + degrees.size)], timeout)
            for first in range(0, world, degrees.size)
        ][rank // degrees.size]

    def share(self, value: Any) -> Any:
        """The leading rank's value, on each rank of the group; all of them must call it."""
        held = [value]
        dist.broadcast_object_list(held, self.first, group=self._others)
        return held[0]


DIMS = ("ring", "ulysses")
"""The mesh's dimensions, as diffusers calls them."""


def check_policy(policy: object, degrees: Degrees) -> None:
    """Refuse degrees that a family's videos cannot be divided by.

    Raises:
        InputError: the family divides no tokens, or these do not divide its heads and tokens.
    """
    if degrees.size == 1:
        return
    if not hasattr(policy, "divide_tokens"):
        raise InputError(
            f"trainer.strategy: {type(policy).__name__} has no divide_tokens, which context "
            "parallelism needs; give ulysses=1 and ring=1"
        )
    check_divisible(degrees, policy.tokens, policy.heads)  # type: ignore[attr-defined]


def mesh_in_context(network: nn.Module) -> DeviceMesh | None:
    """The mesh of the group that a network's tokens are divided in; None where they are not."""
    found: DeviceMesh | None = getattr(network, MESH, None)
    return found


def divide_tokens(policy: Any, network: nn.Module, mesh: DeviceMesh | None) -> None:
    """Divide the tokens of a policy's network over a mesh of (ring, ulysses); None: leave it.

    Raises:
        InputError: the family cannot divide them.
    """
    if mesh is None:
        return
    ring, ulysses = (mesh[name].size() for name in DIMS)
    check_policy(policy, Degrees(ulysses=ulysses, ring=ring))
    policy.divide_tokens(network, mesh)
    setattr(network, MESH, mesh)
