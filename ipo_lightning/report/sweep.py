"""Several runs on one page: a table, curves, and the interval between runs that differ by seed."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import torch

from ipo_lightning.errors import InputError
from ipo_lightning.metrics.intervals import Interval, mean_interval
from ipo_lightning.report.charts import Mark, Series, chart, finite, gains, ratios, shares
from ipo_lightning.report.costs import duration, total
from ipo_lightning.report.markup import Html, html_table, join, section, tag
from ipo_lightning.report.page import document, encoded
from ipo_lightning.report.pairing import CRITIC, JUDGE
from ipo_lightning.report.plots import Panel, draw
from ipo_lightning.report.run import Run, read_run
from ipo_lightning.report.summary import markdown_table, plain
from ipo_lightning.report.tables import (
    Row,
    base_gauges,
    gain_of,
    gauges_of,
    interval,
    percent,
    relative,
    setting,
)
from ipo_lightning.report.verdict import best_number, trained
from ipo_lightning.storage.store import write_atomically

PAGE, FOLDER = "comparison.html", "comparison"
OWN = frozenset(("name", "paths", "logger", "callbacks", "task", "until", "dry_run", "report_only",
                 "debug", "accept_version", "requeue", "push_to_hub", "plan", "round",
                 "stages"))  # fmt: skip
"""Settings that change no result."""
MOST = 4  # settings that are told of a run in the table


def write_comparison(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of several runs; returns its path.

    Beside it a folder of the page's name holds the tables in Markdown and the curves as PNG and
    SVG files.

    Args:
        out: by default ``comparison.html`` in the folder that holds the runs.

    Raises:
        InputError: there is no such run, or one is given twice.
    """
    runs = [read_run(one) for one in run_dirs]
    places = [run.path.resolve() for run in runs]
    if len(set(places)) < len(places):
        raise InputError("report: a run is given twice; give each once")
    target = out or Path(os.path.commonpath([place.parent for place in places])) / PAGE
    folder = target.with_suffix("")
    plots = draw([Panel(*one) for one in curves(runs)], folder / "curves")
    write_atomically(folder / "comparison.md", encoded(markdown(runs, plots)))
    write_atomically(target, encoded(page(runs, target.parent)))
    return target


def page(runs: Sequence[Run], folder: Path) -> str:
    """The whole document, to lie in ``folder``."""
    rows = [{**row, "run": link(run, folder)}
            for row, run in zip(run_rows(runs), runs, strict=True)]  # fmt: skip
    seeds = seed_rows(runs)
    figures = [chart(title, series, reference=level) for title, series, level in curves(runs)]
    between = [section("Between seeds", html_table(seeds, "figures level"), note=SEEDS_NOTE)]
    body = tag(
        "main",
        tag("header", tag("p", "ipo_lightning", class_="brand"), tag("h1", f"{len(runs)} runs"),
            tag("p", lead(runs), class_="lead"),
            *(tag("p", text, class_="warning") for text in doubts(runs))),
        section("Runs", html_table(rows, "figures level runs", label="runs"), note=RUNS_NOTE),
        *(between if seeds else []),
        section("Curves", tag("div", *figures, class_="charts wide"), note=CURVES_NOTE),
    )  # fmt: skip
    return document(f"{len(runs)} runs - ipo_lightning", body, {})


def link(run: Run, folder: Path) -> Html:
    """A run's name, leading to its own page where there is one."""
    file = run.path / "report.html"
    if not file.exists():
        return join([run.name])
    way = Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()
    return tag("a", run.name, href=f"./{quote(way)}")


def lead(runs: Sequence[Run]) -> str:
    """Which run is best by the lower end of the judge's gain."""
    found = [(low, run, line) for run in runs if (line := best_line(run)) is not None
             if (low := finite((line.get("gain") or {}).get("low"))) is not None]  # fmt: skip
    if not found:
        return "No run has a round that the held-out judge compared with the base model."
    _, run, line = max(found, key=lambda one: one[0])
    return (f"Best by the lower end of the judge's gain over the base: {run.name}, round "
            f"{line['round']}, {gain_of(line)}.")  # fmt: skip


def doubts(runs: Sequence[Run]) -> list[str]:
    """Why the runs' figures may not be comparable."""
    prompts = {frozenset((row.get("prompt"), row.get("candidate")) for one in run.rounds[:1]
                         for row in one.evaluation) for run in runs}  # fmt: skip
    judges = {str(dict(flat(run.config.get("eval_critic")))) for run in runs}
    said = []
    if len(prompts) > 1:
        said.append("The runs were evaluated on different prompts or numbers of videos: "
                    "differences between them may be the prompts'.")  # fmt: skip
    if len(judges) > 1:
        said.append("The runs have different judges: their gains are in different units.")
    return said


def best_line(run: Run) -> Row | None:
    """The line of the best round, or of the last where none is better than the base."""
    lines = trained(run.lines)
    best = best_number(run.lines)
    return next((line for line in lines if line["round"] == best), lines[-1] if lines else None)


def run_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row a run: heading -> cell."""
    own = own_settings(runs)
    return [run_row(run, settings) for run, settings in zip(runs, own, strict=True)]


def run_row(run: Run, settings: Mapping[str, Any]) -> dict[str, str]:
    """What a run is, and what it came to."""
    line = best_line(run) or {}
    base, gauges = base_gauges(run.lines), gauges_of(line)
    best = best_number(run.lines)
    told = [f"{key}={value}" for key, value in settings.items()]
    return {
        "run": run.name,
        "settings": ", ".join([*told[:MOST], *(["..."] if len(told) > MOST else [])]) or "-",
        "rounds": str(len(trained(run.lines))),
        "best": "-" if best is None else "base" if best == 0 else str(best),
        "gain": gain_of(line),
        "win rate": interval(line.get("win_rate"), line.get("win_rate_ci")),
        "diversity": percent(relative(gauges, base, "diversity")),
        "drift": percent(relative(gauges, base, "real_error")),
        "alarms": str(sum(len(one.get("guards") or ()) for one in run.lines)),
        "time": duration(total(run).seconds),
    }


def own_settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings of each run that most runs do not share, by full key, choices of parts first."""
    configs = [settings(run) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    counts = {key: Counter(str(config.get(key)) for config in configs) for key in keys}
    found = []
    for config in configs:
        own = [key for key in config if 2 * counts[key][str(config[key])] <= len(runs)
               or key == "seed" and len(counts[key]) > 1]  # fmt: skip
        own.sort(key=lambda key: (key != "seed", not key.endswith("_target_")))
        found.append({key.removesuffix("._target_"): told(config[key]) for key in own})
    return found


def told(value: Any) -> Any:
    """A setting's value; of a dotted name its last part."""
    return value.rpartition(".")[2] if isinstance(value, str) else value


def settings(run: Run) -> dict[str, Any]:
    """The settings that determine a run's results, by full key."""
    return dict(flat({key: value for key, value in run.config.items() if key not in OWN}))


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and value of every setting."""
    if isinstance(value, Mapping) and value:
        for name, one in value.items():
            yield from flat(one, f"{key}.{name}".lstrip("."))
    else:
        yield key, value


class Seeds(NamedTuple):
    """Runs that differ by their seed alone, at the last round that all of them have."""

    runs: list[Run]
    round: int

    def between(self, key: str) -> Interval:
        """Mean of a number of their lines, with its 95 % interval over seeds."""
        lines = (line for run in self.runs for line in run.lines if line["round"] == self.round)
        values = [value for line in lines if (value := finite(setting(line, key))) is not None]
        return mean_interval(torch.tensor(values, dtype=torch.float64), torch.arange(len(values)))


def seeds_of(runs: Sequence[Run]) -> list[Seeds]:
    """The groups of two runs or more that differ by their seed alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        shared = {key: value for key, value in settings(run).items() if key != "seed"}
        if run.config and trained(run.lines):
            groups.setdefault(repr(sorted(shared.items())), []).append(run)
    return [Seeds(group, min(run.lines[-1]["round"] for run in group))
            for group in groups.values() if len(group) > 1]  # fmt: skip


def seed_rows(runs: Sequence[Run]) -> list[dict[str, str]]:
    """One row a group of seeds: heading -> cell."""
    rows = []
    for group in seeds_of(runs):
        gain, rate = group.between("gain.mean"), group.between("win_rate")
        rows.append({
            "runs": ", ".join(run.name for run in group.runs),
            "seeds": str(len(group.runs)),
            "round": str(group.round),
            "gain": interval(gain.value, gain[1:], "+.3f"),
            "win rate": interval(rate.value, (max(rate.low, 0.0), min(rate.high, 1.0))),
        })  # fmt: skip
    return rows


def curves(runs: Sequence[Run]) -> list[tuple[str, list[Series], float | None]]:
    """Title, a line a run, and the level of no change."""
    return [
        ("Gain, judge", [gains(run, JUDGE, run.name) for run in runs], 0.0),
        ("Win rate", [shares(run.lines, "win_rate", "win_rate_ci", run.name) for run in runs], 0.5),
        ("Gain, critic", [gains(run, CRITIC, run.name) for run in runs], 0.0),
        ("Diversity", [ratio(run, "diversity") for run in runs], 1.0),
        ("Error on real clips", [ratio(run, "real_error") for run in runs], 1.0),
    ]


def ratio(run: Run, name: str) -> Series:
    """A gauge over the base's."""
    found: dict[str, list[Mark]] = {one.name: one.marks for one in ratios(run.lines)}
    return Series(run.name, found.get(name, []))


def markdown(runs: Sequence[Run], plots: Sequence[Path]) -> str:
    """The verdict and the tables, for a README or a paper's notes."""
    pictures = [f"![{file.stem}]({file.name})" for file in plots if file.suffix == ".png"]
    sentences = [plain(text) for text in (lead(runs), *doubts(runs))]
    tables = [markdown_table(run_rows(runs)), markdown_table(seed_rows(runs))]
    parts = [f"# {len(runs)} runs", *sentences, *tables, *pictures]
    return "\n\n".join(part for part in parts if part) + "\n"


RUNS_NOTE = (
    "Figures of each run's best round by the judge; of the last round where none is better than "
    "the base. Settings: those that most runs do not share. Intervals are over a run's prompts."
)
SEEDS_NOTE = (
    "Runs that differ by their seed alone, at the last round that all have. The intervals are over "
    "seeds (Student's): what another seed would give."
)
CURVES_NOTE = "Over rounds; bands are 95 % intervals over a run's prompts."
