"""The whole page: its parts in order."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from ipo_lightning.report.charts import charts
from ipo_lightning.report.labels import round_part
from ipo_lightning.report.markup import Html, html_table, section, tag
from ipo_lightning.report.parts import choices, comparison, guards, reproduce, summary
from ipo_lightning.report.people import people
from ipo_lightning.report.run import Run, find_videos, read_run
from ipo_lightning.report.tables import rounds_rows
from ipo_lightning.report.videos import Videos
from ipo_lightning.storage.store import write_atomically


def write_report(
    run_dir: str | Path,
    out: Path | None = None,
    *,
    videos: Callable[[str], Path] | None = None,
    command: str | None = None,
) -> Path:
    """Write a run's page; returns its path, ``run_dir/report.html`` by default.

    Args:
        videos: name of an mp4 (sha256) -> its file; by default in the run's store.
        command: the command that made the run.
    """
    run = read_run(Path(run_dir))
    find = videos or find_videos(run.path)
    target = out or run.path / "report.html"
    write_atomically(target, page(run, Videos(find), command).encode())
    return target


def page(run: Run, videos: Videos, command: str | None) -> str:
    """The whole document."""
    by_number = {one["round"]: one for one in run.lines}
    trained = [one for one in run.rounds if one.number > 0]
    rounds = [
        round_part(one, videos, by_number.get(one.number), unfolded=one is trained[-1])
        for one in trained
    ]
    figures = (
        [html_table(rounds_rows(run.lines)), charts(run.lines)]
        if run.lines
        else [tag("p", "No finished round yet.", class_="empty")]
    )
    body = tag(
        "main",
        tag("header", tag("p", "ipo_lightning", class_="brand"), tag("h1", run.name), summary(run)),
        choices(run.config),
        section("Rounds", *figures, note=ROUNDS_NOTE),
        *guards(run),
        section("Same prompt, same seed", comparison(run, videos), note=COMPARISON_NOTE),
        people(run),
        section("Labels", *(rounds or [tag("p", "None yet.", class_="empty")]), note=LABELS_NOTE),
        section("Again", reproduce(run, command)),
    )
    title = tag("title", f"{run.name} - ipo_lightning")
    head = tag("head", HEAD, title)
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


ROUNDS_NOTE = (
    "Round 0 is the base model. Scores are means with standard errors clustered by prompt. Gain "
    "and win rate compare each video with the base's of the same prompt and seed, by the held-out "
    "judge, with 95 % intervals over prompts. Drift is the change of the error on real videos."
)
COMPARISON_NOTE = (
    "Prompts evenly spaced over the evaluation set. Below each video: the training "
    "critic's score / the held-out judge's."
)
LABELS_NOTE = "Examples of the training labels, evenly spaced over the round's labels."

STYLE = files("ipo_lightning.report").joinpath("style.css").read_text(encoding="utf-8")
HEAD = Html(
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<style>\n{STYLE}</style>"
)
