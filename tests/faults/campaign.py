"""Seeded faults, one after the other, and what became of the run.

Every fault happens to a run in one of its states (`tests.faults.runs.STATES`); then the same
command is given again. What comes of it is counted as

- ``identical``: the run ends with the bits that it has without the fault;
- ``refused``: one to three lines name the cause, and the status is 1;
- ``told``: another result, after a warning that names the file that was edited;
- ``wrong``, ``traceback``, ``hang``, ``unclear`` (a refusal that does not name the cause): to be
  mended here.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.damages import DAMAGES
from tests.faults.runs import STATES, Ended, Running, Runs, results, train

FINE = ("identical", "refused", "told")


@dataclass(frozen=True)
class Outcome:
    """What became of a run after a fault."""

    seed: int
    kind: str
    what: str
    outcome: str
    text: str = ""
    """The end of what was written, where it is not fine."""


Kind = Callable[[Runs, Path, random.Random], tuple[str, str, str]]
"""Lets a fault happen to a copy in a folder: what was done, what came of it, the text."""


def campaign(runs: Runs, seed: int, count: int, kinds: Iterable[str] = ()) -> Iterator[Outcome]:
    """So many faults; each follows from its own seed, ``seed + k``."""
    chosen = list(kinds) or list(KINDS)
    for one in range(seed, seed + count):
        rng = random.Random(one)
        kind = rng.choices(chosen, [KINDS[name][0] for name in chosen])[0]
        place = runs.folder / f"fault-{one}"
        place.mkdir()
        what, outcome, text = KINDS[kind][1](runs, place, rng)
        shutil.rmtree(place)
        yield Outcome(one, kind, what, outcome, "" if outcome in FINE else text[-3000:])


def judged(runs: Runs, outputs: Path, ended: Ended, names: Iterable[str]) -> str:
    """What a process's end amounts to.

    Args:
        names: what a refusal must name one of.
    """
    if ended.status is None:
        return "hang"
    if "Traceback" in ended.text:
        return "traceback"
    named = any(name in ended.text for name in names)
    if ended.status != 0:
        return "refused" if ended.status == 1 and "error: " in ended.text and named else "unclear"
    if results(outputs) == runs.expected():
        return "identical"
    return "told" if named and "edited" in ended.text else "wrong"


# ---------------------------------------------------------------- kinds of faults


def damage(runs: Runs, place: Path, rng: random.Random) -> tuple[str, str, str]:
    """A file of the run, or one of the store, is damaged."""
    state = rng.choice(list(STATES))
    outputs = runs.copy(state, place / "outputs")
    part = outputs / rng.choice(["run", "run", "store"])
    for _ in range(50):
        file = rng.choice(sorted(one for one in part.rglob("*") if one.is_file()))
        way = rng.choice(DAMAGES)
        if way(file, rng):
            break
    what = f"{way.__name__} {file.relative_to(outputs)}, {state}"
    ended = train(outputs, "round=2")
    # A swap damages two files, and a lost folder all that was in it.
    return what, judged(runs, outputs, ended, [str(outputs)]), ended.text


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL)


def signalled(runs: Runs, place: Path, rng: random.Random) -> tuple[str, str, str]:
    """A signal at a random moment; then the same command once more."""
    runs.expected()
    state, number = rng.choice(["fresh", *STATES]), rng.choice(SIGNALS)
    outputs = place / "outputs" if state == "fresh" else runs.copy(state, place / "outputs")
    running = Running(outputs, "round=2")
    time.sleep(rng.uniform(0.5, 0.5 + runs.seconds))
    if running.process.pid is not None and running.process.is_alive():
        os.kill(running.process.pid, number)
    ended = running.end()
    what = f"{number.name} to a {state} run"
    if ended.status not in (0, 128 + number, -number) or "Traceback" in ended.text:
        return what, "hang" if ended.status is None else "unclear", ended.text
    again = train(outputs, "round=2")
    return what, judged(runs, outputs, again, ()), ended.text + again.text


RANKS = {"ddp": ["trainer=ddp"], "fsdp": ["trainer=fsdp"]}


def rank_lost(runs: Runs, place: Path, rng: random.Random) -> tuple[str, str, str]:
    """One of two ranks is ended; two go on."""
    kind, number = rng.choice(list(RANKS)), rng.choice(SIGNALS)
    words = [*RANKS[kind], "trainer.devices=2", "data.batch_size=1", "round=2"]
    unbroken = runs.folder / kind
    if not (unbroken / "run" / "round_2" / "policy").is_dir():
        train(unbroken, *words)
    outputs = place / "outputs"
    running = Running(outputs, *words)
    time.sleep(rng.uniform(8, 8 + 3 * runs.seconds))
    found = subprocess.run(
        ["pgrep", "-f", f"paths.outputs={outputs}"], capture_output=True, text=True, check=False
    ).stdout.split()
    others = [pid for pid in map(int, found) if pid != running.process.pid]
    victim = rng.choice([running.process.pid or 0, *others])
    if victim and running.process.is_alive():
        os.kill(victim, number)
    ended = running.end()
    what = f"{number.name} to one of two ranks, {kind}"
    if ended.status is None:
        return what, "hang", ended.text
    again = train(outputs, *words)
    if again.status == 0 and results(outputs) == results(unbroken):
        return what, "identical", ""
    return what, "wrong", ended.text + again.text


def neighbour(runs: Runs, place: Path, rng: random.Random) -> tuple[str, str, str]:
    """Two processes on one folder: one has it, the other is told who."""
    outputs = place / "outputs"
    first = Running(outputs, "round=2")
    time.sleep(rng.choice([0, 0, rng.uniform(0, runs.seconds)]))
    ends = [Running(outputs, "round=2").end(), first.end()]
    what, text = "two processes on one folder", ends[0].text + ends[1].text
    if any(one.status is None for one in ends):
        return what, "hang", text
    refused = [one for one in ends if one.status != 0]
    if len(refused) > 1 or any("error: " not in one.text for one in refused):
        return what, "unclear", text
    done = next(one for one in ends if one.status == 0)
    return what, judged(runs, outputs, done, ()), text


def shared_store(runs: Runs, place: Path, rng: random.Random) -> tuple[str, str, str]:
    """Two runs at the same time share a store: both come to what one alone does."""
    store = f"paths.store={place / 'store'}"
    both = [Running(place / name, "round=2", store) for name in ("one", "two")]
    for outputs, running in zip(("one", "two"), both, strict=True):
        ended = running.end()
        outcome = judged(runs, place / outputs, ended, ())
        if outcome != "identical":
            return "two runs on one store", outcome, ended.text
    return "two runs on one store", "identical", ""


def full_disk(runs: Runs, place: Path, rng: random.Random) -> tuple[str, str, str]:
    """The disk is full at some moment; then there is room again."""
    runs.expected()
    outputs, kib = place / "outputs", rng.randrange(16, 6000)
    with small_disk(outputs, kib) as is_small:
        if is_small:
            ended = train(outputs / "here", "round=2")
            shutil.copytree(outputs / "here", place / "more", symlinks=True)
        else:
            ended = train(place / "more", "round=2", before=largest_file, given=(kib * 256,))
    what = f"{kib} KiB of room" if is_small else f"no file above {kib * 256} bytes"
    if ended.status not in (0, 1) or "Traceback" in ended.text:
        return what, "traceback" if ended.status == 1 else "unclear", ended.text
    if ended.status == 1 and "room" not in ended.text:
        return what, "unclear", ended.text
    again = train(place / "more", "round=2")
    return what, judged(runs, place / "more", again, ()), ended.text + again.text


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[bool]:
    """A disk of so many KiB at a folder, where this machine lets us mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def largest_file(size: int) -> None:
    """Let this process write no file beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def no_temporary_folder(runs: Runs, place: Path, rng: random.Random) -> tuple[str, str, str]:
    """A folder for temporary files that nothing fits in: nothing of ours belongs there."""
    state = rng.choice(list(STATES))
    outputs, small = runs.copy(state, place / "outputs"), place / "tmp"
    with small_disk(small, 16) as is_small:
        where = str(small if is_small else place / "nowhere")
        ended = train(outputs, "round=2", environment={"TMPDIR": where})
    what = f"a folder for temporary files of 16 KiB, {state}"
    return what, judged(runs, outputs, ended, ()), ended.text


def read_only(runs: Runs, place: Path, rng: random.Random) -> tuple[str, str, str]:
    """The run's folder, or a round's, may be read but not written."""
    state = rng.choice(list(STATES))
    outputs = runs.copy(state, place / "outputs")
    folder = rng.choice([outputs / "run", outputs / "run" / "round_1", outputs / "store"])
    done = subprocess.run(["chattr", "+i", folder], check=False, capture_output=True)
    if done.returncode != 0:
        folder.chmod(0o555)
    ended = train(outputs, "round=2")
    subprocess.run(["chattr", "-i", folder], check=False, capture_output=True)
    folder.chmod(0o755)
    what = f"{folder.relative_to(outputs)} is read-only, {state}"
    outcome = judged(runs, outputs, ended, (str(folder),))
    if outcome == "refused":
        again = train(outputs, "round=2")
        if judged(runs, outputs, again, ()) != "identical":
            return what, "wrong", ended.text + again.text
    return what, outcome, ended.text


KINDS: dict[str, tuple[float, Kind]] = {
    "damage": (62, damage),
    "signal": (20, signalled),
    "full disk": (6, full_disk),
    "neighbour": (3, neighbour),
    "shared store": (2, shared_store),
    "no temporary folder": (2, no_temporary_folder),
    "read-only": (3, read_only),
    "lost rank": (2, rank_lost),
}
"""Kinds of faults with their weights."""


# ---------------------------------------------------------------- the command line


def main() -> int:
    """``python -m tests.faults.campaign SEED COUNT [KIND ...]``."""
    seed, count, *kinds = sys.argv[1:]
    folder = Path("build/faults")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    runs, found = Runs(folder.resolve()), list[Outcome]()
    for one in campaign(runs, int(seed), int(count), kinds):
        found.append(one)
        print(f"{one.seed:6d}  {one.outcome:10s} {one.kind}: {one.what}", flush=True)  # noqa: T201
        (folder / "faults.json").write_text(json.dumps([asdict(each) for each in found], indent=1))
    counts = Counter((one.kind, one.outcome) for one in found)
    for (kind, outcome), number in sorted(counts.items()):
        print(f"{number:6d}  {outcome:10s} {kind}")  # noqa: T201
    return int(any(one.outcome not in FINE for one in found))


if __name__ == "__main__":
    sys.exit(main())
