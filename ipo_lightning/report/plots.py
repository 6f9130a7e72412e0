"""A run's curves as PNG and SVG files for papers, by matplotlib.

The page has its own charts, which follow the reader's light or dark screen and show values under
the mouse. matplotlib is imported here alone, and only to draw: that takes a third of a second.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from ipo_lightning.report.charts import TRAINING_CHARTS, Series, gains, nested, relabelled, scores
from ipo_lightning.report.charts import shares as shares_of
from ipo_lightning.report.pairing import CRITIC, JUDGE
from ipo_lightning.report.run import Run
from ipo_lightning.storage.store import write_atomically

COLOURS = ("#2563a8", "#b8531b", "#1a7f5f", "#8d4a9e", "#8a6d00", "#55606e")
LOOK: Mapping[str, Any] = {
    "font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9,
    "axes.grid": True, "grid.alpha": 0.3, "legend.frameon": False, "legend.fontsize": 7,
    "lines.markersize": 4, "svg.hashsalt": "ipo_lightning", "svg.fonttype": "none",
    "savefig.dpi": 200,
}  # fmt: skip
"""Of matplotlib. The salt makes equal plots equal files; SVG keeps its text as text."""


class Panel(NamedTuple):
    """One set of axes."""

    title: str
    series: Sequence[Series]
    level: float | None = None
    """Of a dashed horizontal."""


def write_plots(run: Run, folder: Path) -> list[Path]:
    """Draw what the run has figures of; returns the files."""
    return [file for name, panels in figures(run).items() if any(one.series for one in panels)
            for file in draw(panels, folder / name)]  # fmt: skip


def figures(run: Run) -> dict[str, list[Panel]]:
    """Name of a plot -> its panels."""
    training = {one.name: one for one in nested(run.lines, "train")}
    wins = shares_of(run.lines, "win_rate", "win_rate_ci", "win rate")
    return {
        "rounds": [
            Panel("Held-out judge", [scores(run, JUDGE, "judge")]),
            Panel("Training critic", [scores(run, CRITIC, "critic")]),
            Panel("Gain over the base",
                  [gains(run, JUDGE, "judge"), gains(run, CRITIC, "critic")], 0.0),
            Panel("Win rate over the base", [wins], 0.5),
        ],
        "dimensions": [
            Panel("Judge by dimension", nested(run.lines, "eval_dims")),
            Panel("Critic by dimension", nested(run.lines, "dims")),
        ],
        "training": [
            Panel(title, relabelled(training, names), level)
            for title, names, _, level in TRAINING_CHARTS[:4]
        ],
    }  # fmt: skip


def draw(panels: Sequence[Panel], place: Path) -> list[Path]:
    """Draw panels in a row; returns the PNG and the SVG file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [one for one in panels if any(series.marks for series in one.series)]
    if not shown:
        return []
    files = []
    with matplotlib.rc_context(dict(LOOK)):
        figure = Figure(figsize=(2.4 * len(shown), 2.1), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, panel in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
        ):
            fill(axes, panel)
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            files.append(place.with_suffix(f".{kind}"))
            write_atomically(files[-1], buffer.getvalue())
    return files


def fill(axes: Any, panel: Panel) -> None:
    """One line a series, with its intervals, in matplotlib's axes."""
    axes.set_title(verbatim(panel.title))
    axes.set_xlabel("round")
    axes.xaxis.get_major_locator().set_params(integer=True)
    if panel.level is not None:
        axes.axhline(panel.level, color="0.5", linewidth=0.8, linestyle="--")
    for i, one in enumerate(panel.series):
        x, y = [mark.x for mark in one.marks], [mark.y for mark in one.marks]
        colour = COLOURS[i % len(COLOURS)]
        dashes = "-" if i < len(COLOURS) else "--"
        axes.plot(x, y, dashes, marker="o", color=colour, label=verbatim(one.name))
        banded = [mark for mark in one.marks if mark.low is not None]
        bounds = [mark.low for mark in banded], [mark.high for mark in banded]
        place = [mark.x for mark in banded]
        axes.fill_between(place, *bounds, color=colour, alpha=0.15, linewidth=0)
    if len(panel.series) > 1:
        axes.legend()


def verbatim(text: str) -> str:
    """Text that matplotlib does not take for mathematics, on one line, at most 40 characters."""
    flat = " ".join(text.encode(errors="replace").decode().split())
    return (flat if len(flat) <= 40 else flat[:37] + "...").replace("$", "\\$")
