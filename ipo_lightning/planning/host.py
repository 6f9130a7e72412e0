"""CPU memory of a node: what its ranks hold beside their GPUs at the fullest moment.

Counted is what a process has to itself. A network's weights are mapped from their files and go to
the GPU tensor by tensor; the pages of mapped files are the system's, to keep or to drop.
"""

from typing import NamedTuple

from ipo_lightning.planning.estimate import GIB, Estimate


class HostMemory(NamedTuple):
    """Bytes of CPU memory at the fullest moment."""

    rank: float
    """Of each rank but the leading one."""
    leader: float
    """Of the leading rank, which embeds prompts and writes checkpoints."""
    fullest: str
    """What the leading rank then holds."""

    def node(self, ranks: int) -> float:
        """Bytes of a node with so many ranks, the leading one among them."""
        return self.leader + (ranks - 1) * self.rank


def host_memory(estimate: Estimate, *, sharded_checkpoints: bool = False) -> HostMemory:
    """What the ranks of a job hold on the CPU; without GPUs it is what their devices hold.

    Args:
        sharded_checkpoints: whether each rank writes its own part of a checkpoint.
    """
    if not estimate.job.gpu:
        all_of_it = estimate.fullest
        return HostMemory(all_of_it.total, all_of_it.total, all_of_it.name)
    traces = estimate.traces
    # Pinned, and there throughout the run.
    offloaded = getattr(traces.module.reference, "offload", False)
    reference = float(traces.step.weights) if offloaded else 0.0
    gathered = estimate.job.sharded and not sharded_checkpoints
    parts = {
        "text encoder": float(traces.text.held),
        "checkpoint": estimate.checkpoint_bytes() if gathered else 0.0,
    }
    fullest = max(parts, key=lambda name: parts[name])
    name = f"{fullest} and pinned reference" if offloaded else fullest
    return HostMemory(reference, reference + parts[fullest], name)


def host_line(estimate: Estimate, nodes: int, *, sharded_checkpoints: bool = False) -> str:
    """The host memory of a plan, in a sentence."""
    found = host_memory(estimate, sharded_checkpoints=sharded_checkpoints)
    ranks = max(1, estimate.job.devices // nodes)
    shares = f"the leading rank {found.leader / GIB:.3g} ({found.fullest})"
    if estimate.job.devices > 1:
        shares += f", each other rank {found.rank / GIB:.3g}"
        shares += f", the first node with {ranks} ranks {found.node(ranks) / GIB:.3g}"
    return f"host (CPU) memory, GiB, beside 1 to 3 of each process itself: {shares}"
