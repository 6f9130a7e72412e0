"""Ray nodes on this machine, and critics that behave by the node that they are on."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from ipo_lightning.critics.protocols import Rating
from ipo_lightning.errors import InputError

QUIET = {
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
STORE = 100 * 2**20
"""Bytes of a node's object store."""


class Nodes:
    """Nodes of one CPU each, beside a head that computes nothing."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster

    @property
    def address(self) -> str:
        """Of the cluster."""
        return str(self.cluster.address)

    def add(self) -> Any:
        """One more node."""
        return self.cluster.add_node(num_cpus=1, object_store_memory=STORE)

    def ids(self) -> list[str]:
        """Of the nodes that compute, in the order in which they joined."""
        return [str(one.node_id) for one in self._workers()]

    def kill(self, node: str) -> None:
        """Lose a node, all of its processes at once."""
        (found,) = (one for one in self._workers() if one.node_id == node)
        self.cluster.remove_node(found, allow_graceful=False)

    def _workers(self) -> list[Any]:
        return [one for one in self.cluster.list_all_nodes() if not one.is_head()]


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """So many nodes on this machine, without dashboard and memory monitor."""
    from ray.cluster_utils import Cluster

    os.environ.update(QUIET)
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    found = Nodes(cluster)
    try:
        for _ in range(count):
            found.add()
        cluster._shutdown_at_exit = False  # its signal handlers can be set by the main thread alone
        yield found
    finally:
        cluster.shutdown()


def node_id() -> str:
    """Of the node that this process is on; empty where it is no actor."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


class Bright:
    """Rates a video by its brightness.

    Args:
        folder: where each call leaves a file named by its node.
        slow: nodes that take ``seconds`` more for each call. hangs: nodes whose calls never end.
        fails: whether it cannot be asked at all.
    """

    identity = "bright"

    def __init__(
        self,
        folder: Path,
        slow: Sequence[str] = (),
        hangs: Sequence[str] = (),
        seconds: float = 1.0,
        fails: bool = False,
    ) -> None:
        self.folder, self.slow, self.hangs, self.seconds = folder, list(slow), list(hangs), seconds
        self.fails = fails

    def load(self, device: str) -> None:
        """Refuse, where it should."""
        if self.fails:
            raise InputError(setting="weights", value="none", expected="give some")

    def release(self) -> None:
        """Nothing is held."""

    def rate(self, clips: Any, prompts: Any) -> list[Rating]:
        """The mean of all pixels."""
        node = node_id()
        (self.folder / f"{node}-{os.urandom(4).hex()}").touch()
        if node in self.hangs:
            Event().wait()
        if node in self.slow:
            Event().wait(self.seconds)
        return [Rating(float(clip.frames.float().mean())) for clip in clips]

    def calls(self, node: str) -> int:
        """How many calls a node was given."""
        return len([*self.folder.glob(f"{node}-*")])
