"""Line charts over rounds as SVG, and the charts of a run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ipo_lightning.report.markup import Html, tag
from ipo_lightning.report.pairing import CRITIC, JUDGE, mean_change, paired, score_interval
from ipo_lightning.report.run import Run
from ipo_lightning.report.tables import Row, base_gauges, finite, gauges_of, number, relative

Z95 = 1.96  # half-width of a 95 % normal interval, in standard errors


class Mark(NamedTuple):
    """A value of a series, with the bounds of its interval if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """A named line of a chart."""

    name: str
    marks: list[Mark]


class Frame(NamedTuple):
    """Maps data to the pixels of a chart."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel position of a point of the data."""
        across = (x - self.x_low) / (self.x_high - self.x_low)
        up = (y - self.y_low) / (self.y_high - self.y_low)
        left, top, width, height = PLOT
        return round(left + across * width, 1), round(top + (1 - up) * height, 1)


CHART = (340, 200)  # px, width and height
PLOT = (54, 12, 274, 158)  # px, left, top, width, height of the plotting area
COLOURS = 6  # classes c0 .. c5 in the style sheet


def chart(
    title: str,
    series: Sequence[Series],
    *,
    note: str = "",
    reference: float | None = None,
    limits: tuple[float, float] | None = None,
    best: float | None = None,
) -> Html:
    """A line chart over rounds, with error bands.

    Args:
        reference: draws a dashed horizontal. best: the round whose dots are filled.
    """
    shown = [one for one in series if one.marks]
    caption = [tag("strong", title), tag("span", note, class_="note")]
    if not shown:
        empty = tag("p", "not measured yet", class_="empty")
        return tag("figure", tag("figcaption", *caption), empty, class_="chart")
    frame = fit(shown, reference, limits)
    body = [axes(frame)]
    if reference is not None:
        body.append(horizontal(frame, reference, "reference"))
    body += [line(frame, one, look(i), best=best) for i, one in enumerate(shown)]
    size = "0 0 {} {}".format(*CHART)
    picture = tag("svg", *body, viewBox=size, role="img", aria_label=spoken(title, shown))
    key = legend(shown) if len(shown) > 1 else Html("")
    return tag("figure", tag("figcaption", *caption), picture, key, class_="chart")


def look(place: int) -> str:
    """Classes of the line at a place: colours first, then the same dashed, then dotted."""
    turn, own = divmod(place, COLOURS)
    return f"c{own}{('', ' dashed', ' dotted')[min(turn, 2)]}"


def fit(
    series: Sequence[Series], reference: float | None, limits: tuple[float, float] | None
) -> Frame:
    """The range of the data with a margin; it is never empty."""
    marks = [mark for one in series for mark in one.marks]
    xs = [mark.x for mark in marks]
    x_low, x_high = min(0.0, *xs, 0.0), max(1.0, *xs, 1.0)
    if limits:
        return Frame(x_low, x_high, *limits)
    ys = [y for mark in marks for y in (mark.y, mark.low, mark.high) if y is not None]
    ys += [] if reference is None else [reference]
    low, high = min(ys), max(ys)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Frame(x_low, x_high, low - margin, high + margin)


def ticks(low: float, high: float, at_most: int = 5) -> list[float]:
    """Round values between ``low`` and ``high``, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / at_most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def axes(frame: Frame, *, whole: bool = True) -> Html:
    """Grid, labels of the values, and below of the rounds; not ``whole``: of other numbers."""
    values = ticks(frame.y_low, frame.y_high)
    lines = [horizontal(frame, value, "grid") for value in values]
    labels = [
        tag("text", f"{value:g}", x=PLOT[0] - 6, y=frame.at(0, value)[1] + 3.5, class_="y")
        for value in values
    ]
    below = [x for x in ticks(frame.x_low, frame.x_high, 8) if not whole or x == int(x)]
    bottom = PLOT[1] + PLOT[3] + 17
    labels += [
        tag("text", f"{x:g}", x=frame.at(x, frame.y_low)[0], y=bottom, class_="x") for x in below
    ]
    return tag("g", *lines, *labels, class_="axes")


def horizontal(frame: Frame, value: float, class_: str) -> Html:
    """A horizontal line across the plot at a value."""
    y = frame.at(0, value)[1]
    return tag("line", x1=PLOT[0], x2=PLOT[0] + PLOT[2], y1=y, y2=y, class_=class_)


def line(
    frame: Frame, series: Series, colour: str, along: str = "round", best: float | None = None
) -> Html:
    """One series: band, line, and a dot a round with its value as a tooltip.

    Args:
        along: name of the horizontal axis. best: where the dot is filled.
    """
    parts = []
    banded = [(m.x, m.low, m.high) for m in series.marks if m.low is not None is not m.high]
    if len(banded) > 1:
        upper = [frame.at(x, high) for x, _, high in banded if high is not None]
        lower = [frame.at(x, low) for x, low, _ in reversed(banded) if low is not None]
        parts.append(tag("polygon", points=path(upper + lower), class_="band"))
    parts += [whisker(frame, mark) for mark in series.marks]
    parts.append(tag("polyline", points=path([frame.at(m.x, m.y) for m in series.marks])))
    for mark in series.marks:
        x, y = frame.at(mark.x, mark.y)
        text = f"{series.name}, {along} {mark.x:g}: {number(mark.y)}"
        filled = {"class_": "best"} if mark.x == best else {}
        parts.append(tag("circle", tag("title", text), cx=x, cy=y, r=3, **filled))
    return tag("g", *parts, class_=f"series {colour}")


def whisker(frame: Frame, mark: Mark) -> Html:
    """The interval of a value as a thin vertical line; nothing where there is none."""
    if mark.low is None or mark.high is None:
        return Html("")
    (x, top), (_, bottom) = frame.at(mark.x, mark.high), frame.at(mark.x, mark.low)
    return tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="whisker")


def path(points: Iterable[tuple[float, float]]) -> str:
    """Pixel positions in SVG's notation."""
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def legend(series: Sequence[Series]) -> Html:
    """The names of the lines with their colours."""
    entries = (tag("span", tag("i", class_=look(i)), one.name) for i, one in enumerate(series))
    return tag("div", *entries, class_="legend")


def spoken(title: str, series: Sequence[Series]) -> str:
    """A chart in words, for screen readers."""
    lines = (f"{s.name} from {number(s.marks[0].y)} to {number(s.marks[-1].y)}" for s in series)
    return f"{title}: " + "; ".join(lines)


def scores(run: Run, column: str, name: str) -> Series:
    """A critic's mean score over rounds with its 95 % interval.

    From the evaluation's videos, or where a round's are not there from its line.
    """
    files = {one.number: one for one in run.rounds}
    marks = []
    for line_ in run.lines:
        found = score_interval(files[line_["round"]], column)
        mean, error = finite(line_.get(column)), finite(line_.get(f"{column}_se"))
        if mean is not None:
            low, high = finite(found.low), finite(found.high)
            if low is None and error is not None:
                low, high = mean - Z95 * error, mean + Z95 * error
            marks.append(Mark(float(line_["round"]), mean, low, high))
    return Series(name, marks)


def gains(run: Run, column: str, name: str) -> Series:
    """A critic's mean change against the base over rounds, with its 95 % interval."""
    marks = []
    for line_ in run.lines:
        found = mean_change(paired(run, line_["round"]), lambda one: one.change(column))
        if finite(found.value) is not None:
            bounds = finite(found.low), finite(found.high)
            marks.append(Mark(float(line_["round"]), found.value, *bounds))
    return Series(name, marks)


def shares(lines: Sequence[Row], value: str, bounds: str, name: str) -> Series:
    """A number of each line with its interval, such as the win rate."""
    marks = []
    for one in lines:
        share = finite(one.get(value))
        if share is not None:
            low, high = (finite(b) for b in (one.get(bounds) or (None, None)))
            marks.append(Mark(float(one["round"]), share, low, high))
    return Series(name, marks)


def nested(lines: Sequence[Row], group: str) -> list[Series]:
    """One series for every name that occurs in ``line[group]``."""
    names = sorted({name for one in lines for name in one.get(group) or {}})
    return [
        Series(name, marks_of((one, (one.get(group) or {}).get(name)) for one in lines))
        for name in names
    ]


def ratios(lines: Sequence[Row]) -> list[Series]:
    """Each gauge divided by its value in round 0, if that is not zero; those of real clips, which
    only round 0 has, are left out."""
    base = base_gauges(lines)
    later = {name for one in lines[1:] for name in gauges_of(one)} or set(base)
    return [
        Series(name, marks_of((one, relative(gauges_of(one), base, name)) for one in lines))
        for name in sorted(later & base.keys())
        if finite(base[name])
    ]


def gauges_note(lines: Sequence[Row]) -> str:
    """What the gauges are relative to, and how diverse real clips are."""
    base = base_gauges(lines)
    real = relative({"diversity": base.get("diversity_real")}, base, "diversity")
    return "relative to the base" + (f"; diversity of real clips {real:.2f}" if real else "")


def marks_of(values: Iterable[tuple[Row, Any]]) -> list[Mark]:
    """Marks of (line, value), without the missing ones."""
    known = ((one, finite(value)) for one, value in values)
    return [Mark(float(one["round"]), value) for one, value in known if value is not None]


def charts(run: Run, best: int | None) -> Html:
    """How the policy fared round by round: judge and critic, wins, gauges."""
    lines = run.lines
    agreed = [{"round": one["round"], **one["agreement"]} for one in lines if one.get("agreement")]
    figures = [
        chart("Held-out judge", [scores(run, JUDGE, "judge")], note="mean score, 95 % band",
              best=best),
        chart("Training critic", [scores(run, CRITIC, "critic")], note="mean score, 95 % band",
              best=best),
        chart("Gain over the base", [gains(run, JUDGE, "judge"), gains(run, CRITIC, "critic")],
              note="same prompts and seeds, each in its own units", reference=0.0, best=best),
        chart("Win rate", [shares(lines, "win_rate", "win_rate_ci", "win rate")], reference=0.5,
              limits=(0, 1), note="against the base, by the judge", best=best),
        chart("Gauges", ratios(lines), note=gauges_note(lines), reference=1.0),
    ]  # fmt: skip
    if agreed:
        alike = shares(agreed, "share", "ci", "agreement")
        figures.append(chart("Critic and judge agree", [alike], reference=0.5, limits=(0, 1),
                             note="on which of two videos of a prompt is better"))  # fmt: skip
    return tag("div", *figures, class_="charts")


def dimension_charts(lines: Sequence[Row]) -> Html:
    """Scores by dimension, of the judge and of the critic."""
    groups = (("Held-out by dimension", "eval_dims"), ("Critic by dimension", "dims"))
    figures = [chart(title, nested(lines, group)) for title, group in groups
               if any(one.get(group) for one in lines)]  # fmt: skip
    return tag("div", *figures, class_="charts") if figures else Html("")


def training_charts(lines: Sequence[Row]) -> Html:
    """The health of the training; nothing where no round has been trained."""
    training = {one.name: one for one in nested(lines, "train")}
    figures = [
        chart(title, found, note=note, reference=reference)
        for title, names, note, reference in TRAINING_CHARTS
        if (found := list(relabelled(training, names)))
    ]
    return tag("div", *figures, class_="charts") if figures else Html("")


def relabelled(found: Mapping[str, Series], names: Mapping[str, str]) -> list[Series]:
    """The series that exist, with new labels (label -> name)."""
    there = ((label, found[name]) for label, name in names.items() if name in found)
    return [one._replace(name=label) for label, one in there]


QUARTERS = {f"quarter {i}": f"margin_q{i}" for i in (1, 2, 3, 4)}

TRAINING_CHARTS: tuple[tuple[str, Mapping[str, str], str, float | None], ...] = (
    ("Training loss", {"loss": "loss"}, "", None),
    ("Training accuracy", {"accuracy": "accuracy"}, "a tie counts half", 0.5),
    ("Training margin", {"margin": "margin"}, "implicit reward, winner minus loser", 0.0),
    (
        "Errors against the reference",
        {"winner": "error_win_change", "loser": "error_lose_change"},
        "policy minus reference; winner above 0: it unlearns",
        0.0,
    ),
    ("Drift", {"drift": "drift"}, "mean change of error on the reference's own videos", 0.0),
    ("Margin by timestep", QUARTERS, "cleanest quarter first", 0.0),
    ("Saturated pairs", {"saturated": "saturated"}, "share of pairs with nearly no gradient", None),
    ("Gradient norm", {"gradient norm": "gradient_norm"}, "before clipping", None),
)
