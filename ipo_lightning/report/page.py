"""The whole page: its parts in order."""

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from string import Template

from ipo_lightning.report.breakdown import breakdown
from ipo_lightning.report.charts import charts, training_charts
from ipo_lightning.report.costs import cost_rows
from ipo_lightning.report.kept import is_made, made_of, record
from ipo_lightning.report.labels import label_rows, round_part
from ipo_lightning.report.markup import Html, html_table, join, section, stacked, tag
from ipo_lightning.report.parts import commands, guards, settings, summary
from ipo_lightning.report.people import people
from ipo_lightning.report.player import as_json, player
from ipo_lightning.report.run import FOLDER, Run, find_videos, read_run
from ipo_lightning.report.summary import markdown
from ipo_lightning.report.tables import rounds_rows
from ipo_lightning.report.verdict import best_number
from ipo_lightning.report.videos import Videos
from ipo_lightning.storage.store import write_atomically

ROOM_FOR_LABELS = 3_000_000
"""Bytes, in base64, of the videos of labels."""


def write_report(
    run_dir: str | Path,
    out: Path | None = None,
    *,
    videos: Callable[[str], Path] | None = None,
    command: str | None = None,
    plots: bool = False,
) -> Path:
    """Write a run's page, and its summary in Markdown to the folder ``report`` beside the page.

    Both are kept where they are whole and the run has not changed since.

    Args:
        out: the page, by default ``run_dir/report.html``.
        videos: name of an mp4 (sha256) -> its file; by default in the run's store.
        command: the command that made the run; by default the ones that were written down.
        plots: also draw PNG and SVG files for papers into the folder ``report``.

    Returns:
        The page.
    """
    run = read_run(Path(run_dir))
    find = videos or find_videos(run.path)
    target = out or run.path / "report.html"
    folder = target.parent / FOLDER
    if plots:
        from ipo_lightning.report.plots import write_plots

        write_plots(run, folder)
    text, made = folder / "report.md", made_of(run, find, command, folder)
    if not is_made(target, text, made):
        write_atomically(text, encoded(markdown(run, folder, command)))
        write_atomically(target, encoded(page(run, find, command)))
        record(target, text, made)
    return target


def page(run: Run, find: Callable[[str], Path], command: str | None) -> str:
    """The whole document."""
    played, data = player(run, find)
    title = tag("h1", run.name)
    header = tag("header", tag("p", "ipo_lightning", class_="brand"), title, summary(run),
                 commands(run, command))  # fmt: skip
    body = tag(
        "main",
        header,
        section("Rounds", *rounds(run), note=ROUNDS_NOTE),
        *guards(run),
        section("Same prompt, same seed", played, note=VIDEOS_NOTE, id="videos"),
        *optional("Where it is better, where worse", breakdown(run), BREAKDOWN_NOTE),
        people(run),
        section("Labels", *labels(run, find), note=LABELS_NOTE),
        *optional("Health of the training", training_charts(run.lines), TRAINING_NOTE),
        *optional("Cost", costs_part(run), COST_NOTE),
        section("Settings", settings(run)),
    )
    return document(f"{run.name} - ipo_lightning", body, data)


def document(title: str, body: Html, data: dict[str, object]) -> str:
    """An HTML page that runs its own script and loads nothing."""
    script = text_of("page.js")
    policy = (
        f"default-src 'none'; script-src {hash_of(script)}; style-src {hash_of(STYLE)}; "
        "img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
    )
    return Template(text_of("page.html")).substitute(
        policy=policy, style=STYLE, title=join([title]), body=body, data=as_json(data),
        script=script,
    )  # fmt: skip


def encoded(text: str) -> bytes:
    """A file's bytes; half a surrogate pair, which JSON may hold and no file can, becomes "?"."""
    return text.encode(errors="replace")


def rounds(run: Run) -> list[Html]:
    """The table of rounds with the best one marked, and the curves."""
    if not run.lines:
        return [tag("p", "No finished round yet.", class_="empty")]
    best = best_number(run.lines)
    marked = next((i for i, line in enumerate(run.lines) if line["round"] == best), None)
    rows = [{name: stacked(text) for name, text in row.items()} for row in rounds_rows(run.lines)]
    if marked is not None:
        rows[marked]["round"] = join([rows[marked]["round"], tag("span", "best", class_="chip")])
    return [html_table(rows, "figures level", label="rounds", marked=marked), charts(run, best)]


def labels(run: Run, find: Callable[[str], Path]) -> list[Html]:
    """Statistics of all rounds' labels, then examples round by round."""
    trained = [one for one in run.rounds if one.number > 0]
    if not trained:
        return [tag("p", "None yet.", class_="empty")]
    by_number = {one["round"]: one for one in run.lines}
    videos = Videos(find, ROOM_FOR_LABELS)
    parts = {one.number: round_part(one, videos, by_number.get(one.number),
                                    unfolded=one is trained[-1])
             for one in reversed(trained)}  # fmt: skip
    return [html_table(label_rows(trained), "figures level", label="labels"),
            *(parts[one.number] for one in trained)]  # fmt: skip


def costs_part(run: Run) -> Html:
    """The table of costs; nothing where nothing was timed."""
    rows = cost_rows(run)
    return html_table(rows, label="cost") if rows else Html("")


def optional(heading: str, content: Html, note: str) -> list[Html]:
    """A section, where it has content."""
    return [section(heading, content, note=note)] if content else []


def text_of(name: str) -> str:
    """A file of this package."""
    return files("ipo_lightning.report").joinpath(name).read_text(encoding="utf-8")


def hash_of(text: str) -> str:
    """The hash that allows this inline style or script in a content security policy."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


ROUNDS_NOTE = (
    "Round 0 is the base model. Scores are means with standard errors clustered by prompt. Gain "
    "and win rate compare each video with the base's of the same prompt and seed, by the held-out "
    "judge, with 95 % intervals over prompts. Drift is the change of the error on real videos. "
    "Where there are such columns: the gain on other prompts, by which the best round is chosen; "
    "how often critic and judge order two videos of a prompt alike."
)
VIDEOS_NOTE = (
    "All videos of a row have the same prompt and the same noise. Below each: the held-out judge's "
    "score / the training critic's. Won, tied and lost are the judge's, against the base."
)
BREAKDOWN_NOTE = (
    "Changes against the base with 95 % intervals over prompts; each is looked at alone, so that "
    "of twenty about one leaves zero by chance. Click a prompt to see its videos."
)
LABELS_NOTE = (
    "What the critic's verdicts gave, and examples spaced evenly over each round's labels."
)
TRAINING_NOTE = "Means over each round's training."
COST_NOTE = (
    "Network evaluations: one video through the network once, forward. Calls: videos, or couples "
    "in one order, that critics were asked about. What the store held already is counted, but cost "
    "nothing."
)

STYLE = text_of("style.css")
HEAD = Html(
    '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<style>\n{STYLE}</style>"
)
