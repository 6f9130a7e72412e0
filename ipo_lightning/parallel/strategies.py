"""Lightning strategies of this project."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from typing_extensions import override

from ipo_lightning.parallel.sharding import Pace, gathered, in_step

T = TypeVar("T")


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes; Lightning's own default shards over none on one node.

    Args:
        sharded_checkpoints: every rank writes its part, into a folder: no rank needs memory for all
            weights, which very large policies would not fit. False writes one file.
        hours: how long ranks wait for each other; a stage's end may take hours at real sizes.
        gather_to_sample: gather the whole network on each device while it makes videos and
            reference errors. False keeps it in shards, which are gathered block by block at each
            forward: memory of two blocks, communication at each step of sampling; the same videos.
    """

    def __init__(
        self, sharded_checkpoints: bool = False, hours: float = 12, gather_to_sample: bool = True
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=sharded_checkpoints, timeout=timedelta(hours=hours)
        )
        self.sharded_checkpoints, self.gather_to_sample = sharded_checkpoints, gather_to_sample
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
