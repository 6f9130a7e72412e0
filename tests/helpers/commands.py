"""A program's own command line, in a process forked from one that has imported what it needs."""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory

from app.entry import REPO
from tests.helpers.ranks import SERVER


def command(program: str, *words: str) -> CompletedProcess[str]:
    """``python PROGRAM WORDS...`` in the repository, or ``python -m`` of a module's name."""
    with TemporaryDirectory() as folder:
        process = SERVER.Process(target=run, args=(folder, dict(os.environ), program, words))
        process.start()
        process.join()
        assert process.exitcode is not None
        said, told = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
    return CompletedProcess([program, *words], process.exitcode, said, told)


def run(folder: str, environment: Mapping[str, str], program: str, words: Sequence[str]) -> None:
    """In a forked process: the command, which adds what it says to two files of a folder."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{folder}/{name}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(file, number)
        setattr(sys, name, open(number, "w", closefd=False, buffering=1))  # noqa: SIM115
    os.environ.update(environment)
    os.chdir(REPO)
    sys.argv = [program, *words]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
