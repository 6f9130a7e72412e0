"""Kill a run with SIGKILL at random moments, resume it each time, compare it with an unbroken one.

python benchmarks/kill_resume.py --kills 10 -- rollout.prompts=7 data.optimizer_steps=12 round=2

Prints a row a kill (when, and what was on disk) and ends with status 1 where any round's policy
fingerprint, or any figure of rounds.jsonl but the seconds, differs from the unbroken run's.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        start_up = finish([*command(whole, options.overrides), "dry_run=true"])
        seconds = finish(command(whole, options.overrides))
        print(f"start-up {start_up:.1f} s, unbroken run {seconds:.1f} s")
        chance = random.Random(options.seed)
        # Every life costs a start-up; what it then gets done is a random share of the work.
        share = (seconds - start_up) / options.kills
        for number in range(options.kills):
            moment = start_up + chance.uniform(0, share)
            done = interrupt(command(broken, options.overrides), moment)
            print(f"kill {number + 1}: after {moment:.1f} s; {state(broken, ended=done)}")
            if done:
                break
        finish(command(broken, options.overrides))
        same = results(whole) == results(broken)
        print("same fingerprints and figures" if same else "DIFFERENT RESULTS")
        if not same:
            print(json.dumps([results(whole), results(broken)], indent=1))
        return 0 if same else 1


def command(outputs: Path, overrides: list[str]) -> list[str]:
    """The command of a run in a folder of its own."""
    return [sys.executable, str(REPO / "train.py"), f"paths.outputs={outputs}", "name=run",
            *overrides]  # fmt: skip


def finish(words: list[str]) -> float:
    """Run to the end; the seconds that it took."""
    started = time.monotonic()
    subprocess.run(words, check=True, capture_output=True, cwd=REPO)
    return time.monotonic() - started


def interrupt(words: list[str], moment: float) -> bool:
    """Run for some seconds and kill; whether it had ended by itself."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=REPO
    )
    try:
        process.wait(timeout=moment)
        return True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return False


def state(outputs: Path, *, ended: bool) -> str:
    """What is on disk."""
    if ended:
        return "it had ended by itself"
    rounds = sorted((outputs / "run").glob("round_*"))
    if not rounds:
        return "nothing on disk"
    last = rounds[-1]
    videos = len(list((outputs / "store" / "videos").rglob("*.mp4")))
    files = [file.stem for file in sorted(last.glob("*.jsonl"))]
    checkpoints = [file.stem for file in last.glob("checkpoints/*.ckpt")]
    return f"{videos} videos, {last.name}: {', '.join([*files, *checkpoints]) or 'empty'}"


def results(outputs: Path) -> list[dict[str, Any]]:
    """rounds.jsonl without its seconds."""
    text = (outputs / "run" / "rounds.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


if __name__ == "__main__":
    sys.exit(main())
