"""Lightning strategies of this project, and how they read their checkpoints."""

from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy
from typing_extensions import override


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all devices of all nodes; Lightning's own default shards over none on one node.

    Args:
        sharded_checkpoints: every rank writes its part, into a folder: no rank needs memory for all
            weights, which very large policies would not fit. False writes one file.
        hours: how long ranks wait for each other; a stage's end may take hours at real sizes.
    """

    def __init__(self, sharded_checkpoints: bool = False, hours: float = 12) -> None:
        super().__init__(
            save_distributed_checkpoint=sharded_checkpoints, timeout=timedelta(hours=hours)
        )
        self.sharded_checkpoints = sharded_checkpoints

    @override
    def setup_environment(self) -> None:
        """Shard over all processes, whose number is known by now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


class CheckpointsOnCpu(TorchCheckpointIO):
    """Checkpoints of one file, read into CPU memory.

    Lightning does so too, but by a ``map_location`` that is a function, which torch refuses for
    tensor subclasses such as torchao's moments in 8 bits.
    """

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        return super().load_checkpoint(path, map_location, weights_only)
