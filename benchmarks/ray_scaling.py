"""Videos a second of two Ray actors on one core each against one of them, in alternating turns.

python benchmarks/ray_scaling.py --turns 5 --prompts 24

Each turn makes the same rollout into a store of its own; an actor's start is not counted. Prints a
row a turn with the machine's load, then the medians and their ratio. The candidates of all turns
must be equal.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")

import torch  # noqa: E402

from app.entry import build  # noqa: E402
from ipo_lightning.parallel.ray_engine import RayEngine  # noqa: E402
from ipo_lightning.parallel.runtime import Runtime  # noqa: E402
from ipo_lightning.parallel.workers import Workers  # noqa: E402
from ipo_lightning.policy import Sampling  # noqa: E402
from ipo_lightning.sampling import PromptSeeds, Sampler  # noqa: E402
from ipo_lightning.storage.store import Store  # noqa: E402
from tests.conftest import composed  # noqa: E402


class Rollouts:
    """The same rollout, by a number of actors."""

    def __init__(self, prompts: int, steps: int) -> None:
        torch.set_num_threads(1)
        self.policy: Any = build(composed("train").backbone, "backbone")
        self.network = self.policy.build().eval()
        self.sampling = Sampling(steps)
        words = [f"a red cross moving right, {i}" for i in range(prompts)]
        self.items = [PromptSeeds(i, word, tuple(range(6))) for i, word in enumerate(words)]

    def made(self, engine: RayEngine, items: list[PromptSeeds]) -> tuple[float, list[Any]]:
        """Seconds without text embeddings, and the candidates."""
        runtime = Runtime(workers=Workers(bars=False, engine=engine))
        with tempfile.TemporaryDirectory() as folder:
            sampler = Sampler(self.policy, Store(folder), self.sampling, lossless=True)
            sampler.embed([item.prompt for item in items], runtime)
            started = time.monotonic()
            found = sampler.generate(
                self.policy.identity, items, self.network, runtime, "benchmark"
            )
            return time.monotonic() - started, found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    rollouts = Rollouts(options.prompts, options.steps)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    results = []
    import ray

    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    # Both wait for units at the same time: neither starts its actors within a turn.
    engines = {count: RayEngine(workers=count) for count in seconds}
    for engine in engines.values():
        rollouts.made(engine, rollouts.items[:4])
    for turn in range(options.turns):
        for count in sorted(engines, reverse=bool(turn % 2)):
            took, found = rollouts.made(engines[count], rollouts.items)
            seconds[count].append(took)
            results.append(found)
            print(f"turn {turn + 1}, {count} workers: {took:.2f} s, load {os.getloadavg()[0]:.1f}")
    medians = {count: statistics.median(some) for count, some in seconds.items()}
    same = all(one == results[0] for one in results)
    print(f"medians {medians[1]:.2f} and {medians[2]:.2f} s: {medians[1] / medians[2]:.2f} x; "
          f"{'equal candidates' if same else 'DIFFERENT CANDIDATES'}")  # fmt: skip
    for engine in engines.values():
        engine.close()
    ray.shutdown()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
