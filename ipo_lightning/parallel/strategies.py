"""Lightning strategies of this project."""

from datetime import timedelta

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
