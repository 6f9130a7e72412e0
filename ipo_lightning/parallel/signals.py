"""Leaving on a signal: after a checkpoint where steps would be lost, at once where nothing is.

Ctrl-C sends SIGINT, `kill` and most schedulers SIGTERM, a closed terminal SIGHUP; SLURM sends what
``sbatch --signal`` names, by custom SIGUSR1, some time before a job's end.
"""

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import Trainer

SIGNALS = [
    number
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if (number := getattr(signal, name, None)) is not None  # Windows has the first two alone
]
LEADER = "IPO_LIGHTNING_LEADER"
"""Environment variable: the process that was started by hand; Lightning copies it to its ranks."""
PATIENCE = b"\nCtrl-C: leaving after this optimizer step (again: at once, without a checkpoint)\n"
AGAIN = 0.1
"""Seconds until a signal whose exception was lost is sent again."""
IMPATIENT = 2.0
"""Seconds after which another signal is meant so, and not the same one passed on by a launcher."""
ALONE = 2.0
"""Seconds between two looks of a rank at whether the process that started it is there."""


class Stopped(SystemExit):
    """Ends the process with the status that shells expect of a signal: 128 + its number.

    Args:
        number: the signal's.
        told: what a person is told; empty on all ranks but the leading one.
        status: another exit status.
    """

    def __init__(self, number: int, told: str = "", status: int | None = None) -> None:
        super().__init__(128 + number if status is None else status)
        self.number, self.told = number, told

    def __str__(self) -> str:
        return self.told


class StopSignals:
    """Turns a signal into `Stopped`, raised at once or at the next safe place.

    Args:
        requeue: whether SIGUSR1 in a SLURM job puts the job back into the queue.
    """

    def __init__(self, requeue: bool = False) -> None:
        self.requeue = requeue
        self.received: int | None = None
        self.deferred = False
        """Whether a signal waits for `leave`: between a round's optimizer steps."""
        self._before: dict[int, Any] = {}
        self._since = 0.0
        self._unraisable = sys.unraisablehook
        self._trainer: Trainer | None = None
        self._process = os.getpid()

    def install(self, trainer: "Trainer | None" = None) -> None:
        """Handle the signals, in place of whoever does; ignored ones (nohup) stay ignored.

        Args:
            trainer: whose other ranks are told, where Lightning has started them. Lightning sets
                handlers of its own at the start of a fit: call this once it has.
        """
        self._trainer = trainer
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._lost

    def restore(self) -> None:
        """Give the signals back to who had them before."""
        if self._before and sys.unraisablehook == self._lost:
            sys.unraisablehook = self._unraisable
        for number, handler in self._before.items():
            if handler is not None and signal.getsignal(number) == self._handle:
                signal.signal(number, handler)
        self._before = {}

    def wanted(self, trainer: "Trainer") -> bool:
        """Whether any rank has received a signal; every rank asks at the same step."""
        found = self.received is not None
        if trainer.world_size > 1:
            found = trainer.strategy.reduce_boolean_decision(found, all=False)
        if found and self.received is None:
            self.received = int(signal.SIGTERM)
        return found

    def leave(self, where: str = "") -> None:
        """Leave, after a signal.

        Args:
            where: what the run is in the midst of, as "round 2, after 12 of 20 optimizer steps".

        Raises:
            Stopped: with the signal's status.
        """
        number = self.received
        if number is None:
            return
        self.deferred = False
        leads = self._trainer is None or self._trainer.is_global_zero
        words = [f"stopped by {signal.Signals(number).name}{f' in {where}' if where else ''}"]
        if number == getattr(signal, "SIGUSR1", None) and self.requeue and leads:
            words.append(requeue_job())
        told = "; ".join([*words, "the same command goes on from there"]) if leads else ""
        # Lightning ends all ranks, by SIGKILL, once one that it has started ends with an error.
        raise Stopped(number, told, 0 if self._is_child() else None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader's worker: its parent leaves, and ends it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.received is not None:
            if time.monotonic() - self._since > IMPATIENT:
                self._insist(number)
            return
        self.received, self._since = number, time.monotonic()
        self._tell(number)
        if not self.deferred:
            self.leave()
        elif number == signal.SIGINT and not self._is_child():
            os.write(2, PATIENCE)

    def _insist(self, number: int) -> None:
        """Another signal, some time later: the first `Stopped` was lost, or a person waits."""
        if number == signal.SIGINT:
            os._exit(128 + number)
        elif not self.deferred:
            self.leave()

    def _lost(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Python drops what is raised within ``__del__``: the signal is sent once more then."""
        if not isinstance(unraisable.exc_value, Stopped):
            self._unraisable(unraisable)
            return
        self.received = None
        again = threading.Timer(AGAIN, os.kill, (os.getpid(), unraisable.exc_value.number))
        again.daemon = True
        again.start()

    def _tell(self, number: int) -> None:
        """Pass a signal on to the ranks that Lightning has started, or to the one that did."""
        if self._trainer is None:
            return
        if self._is_child():
            os.kill(os.getppid(), number)
        elif self._trainer.strategy.launcher is not None:
            self._trainer.strategy.launcher.kill(number)

    def _is_child(self) -> bool:
        """Whether Lightning has started this process, as another rank of the one above it."""
        cluster = getattr(getattr(self._trainer, "strategy", None), "cluster_environment", None)
        parent = os.environ.get(LEADER) == str(os.getppid())
        return cluster is not None and cluster.local_rank() > 0 and parent


@contextmanager
def stop_signals() -> Iterator[None]:
    """Within, signals raise `Stopped`; an entry point's outermost context."""
    if os.environ.setdefault(LEADER, str(os.getpid())) == str(os.getppid()):
        _end_with(os.getppid())
    signals = StopSignals()
    signals.install()
    try:
        yield
    finally:
        signals.restore()


@functools.cache
def _end_with(leader: int) -> None:
    """End this process soon after the one that started it was killed, of which no signal tells: it
    would wait for it for hours, and keep its GPU from the next start."""

    def watch() -> None:
        while os.getppid() == leader:
            time.sleep(ALONE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def requeue_job() -> str:
    """Put this SLURM job back into the queue; what came of it, in words."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if not job:
        return "not requeued, since SLURM_JOB_ID is not set"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], check=False, capture_output=True, text=True
        )
    except OSError as error:
        return f"job {job} could not be requeued ({error})"
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        return f"job {job} could not be requeued (scontrol: {said or done.returncode})"
    return f"job {job} is requeued"
