"""Where the shown round is better and where worse: by dimension, by category, by prompt."""

from collections.abc import Sequence

from ipo_lightning.metrics.intervals import Interval
from ipo_lightning.report.charts import dimension_charts
from ipo_lightning.report.markup import Html, html_table, join, tag, typeset
from ipo_lightning.report.pairing import (
    Paired,
    by_prompt,
    grouped,
    mean_change,
    paired,
    record,
    share_won,
)
from ipo_lightning.report.run import Run
from ipo_lightning.report.tables import interval, number
from ipo_lightning.report.verdict import dimensions, shown_round

WHO = {"eval_dims": "judge", "dims": "critic"}


def breakdown(run: Run) -> Html:
    """The tables and the curves by dimension."""
    which = shown_round(run.lines)
    pairs = paired(run, which) if which else []
    tables = [
        titled(
            f"By dimension, round {which}", dimension_rows(run, which or 0, pairs), "dimensions"
        ),
        dimension_charts(run.lines),
        titled(f"By category, round {which}", category_rows(pairs), "categories"),
        titled(f"By prompt, round {which}", prompt_rows(pairs), "prompts", "figures tall"),
    ]
    return join(tables)


def titled(
    title: str, rows: Sequence[dict[str, str]], label: str, class_: str = "figures level"
) -> Html:
    """A table under its title; nothing without rows."""
    if not rows:
        return Html("")
    scroll = "level figures" if "tall" in class_ else class_
    table = html_table(rows, scroll, label=label)
    inner = tag("div", table, class_="tall") if "tall" in class_ else table
    return tag("div", tag("h3", title), inner, class_="block")


def changed(found: Interval) -> str:
    """A change with its interval."""
    return interval(found.value, (found.low, found.high), "+.3f")


def dimension_rows(run: Run, number_: int, pairs: Sequence[Paired]) -> list[dict[str, str]]:
    """One row a dimension, of the judge first: base, round, change."""
    lines = {line["round"]: line for line in run.lines}
    rows = []
    for group, who in WHO.items():
        base, now = (lines.get(one, {}).get(group) or {} for one in (0, number_))
        for name, found in dimensions(pairs, group).items():
            rows.append({
                "dimension": name,
                "of": who,
                "base": number(base.get(name)),
                f"round {number_}": number(now.get(name)),
                "change": changed(found),
                "": sign(found),
            })  # fmt: skip
    return rows


def sign(found: Interval) -> Html:
    """Whether a change is certain, in a word and in colour."""
    if found.low > 0:
        return tag("span", "better", class_="up")
    return tag("span", "worse", class_="down") if found.high < 0 else Html("")


def category_rows(pairs: Sequence[Paired]) -> list[dict[str, str]]:
    """One row a category: prompts, wins, win rate and gain."""
    return [
        {
            "category": name,
            "prompts": str(len(by_prompt(own))),
            "won / tied / lost": str(record(own)),
            "win rate": interval(*apart(share_won(own))),
            "gain": changed(mean_change(own)),
            "": sign(mean_change(own)),
        }
        for name, own in sorted(grouped(pairs, lambda one: one.category).items())
    ]


def apart(found: Interval) -> tuple[float, tuple[float, float]]:
    """A value, and its bounds."""
    return found.value, (found.low, found.high)


def prompt_rows(pairs: Sequence[Paired]) -> list[dict[str, str]]:
    """One row a prompt, the worst first: wins and gain, and a button that shows its videos."""
    prompts = by_prompt(pairs)
    gains = {key: mean_change(own).value for key, own in prompts.items()}
    rows = []
    for key in sorted(prompts, key=lambda key: (gains[key] != gains[key], gains[key])):
        won, tied, lost = record(prompts[key])
        word = tag("span", "worse", class_="down") if lost > won else Html("")
        rows.append({
            "prompt": watch(key[1]),
            "won / tied / lost": f"{won} / {tied} / {lost}",
            "gain": typeset(format(gains[key], "+.3f") if gains[key] == gains[key] else "-"),
            "": word,
        })  # fmt: skip
    return rows


def watch(prompt: str) -> Html:
    """A link to the videos of a prompt."""
    return tag("a", prompt, href="#videos", data_find=prompt)
