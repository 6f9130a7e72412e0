"""Nodes of a Ray cluster are killed at seeded moments of a run, which must end with the same bits.

python benchmarks/ray_kills.py --kills 10 --seed 0

One run by one process, and one with ``stages=ray`` on three nodes of this machine, a kill each time
some unit has begun: the node that computes it goes, with all its processes, and another one joins.
Prints a row a kill and ends with status 1 where any file of labels or policy differs.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from ipo_lightning.parallel.ray_actors import Actors  # noqa: E402
from ipo_lightning.storage.store import read_jsonl  # noqa: E402
from tests.conftest import composed  # noqa: E402
from tests.helpers.nodes import Nodes, nodes  # noqa: E402
from train import train  # noqa: E402

WORDS = (
    "rollout.prompts=10", "rollout.n=3", "rollout.steps=3", "data.optimizer_steps=6",
    "data.batch_size=2", "labelling.pair_rule.margin=0", "labelling.filters.motion_ratio=0",
    "evaluation.n=1", "evaluation.split=select", "evaluation.prompts=6", "callbacks.progress=null",
    "callbacks.videos=null", "callbacks.report=null", "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu", "logger=none", "name=run", "round=1",
)  # fmt: skip
UNITS = 50
"""Units of such a run, at least: 10 prompts sampled and judged, 6 evaluated by two critics."""
FILES = ("candidates.jsonl", "verdicts.jsonl", "pairs.jsonl", "evaluation.jsonl")


class Kills:
    """Kills the node of every unit whose number among those begun was drawn."""

    def __init__(self, cluster: Nodes, count: int, seed: int) -> None:
        rng = random.Random(seed)
        self.cluster, self.rng = cluster, rng
        self.moments = sorted(rng.sample(range(2, UNITS), count))
        self.done: list[str] = []
        self._lock, self._begun = threading.Lock(), 0

    def wrap(self, take: Callable[[Actors], Any]) -> Callable[[Actors], Any]:
        """Of `Actors`: which actor is given the next unit."""

        def taken(actors: Actors) -> Any:
            actor = take(actors)
            with self._lock:
                self._begun += 1
                due = len(self.done) < len(self.moments)
                if due and self._begun >= self.moments[len(self.done)]:
                    self._kill(str(actors._nodes.get(actor)))
            return actor

        return taken

    def _kill(self, node: str) -> None:
        if node in self.done or node not in self.cluster.ids():
            return  # of an actor that another kill has taken along
        after = self.rng.uniform(0, 0.5)
        self.done.append(node)
        print(
            f"kill {len(self.done)}: as unit {self._begun} begins, after {after:.2f} s", flush=True
        )
        threading.Timer(after, self._replace, [node]).start()

    def _replace(self, node: str) -> None:
        if node in self.cluster.ids():
            self.cluster.kill(node)
            self.cluster.add()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        train(composed("train", *WORDS, outputs=whole))
        with nodes(3) as cluster:
            kills = Kills(cluster, options.kills, options.seed)
            started, usual = time.monotonic(), Actors._take
            Actors._take = kills.wrap(usual)  # type: ignore[method-assign]
            address = f"stages.address='{cluster.address}'"
            train(composed("train", *WORDS, "stages=ray", address, outputs=broken))
            Actors._take = usual  # type: ignore[method-assign]
        same = results(whole) == results(broken)
        print(f"{len(kills.done)} nodes killed in {time.monotonic() - started:.0f} s: "
              f"{'same' if same else 'DIFFERENT'} results")  # fmt: skip
        return 0 if same and len(kills.done) == options.kills else 1


def results(outputs: Path) -> list[Any]:
    """Policies and scores of a run, and the rows of its files."""
    lines = [line | {"seconds": 0} for line in read_jsonl(outputs / "run/rounds.jsonl")]
    return lines + [(outputs / "run/round_1" / name).read_bytes() for name in FILES]


if __name__ == "__main__":
    sys.exit(main())
