"""Draw what runs said of themselves as one SVG: a column a run, a row a figure.

python benchmarks/curves.py curves.svg outputs/good "outputs/other=other, learning rate x 30"

Dots are the means of rounds.jsonl, a round each: at the round's end what the evaluation measured,
in its middle what training did. Lines come of the TensorBoard events: means of a few updates each
(give `trainer.log_every_n_steps=1` to the run to have every update in them). What follows a `=` is
the column's heading, else it is the folder's name.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ipo_lightning.report.charts import path, ticks
from ipo_lightning.report.markup import Html, tag

Point = tuple[float, float]


class Line(NamedTuple):
    """One line of a panel."""

    label: str
    key: str  # of the event without "train/", and of the round's training health
    colour: int = 0


class Figure(NamedTuple):
    """A row of panels."""

    title: str
    note: str
    lines: tuple[Line, ...]
    level: float | None = None  # a dashed horizontal
    floor: float | None = None  # the scale reaches at least from here
    ceiling: float | None = None  # to here


class Run(NamedTuple):
    """What a run left."""

    heading: str
    rounds: list[dict[str, Any]]  # the lines of rounds.jsonl
    events: dict[str, list[Point]]  # by tag, (update, value)
    optimizer_steps: int  # of a round


class Panel(NamedTuple):
    """The scales of a panel and where it stands."""

    left: float
    top: float
    x_high: float
    low: float
    high: float

    def at(self, x: float, y: float) -> Point:
        """Pixel position of a point of the data, held within the panel."""
        across = x / self.x_high
        up = min(max((y - self.low) / (self.high - self.low), 0.0), 1.0)
        return round(self.left + across * WIDTH, 1), round(self.top + (1 - up) * HEIGHT, 1)


JUDGE, REAL = "judge", "real_error"
QUARTERS = tuple(Line(f"q{i}", f"margin_q{i}", i - 1) for i in (1, 2, 3, 4))
FIGURES = (
    Figure("Held-out judge", "score of a round's policy", (Line("", JUDGE),)),
    Figure("Real error", "over the base's", (Line("", REAL),), 1.0),
    Figure("Accuracy", "share of margins above 0", (Line("", "accuracy"),), 0.5, 0.4, 1.0),
    Figure("Margin", "winner's gain minus loser's", (Line("", "margin"),), 0.0),
    Figure(
        "Change of error",
        "policy minus reference",
        (Line("winner", "error_win_change"), Line("loser", "error_lose_change", 1)),
        0.0,
    ),
    Figure("Drift", "mean of the two changes", (Line("", "drift"),), 0.0),
    Figure("Saturated", "share that hardly pulls", (Line("", "saturated"),), None, 0.0, 1.0),
    Figure("Gradient norm", "before clipping", (Line("", "gradient_norm"),), None, 0.0),
    Figure("Margin by timestep", "q1 cleanest, q4 noisiest", QUARTERS, 0.0),
)

WIDTH, HEIGHT = 176, 92  # px of a panel
GAP, SIDE, HEAD, CAPTION = 56, 128, 62, 34  # px between columns, left and above; between rows
BINS = 16  # points of a line a round, at most
OWN_SCALE = 6.0  # a row whose widest range is so many times its narrowest has a scale a panel

STYLE = """
.paper{fill:#fbfbf9}.title{fill:#1d2127;font-weight:600}text{fill:#5a6370}
.frame{fill:none;stroke:#c9cdc8}.grid{stroke:#e2e4e0}.level{stroke:#5a6370;stroke-dasharray:4 4}
.s0{stroke:#2563a8}.s1{stroke:#b8531b}.s2{stroke:#1a7f5f}.s3{stroke:#8d4a9e}
.d0{fill:#2563a8}.d1{fill:#b8531b}.d2{fill:#1a7f5f}.d3{fill:#8d4a9e}
polyline{fill:none;stroke-width:1.4;stroke-linejoin:round}
@media (prefers-color-scheme:dark){
.paper{fill:#15181c}.title{fill:#e7e9ec}text{fill:#a3acb8}
.frame{stroke:#4a525c}.grid{stroke:#31373f}.level{stroke:#a3acb8}
.s0{stroke:#79b0ee}.s1{stroke:#f0a070}.s2{stroke:#63cba5}.s3{stroke:#cf9be0}
.d0{fill:#79b0ee}.d1{fill:#f0a070}.d2{fill:#63cba5}.d3{fill:#cf9be0}}
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the SVG file to write")
    parser.add_argument("runs", nargs="+", metavar="RUN[=HEADING]")
    options = parser.parse_args()
    runs = []
    for argument in options.runs:
        folder, _, heading = argument.partition("=")
        if not (Path(folder) / "config.yaml").is_file():
            parser.error(f"{folder} is no run: it has no config.yaml")
        runs.append(read(Path(folder), heading))
    options.out.write_text(picture(runs))
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


# --- What a run left -----------------------------------------------------------------------------


def read(folder: Path, heading: str) -> Run:
    """A run's rounds and events, finished or not."""
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    table = folder / "rounds.jsonl"
    lines = table.read_text().splitlines() if table.is_file() else []
    rounds = [json.loads(line) for line in lines]
    return Run(
        heading or folder.name, rounds, events(folder), int(settings["data"]["optimizer_steps"])
    )


def events(folder: Path) -> dict[str, list[Point]]:
    """Scalars of training by tag; of an update that was made twice, the later."""
    found: dict[str, dict[int, float]] = {}
    for place in sorted({file.parent for file in folder.rglob("events.out.tfevents.*")}):
        log = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
        for name in log.Tags()["scalars"]:
            if name.startswith("train/"):
                values = found.setdefault(name.removeprefix("train/"), {})
                values |= {event.step + 1: event.value for event in log.Scalars(name)}
    return {name: sorted(values.items()) for name, values in found.items()}


def dots(run: Run, key: str) -> list[Point]:
    """(update, value) of each round."""
    if key in (JUDGE, REAL):
        return [
            (one["round"] * run.optimizer_steps, evaluated(run, one, key)) for one in run.rounds
        ]
    return [
        ((one["round"] - 0.5) * run.optimizer_steps, one["train"][key])
        for one in run.rounds
        if key in (one.get("train") or {})
    ]


def evaluated(run: Run, line: Mapping[str, Any], key: str) -> float:
    """What the evaluation of a round measured; NaN where it did not."""
    if key == JUDGE:
        return line.get("eval_score") or math.nan
    here, base = (one["gauges"].get(REAL) or math.nan for one in (line, run.rounds[0]))
    return here / base


def curve(run: Run, key: str) -> list[list[Point]]:
    """A line a round: values of its updates, or means of neighbours where there are many."""
    width = run.optimizer_steps / BINS
    rounds: dict[int, dict[int, list[Point]]] = {}
    for update, value in run.events.get(key, []):
        number = (update - 1) // run.optimizer_steps
        rounds.setdefault(int(number), {}).setdefault(int((update - 1) // width), []).append(
            (update, value)
        )
    return [[middle(bin_) for bin_ in bins.values()] for _, bins in sorted(rounds.items())]


def middle(points: Sequence[Point]) -> Point:
    """The mean of some points."""
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


# --- The picture ---------------------------------------------------------------------------------


def picture(runs: Sequence[Run]) -> str:
    """The SVG file."""
    width = SIDE + len(runs) * (WIDTH + GAP)
    height = HEAD + len(FIGURES) * (HEIGHT + CAPTION) + 8
    body = [tag("style", Html(STYLE)), tag("rect", width=width, height=height, class_="paper")]
    for column, run in enumerate(runs):
        body += heading(run.heading, column)
    for number, figure in enumerate(FIGURES):
        top = HEAD + number * (HEIGHT + CAPTION)
        body += caption(figure, top)
        for column, (run, scale) in enumerate(zip(runs, scales(figure, runs), strict=True)):
            x_high = run.optimizer_steps * max(len(run.rounds) - 1, 1)
            panel = Panel(SIDE + column * (WIDTH + GAP), top, x_high, *scale)
            body += drawn(panel, figure, run, last=number == len(FIGURES) - 1)
    attributes = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": f"0 0 {width} {height}",
        "font_family": "system-ui, Segoe UI, Helvetica, Arial, sans-serif",
        "font_size": 11,
        "role": "img",
        "aria_label": "Curves of " + "; ".join(run.heading for run in runs),
    }
    return tag("svg", *body, **attributes).replace("><", ">\n<") + "\n"


def heading(text: str, column: int) -> list[Html]:
    """A column's heading, a line for each part between bars."""
    x = SIDE + column * (WIDTH + GAP)
    parts = [part.strip() for part in text.split("|")]
    return [
        tag("text", part, x=x, y=22 + 15 * i, font_size=12.5 if i == 0 else 11,
            class_="title" if i == 0 else "note")
        for i, part in enumerate(parts)
    ]  # fmt: skip


def caption(figure: Figure, top: float) -> list[Html]:
    """A row's name, what it is, and its lines' colours, left of the panels."""
    texts = [tag("text", figure.title, x=10, y=top + 12, font_size=12, class_="title")]
    texts += [
        tag("text", part, x=10, y=top + 27 + 13 * i, font_size=10)
        for i, part in enumerate(wrapped(figure.note, 17))
    ]
    y = top + 32 + 13 * len(wrapped(figure.note, 17))
    for i, line in enumerate(one for one in figure.lines if one.label):
        x, line_y = 10 + 40 * (i % 2), y + 14 * (i // 2)
        if len(figure.lines) == 2:
            x, line_y = 10, y + 14 * i
        texts.append(tag("rect", x=x, y=line_y - 3, width=10, height=3, class_=f"d{line.colour}"))
        texts.append(tag("text", line.label, x=x + 14, y=line_y + 2, font_size=10))
    return texts


def wrapped(text: str, width: int) -> list[str]:
    """Lines of whole words."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def scales(figure: Figure, runs: Sequence[Run]) -> list[tuple[float, float]]:
    """A range a run: all the same, unless that would flatten one of them."""
    own = [extent(figure, [run]) for run in runs]
    spans = [high - low for low, high in own]
    return own if max(spans) > OWN_SCALE * min(spans) else [extent(figure, runs)] * len(runs)


def extent(figure: Figure, runs: Sequence[Run]) -> tuple[float, float]:
    """The range of a figure's values, with air around it and never empty."""
    known = [
        value
        for run in runs
        for line in figure.lines
        for _, value in [*dots(run, line.key), *(p for part in curve(run, line.key) for p in part)]
        if math.isfinite(value)
    ]
    known += [bound for bound in (figure.level, figure.floor, figure.ceiling) if bound is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if low == figure.floor else low - air), high + air


def drawn(panel: Panel, figure: Figure, run: Run, *, last: bool) -> list[Html]:
    """A panel: its axes and its lines."""
    parts = [*axes(panel, run, named=last)]
    if figure.level is not None:
        parts.append(across(panel, figure.level, "level"))
    for line in figure.lines:
        parts += [
            tag(
                "polyline",
                points=path(panel.at(*p) for p in finite(part)),
                class_=f"s{line.colour}",
            )
            for part in curve(run, line.key)
        ]
        means = [panel.at(*point) for point in finite(dots(run, line.key))]
        if line.key not in run.events and len(means) > 1:
            parts.append(tag("polyline", points=path(means), class_=f"s{line.colour}"))
        parts += [tag("circle", cx=x, cy=y, r=2.6, class_=f"d{line.colour}") for x, y in means]
    return parts


def finite(points: Iterable[Point]) -> list[Point]:
    """Those whose value is a number."""
    return [point for point in points if math.isfinite(point[1])]


def axes(panel: Panel, run: Run, *, named: bool) -> list[Html]:
    """Frame, grid with values, and the rounds' ends, which the last row names."""
    parts: list[Html] = []
    for value in ticks(panel.low, panel.high, 4):
        parts.append(across(panel, value, "grid"))
        y = panel.at(0, value)[1] + 3.5
        parts.append(
            tag("text", f"{value:g}", x=panel.left - 5, y=y, text_anchor="end", font_size=9.5)
        )
    bottom = panel.top + HEIGHT
    for number in range(1, len(run.rounds)):
        x = panel.at(number * run.optimizer_steps, panel.low)[0]
        parts.append(tag("line", x1=x, x2=x, y1=panel.top, y2=bottom, class_="grid"))
        if named:
            name = panel.at((number - 0.5) * run.optimizer_steps, panel.low)[0]
            parts.append(
                tag("text", f"round {number}", x=name, y=bottom + 15, text_anchor="middle")
            )
    frame = tag("rect", x=panel.left, y=panel.top, width=WIDTH, height=HEIGHT, class_="frame")
    return [*parts, frame]


def across(panel: Panel, value: float, class_: str) -> Html:
    """A horizontal line."""
    y = panel.at(0, value)[1]
    return tag("line", x1=panel.left, x2=panel.left + WIDTH, y1=y, y2=y, class_=class_)


if __name__ == "__main__":
    main()
