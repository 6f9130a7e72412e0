"""The store at scale: what a unit costs to write, and what a run costs to start on a large round.

python benchmarks/store.py                                    12,500 prompts x 8, some minutes
python benchmarks/store.py --prompts 1000 --keep outputs/big  smaller, and kept
python benchmarks/store.py --parts writes                     the writes alone

`writes`: the 17 files of a prompt with 8 candidates, written and synced one by one, and together.
`start`: a store with a round's candidates (tiny latents, stand-ins of mp4 files, nothing sampled),
and `train.py until=rollout` on it: where all is there, where the candidates of the last prompts are
missing (up to the first that is made), and again where the stage is finished. CPU seconds and peak
memory are of the whole process, imports included.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import torch  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from app.assembly import assemble  # noqa: E402
from app.entry import CONF, register_resolvers  # noqa: E402
from ipo_lightning.report import table  # noqa: E402
from ipo_lightning.rounds.rollout import RolloutStage  # noqa: E402
from ipo_lightning.sampling import PromptSeeds, Sampler  # noqa: E402
from ipo_lightning.storage.store import Store, canonical, fingerprint  # noqa: E402

PROBE = "IPO_PROBE"
GAUGES = ("brightness", "contrast", "flicker", "flow", "motion", "saturation", "sharpness")


class Unsynced(Store):
    """A store for data that may be lost: nothing is synced."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._write = self._plainly

    @staticmethod
    def _plainly(path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# -------------------------------------------------------------------- a large round


def words(folder: Path, n: int) -> list[str]:
    """The settings of a run whose first round is the large one."""
    return [
        "data=file", f"data.prompts.path={folder / 'prompts.csv'}", f"rollout.n={n}",
        f"paths.outputs={folder}", f"paths.store={folder / 'store'}", "until=rollout", "round=1",
        "evaluation.prompts=1", "evaluation.n=1", "evaluation.choice_n=0", "name=large",
        "trainer.accelerator=cpu",
    ]  # fmt: skip


def make(folder: Path, prompts: int, n: int) -> list[Path]:
    """Write prompts, candidates and embeddings; the records of the rollout, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "prompts.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "split"])
        rows.writerows([f"a red square moving left, take {i}", "train"] for i in range(prompts))
        rows.writerows([f"a blue ring moving up, {s}", s] for s in ("select", "final"))
    sampler, items = sampled(composed(words(folder, n)))
    store = Unsynced(folder / "store")
    return [put(store, sampler, item) for item in items]


def composed(overrides: Sequence[str]) -> DictConfig:
    """The settings of a command line."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def sampled(cfg: DictConfig) -> tuple[Sampler, list[PromptSeeds]]:
    """The sampler of the first round, and its prompts."""
    stages = assemble(cfg).iteration.stages
    stage = next(one for one in stages if isinstance(one, RolloutStage))
    return stage.sampler, stage.plan.of_round(1)


def put(store: Store, sampler: Sampler, item: PromptSeeds) -> Path:
    """The candidates of a prompt as a rollout leaves them; the path of their record."""
    rows = [
        {
            "latents": store.put_tensors("latents", {"latents": torch.tensor([float(seed)])}),
            "video": store.put_blob("videos", b"no mp4, but %d" % seed, ".mp4"),
            "gauges": {name: round((seed % 997) / 997, 6) for name in GAUGES},
        }
        for seed in item.seeds
    ]
    text = store.put_tensors("text", {"text": torch.full((12, 32), float(item.prompt_index))})
    store.put_record("texts", sampler._text_key(item.prompt), {"blob": text})
    key = sampler.key(sampler.policy.identity, item, "32-true")
    store.put_record("rollouts", key, rows)
    return store.path("rollouts", key, ".json")


# -------------------------------------------------------------------- starting on it


def start(folder: Path, prompts: int, n: int) -> list[dict[str, Any]]:
    """The rows of the table."""
    began = time.monotonic()
    records = make(folder, prompts, n)
    print(f"made {prompts} prompts x {n} in {time.monotonic() - began:.0f} s", file=sys.stderr)
    last = records[-4:]
    for one in last:
        one.rename(one.with_suffix(".away"))
    rows = [measured("to the first prompt made, of 4 missing", words(folder, n), first=True)]
    for one in last:
        one.with_suffix(".away").rename(one)
    rows.append(measured("to the end of the stage, none missing", words(folder, n)))
    rows.append(measured("again, once it is finished", words(folder, n)))
    return rows


def measured(what: str, overrides: Sequence[str], first: bool = False) -> dict[str, Any]:
    """A run in a process of its own: what it cost."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    probe = os.environ | {PROBE: "first" if first else "end"}
    command = [sys.executable, __file__, "--run", *overrides]
    done = subprocess.run(command, env=probe, cwd=REPO, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = json.loads(done.stdout.splitlines()[-1])["peak"]
    return {"what": what, "cpu_s": round(cpu, 1), "wall_s": round(time.monotonic() - began, 1),
            "peak_mib": round(peak)}  # fmt: skip


def run(overrides: Sequence[str]) -> None:
    """`train.py`, in this process; with ``first`` it ends where the first candidates are made."""
    from train import train

    if os.environ.get(PROBE) == "first":
        make_one = Sampler._make

        def probed(self: Sampler, key: str, item: PromptSeeds, *rest: Any) -> Any:
            if "take" in item.prompt:
                told()
                os._exit(0)
            return make_one(self, key, item, *rest)

        Sampler._make = probed  # type: ignore[method-assign, assignment]
    register_resolvers()
    train(composed(overrides))
    told()


def told() -> None:
    """Print the process's peak memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("\n" + json.dumps({"peak": peak}), flush=True)


# -------------------------------------------------------------------- writing


def writes(folder: Path, turns: int = 12, n: int = 8, size: int = 30_000) -> list[dict[str, Any]]:
    """Milliseconds of a prompt's files, median of the turns; both ways in turn."""
    took: dict[str, list[float]] = {"one by one": [], "together": []}
    for turn in range(turns):
        for way, spent in took.items():
            store = Store(folder / "written")
            content = [os.urandom(size) for _ in range(2 * n)]
            began = time.monotonic()
            if way == "together":
                with store.together() as unit:
                    _put_unit(unit, content, f"{turn}")
            else:
                _put_unit(store, content, f"{turn}, alone")
            spent.append(1e3 * (time.monotonic() - began))
    return [
        {"files": 2 * n + 1, "written": way, "ms": round(sorted(spent)[len(spent) // 2], 1)}
        for way, spent in took.items()
    ]


def _put_unit(store: Store, content: Sequence[bytes], question: str) -> None:
    names = [store.put_blob("videos", one, ".mp4") for one in content]
    store.put_record("rollouts", fingerprint(question), names)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=12_500)
    parser.add_argument("--n", type=int, default=8, help="candidates a prompt")
    parser.add_argument("--parts", nargs="+", default=["writes", "start"])
    parser.add_argument("--keep", type=Path, help="a new folder for the data, which stays")
    chosen = parser.parse_args()
    register_resolvers()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (chosen.keep or Path(scratch)).resolve()
        for part in chosen.parts:
            rows = writes(folder) if part == "writes" else start(folder, chosen.prompts, chosen.n)
            print(canonical(rows).decode())
            print(table(rows, list(rows[0])))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(sys.argv[2:])
    else:
        main()
