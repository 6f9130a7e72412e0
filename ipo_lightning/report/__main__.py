"""Command line: make a run's report anew, or compare runs on one page.

python -m ipo_lightning.report outputs/NAME
python -m ipo_lightning.report outputs/A outputs/B outputs/C out=comparison.html
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ipo_lightning.errors import InputError, pipe_may_close
from ipo_lightning.report import write_report
from ipo_lightning.report.sweep import write_comparison
from ipo_lightning.storage.layout import RunDir


def written(words: Sequence[str]) -> Path:
    """Write the page of one run, or of several; returns it. Folders without a run are passed over.

    Raises:
        InputError: there is no such run, or the page cannot be written.
    """
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    runs = [Path(word) for word in words if not word.startswith("out=")]
    out = Path(outs[-1]) if outs else None
    if not runs:
        raise InputError("report: give the folder of a run, or of several to compare them")
    if out is not None and out.suffix != ".html":
        raise InputError(f"out={out}: give an .html file")
    if len(runs) == 1:
        return write_report(runs[0], out, plots=True)
    return write_comparison([one for one in runs if holds_run(one)] or runs, out)


def holds_run(folder: Path) -> bool:
    """Whether there is a run in a folder: ``outputs/*`` names the store as well."""
    run = RunDir(folder)
    return not folder.exists() or run.config_file.exists() or run.rounds_file.exists()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ipo_lightning.report",
        description="Make a run's report anew; given several runs, compare them on one page.",
        epilog="out=FILE.html: default RUN/report.html, or comparison.html beside the runs",
    )
    parser.add_argument("words", nargs="+", metavar="RUN")
    try:
        print(f"report: {written(parser.parse_args(arguments).words)}")  # noqa: T201
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    with pipe_may_close():
        sys.exit(main())
