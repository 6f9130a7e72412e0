"""The run that faults happen to: its states, how it is started, what it comes to."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.helpers.commands import run
from tests.helpers.ranks import SERVER

WORDS = (
    "rollout.prompts=2", "rollout.n=2", "rollout.steps=2", "data.optimizer_steps=4",
    "data.batch_size=2", "labelling.pair_rule.margin=0", "labelling.filters.motion_ratio=0",
    "evaluation.n=1", "evaluation.split=select", "evaluation.prompts=2",
    "callbacks.iteration.checkpoint_every=2", "callbacks.progress=null", "callbacks.videos=null",
    "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "logger=none", "name=run",
)  # fmt: skip
"""Two rounds in seconds."""
LIMIT = 300
"""Seconds after which a process counts as hanging, on a loaded machine too."""
STATES = {
    "finished": (["round=2"], {}),
    "between rounds": (["round=1"], {}),
    "labelled": (["round=2", "until=labelling"], {}),
    "in mid-round": (["round=2"], {"signal": 7}),
}
"""How far a run is brought before a fault: the words, and after how many optimizer steps it is
ended."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int | None
    """Exit status; minus the signal's number; None: it had to be killed, because it hung."""
    text: str
    """What it wrote to the terminal."""


class Running:
    """A train.py in a process of its own, forked from one that has imported everything."""

    def __init__(
        self,
        outputs: Path,
        *words: str,
        before: Callable[..., Any] | None = None,
        given: tuple[Any, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.said = outputs.parent / f"{outputs.name}.{time.monotonic_ns()}"
        self.said.mkdir()
        words = (f"paths.outputs={outputs}", *WORDS, *words)
        self.process: ForkServerProcess = SERVER.Process(
            target=_train, args=(str(self.said), dict(environment or {}), words, before, given)
        )
        self.process.start()

    def end(self, limit: float = LIMIT) -> Ended:
        """Wait for its end, and end it where it takes too long."""
        self.process.join(limit)
        status = self.process.exitcode
        if status is None:
            self.process.kill()
            self.process.join()
        text = "".join(file.read_text(errors="replace") for file in sorted(self.said.iterdir()))
        shutil.rmtree(self.said)
        return Ended(status, text)


def _train(
    said: str,
    environment: Mapping[str, str],
    words: Sequence[str],
    before: Callable[..., Any] | None,
    given: tuple[Any, ...],
) -> None:
    """In the new process: something first, then the command line's own way."""
    if before is not None:
        before(*given)
    run(said, environment, "train.py", words)


def train(outputs: Path, *words: str, **more: Any) -> Ended:
    """Run train.py to its end."""
    return Running(outputs, *words, **more).end()


def results(outputs: Path) -> list[Any]:
    """What a run came to: its lines but for the seconds, its labels, its weights to the bit."""
    run, found = outputs / "run", list[Any]()
    lines = (run / "rounds.jsonl").read_text().splitlines() if run.is_dir() else []
    for line in map(json.loads, lines):
        line.pop("seconds")
        folder = run / f"round_{line['round']}"
        pairs = folder / "pairs.jsonl"
        labels = pairs.read_text() if pairs.is_file() else ""
        weights = [hashlib.sha256(file.read_bytes()).hexdigest()
                   for file in sorted(folder.glob("policy/*.safetensors"))]  # fmt: skip
        found.append([line, labels, weights])
    return found


class Runs:
    """A run in each state, made once; copies of it are what faults happen to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Path] = {}
        self._expected: list[Any] | None = None
        self.seconds = 0.0
        """What a whole run takes on this machine."""

    def copy(self, state: str, to: Path) -> Path:
        """Outputs whose run is in a state."""
        self.expected()  # which leaves a finished run
        if state not in self._made:
            self._made[state] = self._make(state)
        shutil.copytree(self._made[state], to, symlinks=True)
        return to

    def expected(self) -> list[Any]:
        """What the run comes to when nothing happens to it."""
        if self._expected is None:
            started = time.monotonic()
            outputs = self._made["finished"] = self._make("finished")
            self.seconds = time.monotonic() - started
            self._expected = results(outputs)
        return self._expected

    def _make(self, state: str) -> Path:
        outputs = self.folder / state.replace(" ", "-")
        words, after = STATES[state]
        if after:
            crash = "+callbacks.end={_target_:tests.helpers.interrupt.CrashAt,optimizer_steps:%d}"
            words = [*words, crash % after["signal"]]
        ended = train(outputs, *words)
        if ended.status != (9 if after else 0):
            raise RuntimeError(f"{state}: {ended.text[-2000:]}")
        return outputs
