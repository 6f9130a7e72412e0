"""How a command ends: what is wrong in a few lines, which jobs of a sweep failed, a closed pipe."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode

from ipo_lightning.errors import pipe_may_close

FAILED: list[str] = []
"""Jobs of this process's sweep that were refused; the others went on."""
STOPPED: list[str] = []
"""Why guards ended runs of this process."""
SWEEPER, LAUNCHER = "BasicSweeper", "BasicLauncher"
"""Hydra's own, which run all jobs one after the other."""


class JobFailed(CompactHydraException):
    """A job of a sweep was refused; for sweepers that count such jobs, and launchers elsewhere."""


def fail(said: str) -> None:
    """Say what is wrong: of a job of a sweep, that it is that job's, and go on with the others.

    Raises:
        SystemExit: with status 1, outside of a sweep.
        JobFailed: in a sweep of another sweeper or launcher than Hydra's own.
    """
    job = _job()
    print(f"error: {job}: {said}" if job else f"error: {said}", file=sys.stderr)  # noqa: T201
    if not job:
        sys.exit(1)
    launcher = str(HydraConfig.get().launcher._target_)
    if searches() or not launcher.endswith(LAUNCHER):
        raise JobFailed(f"{job}: {said}")
    FAILED.append(job)


def searches() -> bool:
    """Whether this is a job of a sweeper that chooses the settings to try by what jobs reach."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return not str(HydraConfig.get().sweeper._target_).endswith(SWEEPER)


def _job() -> str:
    """Which job of a sweep this is, by its number and by what it has of its own; else ''."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return ""
    given = [word.lower() for word in sys.argv]  # Hydra writes true as True
    own = [word for word in HydraConfig.get().overrides.task if word.lower() not in given]
    return f"job {HydraConfig.get().job.num} ({', '.join(own)})"


@contextmanager
def ended(arguments: Sequence[str]) -> Iterator[None]:
    """Around Hydra's main: a closed pipe ends it quietly, refused jobs of a sweep count, and so do
    runs that guards ended.

    Raises:
        SystemExit: with status 1 where jobs of a sweep were refused, else with 3 where guards
            ended a run.
    """
    flags = {one.partition("=")[0] for one in arguments if one.startswith("-")}
    if flags - {"-m", "--multirun", "-r", "--run"}:  # Hydra may print, and nothing is trained
        _die_of_closed_pipes()
    with pipe_may_close():
        yield
    if FAILED:
        told = f"error: refused: {'; '.join(FAILED)}; the other jobs of the sweep went on"
        print(told, file=sys.stderr)  # noqa: T201
        sys.exit(1)
    if STOPPED:
        sys.exit(3)


def _die_of_closed_pipes() -> None:
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
