"""Lightning strategies of this project."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import lightning as L
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer
from typing_extensions import override

from ipo_lightning.parallel.context import ContextGroup, Replica
from ipo_lightning.parallel.degrees import Degrees
from ipo_lightning.parallel.sharding import Pace, gathered, in_step
from ipo_lightning.settings import Count

T = TypeVar("T")

HOURS = timedelta(hours=12)


class InGroups(Strategy):
    """A strategy whose ranks may form groups that make each forward together, see `Degrees`."""

    degrees = Degrees()
    group: ContextGroup | None = None
    """This rank's group; None where each rank makes its own forwards."""

    @override
    def setup_environment(self) -> None:
        """Form the groups, once all ranks are known."""
        super().setup_environment()
        if self.degrees.size > 1:
            timeout = cast(timedelta, self._timeout)  # type: ignore[attr-defined]
            self.group = ContextGroup(self.degrees, self.root_device.type, timeout)

    @override
    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Each rank's gradient is that of its tokens: their sum over a group is wanted, and the
        mean over the groups, where the strategy takes the mean over all ranks."""
        return super().backward(closure_loss * self.degrees.size, optimizer, *args, **kwargs)


def replica_of(trainer: L.Trainer) -> Replica:
    """Which share of the data this rank has."""
    group = group_of(trainer)
    peers = 1 if group is None else group.degrees.size
    rank, world = trainer.global_rank, trainer.world_size
    return Replica(rank // peers, world // peers, rank % peers == 0)


def group_of(trainer: L.Trainer) -> ContextGroup | None:
    """The group of ranks that this one makes its forwards with; None: it makes them alone."""
    strategy = trainer.strategy
    return strategy.group if isinstance(strategy, InGroups) else None


def group_mesh(trainer: L.Trainer | None) -> DeviceMesh | None:
    """The mesh of this rank's group, see `group_of`."""
    group = None if trainer is None else group_of(trainer)
    return None if group is None else group.mesh


class ReplicatedStrategy(InGroups, DDPStrategy):
    """DDP: a copy of the network on each device.

    Args:
        timeout: how long ranks wait for each other; a stage's end may take hours at real sizes.
        ulysses, ring: see `Degrees`.
        more: of Lightning's `DDPStrategy`.
    """

    def __init__(
        self, timeout: timedelta = HOURS, ulysses: Count = 1, ring: Count = 1, **more: Any
    ) -> None:
        super().__init__(timeout=timeout, **more)
        self.degrees = Degrees(ulysses, ring)


class FullyShardedStrategy(InGroups, ModelParallelStrategy):
    """FSDP2 over all devices of all nodes; Lightning's own default shards over none on one node.

    Args:
        sharded_checkpoints: every rank writes its part, into a folder: no rank needs memory for all
            weights, which very large policies would not fit. False writes one file.
        hours: how long ranks wait for each other; a stage's end may take hours at real sizes.
        gather_to_sample: gather the whole network on each device while it makes videos and
            reference errors. False keeps it in shards, which are gathered block by block at each
            forward: memory of two blocks, communication at each step of sampling; the same videos.
        ulysses, ring: see `Degrees`; weights are sharded over all devices all the same.
    """

    def __init__(
        self,
        sharded_checkpoints: bool = False,
        hours: float = 12,
        gather_to_sample: bool = True,
        ulysses: Count = 1,
        ring: Count = 1,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=sharded_checkpoints, timeout=timedelta(hours=hours)
        )
        self.sharded_checkpoints, self.gather_to_sample = sharded_checkpoints, gather_to_sample
        self.degrees = Degrees(ulysses, ring)
        self._pace: Pace | None = None  # of ranks that work on shards, each at its own

    @override
    def setup_environment(self) -> None:
        """Shard over all processes, whose number is known by now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    @contextmanager
    def unequal_forwards(self, network: nn.Module) -> Iterator[None]:
        """Within it ranks may make unequal numbers of forwards of a network, without gradients."""
        if self.gather_to_sample:
            with gathered(network):
                yield
            return
        with in_step(network) as self._pace:
            try:
                yield
            finally:
                self._pace = None

    @override
    def barrier(self, name: str | None = None) -> None:
        """Wait for the other ranks, whose forwards may need this one's shards until then."""
        if self._pace is not None:
            self._pace.wait()
        super().barrier(name)

    @override
    def broadcast(self, obj: T, src: int = 0) -> T:
        """Hear from a rank, see `barrier`."""
        if self._pace is not None:
            self._pace.wait()
        return super().broadcast(obj, src)
