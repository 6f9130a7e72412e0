"""The report of a run, made anew after each round: a run in progress has a page to look at."""

import warnings
from pathlib import Path

import lightning as L

from ipo_lightning.errors import cause_of
from ipo_lightning.report import write_report
from ipo_lightning.settings import checked


@checked
class ReportWriter(L.Callback):
    """Writes ``report.html`` and the folder ``report`` after each round.

    The iteration callback calls :meth:`on_round_end`, since Lightning knows no rounds.

    Args:
        plots: also draw PNG and SVG files for papers, which takes some seconds.
    """

    def __init__(self, plots: bool = False) -> None:
        self.plots = plots

    def on_round_end(self, trainer: L.Trainer, round_number: int, round_dir: Path) -> None:
        """Write the page; a page that cannot be made is told of and ends no run."""
        try:
            write_report(round_dir.parent, plots=self.plots)
        except Exception as error:  # the command makes it again at its end, and then says all
            warnings.warn(f"no report after round {round_number}: {cause_of(error)}", stacklevel=2)
