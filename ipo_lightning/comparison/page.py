"""A comparison as plain-text tables and as one self-contained HTML page."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ipo_lightning.report.markup import Html, html_table, section, tag
from ipo_lightning.report.page import HEAD
from ipo_lightning.report.tables import interval, number, table
from ipo_lightning.report.videos import Videos
from ipo_lightning.storage.store import write_atomically, write_jsonl

FOUND, PAIRS, PAGE = "compare.json", "pairs.jsonl", "compare.html"
SHOWN = 24
"""Pairs of videos on the page: the best and the worst changes."""
Row = Mapping[str, Any]


def write_comparison(
    folder: Path, found: Row, rows: Sequence[Row], find: Callable[[str], Path]
) -> Path:
    """Write ``compare.json``, ``pairs.jsonl`` and the page, whose path is returned.

    Args:
        find: name of a video -> its file.
    """
    write_jsonl(folder / PAIRS, rows)
    write_atomically(folder / FOUND, json.dumps(found, indent=1, allow_nan=False).encode())
    write_atomically(folder / PAGE, page(found, rows, Videos(find)).encode())
    return folder / PAGE


def text(found: Row) -> str:
    """What is shown at the end of a comparison."""
    rows = table_rows(found)
    return "\n".join([table(rows, list(rows[0])), "", *sentences(found)])


def table_rows(found: Row) -> list[dict[str, str]]:
    """All videos, then each dimension, then each category: heading -> cell."""
    blocks = [("all", found["overall"])]
    blocks += [(name, one) for name, one in found["dims"].items()]
    blocks += [(f"category {name}", one) for name, one in found["categories"].items()]
    return [
        {
            "of b against a": name,
            "prompts": number(one["prompts"]),
            "pairs": number(one["pairs"]),
            "gain": _shown(one["gain"], "+.3f"),
            "win rate": _shown(one["win_rate"], ".2f"),
            "ties": number(one["ties"], 2),
            "missing": number(one["missing"]),
        }
        for name, one in blocks
    ]


def _shown(one: Row, form: str) -> str:
    return interval(one["value"], (one["low"], one["high"]), form)


def sentences(found: Row) -> list[str]:
    """The conclusion, what the comparison could have shown, and what people said."""
    power, looks = found["power"], found["looks"]
    overall = found["overall"]
    figures = (
        f"gain {_shown(overall['gain'], '+.3f')}, win rate {_shown(overall['win_rate'], '.2f')}"
    )
    told = [
        f"By {found['judge']}, {found['verdict']}: {figures} (a: {found['a']}, b: {found['b']})."
    ]
    if power["detectable"] is not None:
        told.append(
            f"{overall['prompts']} prompts show a difference of {power['detectable']:.3g} "
            f"with a chance of {100 * power['power']:.0f} %."
        )
    if power["prompts_to_show"] is not None:
        told.append(
            f"About {power['prompts_to_show']} prompts would show one of "
            f"{power['difference']:.3g} with that chance."
        )
    if looks > 1:
        told.append(
            f"Intervals hold at {100 * found['level']:.4g} %, so that those of {looks} comparisons "
            "hold together at 95 %."
        )
    people = found.get("people")
    if people and people["couples"]:
        share = _shown(people["alike"], ".2f")
        told.append(f"Two people gave the same answer about a pair in a share of {share}.")
    return [*told, *(people["notes"] if people else [])]


def page(found: Row, rows: Sequence[Row], videos: Videos) -> str:
    """The whole document."""
    verdict, *more = sentences(found)
    header = tag(
        "header",
        tag("p", "ipo_lightning", class_="brand"),
        tag("h1", "Comparison of two checkpoints"),
        tag("p", verdict, class_="lead"),
        *(tag("p", one, class_="note") for one in more),
    )
    body = tag(
        "main",
        header,
        section("Figures", html_table(table_rows(found), "figures level"), note=FIGURES_NOTE),
        section("Largest changes", *pairs(rows, videos), note=VIDEOS_NOTE),
        section("Again", tag("pre", f"$ {found['command']}", class_="commands")),
    )
    head = tag("head", HEAD, tag("title", "Comparison - ipo_lightning"))
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


FIGURES_NOTE = (
    "Gain: mean of the judge's score of b minus that of a, on videos of the same prompt and noise. "
    "Win rate: share of these pairs in which b's score is higher; a tie counts half. Intervals are "
    "over prompts. Dimensions and categories are looked at without a correction for their number: "
    "about one in twenty excludes no difference by chance."
)
VIDEOS_NOTE = (
    "The best changes by the judge's scores, then the worst: a on the left, b on the right, "
    "of the same noise."
)


def pairs(rows: Sequence[Row], videos: Videos) -> list[Html]:
    """The pairs with the largest changes to both sides, each with both videos."""
    chosen = largest(rows)
    if not chosen:
        return [tag("p", "No pair has both scores.", class_="empty")]
    return [tag("div", *(pair(row, videos) for row in chosen), class_="pairs")]


def largest(rows: Sequence[Row]) -> list[Row]:
    """The best changes, the largest first, then the worst; all pairs where they are few."""
    known = sorted((row for row in rows if row["change"] is not None), key=lambda r: -r["change"])
    if len(known) <= SHOWN:
        return known
    return [*known[: SHOWN // 2], *reversed(known[-SHOWN // 2 :])]


def pair(row: Row, videos: Videos) -> Html:
    """One pair: its prompt and change, a's video and b's."""
    heading = tag("h3", row["prompt"], tag("span", f"{row['change']:+.3f}", class_="note"))
    sides = [
        videos.figure(row[f"{side}_video"], f"{side}: {row['prompt']}", side,
                      number(row[f"{side}_score"]))
        for side in "ab"
    ]  # fmt: skip
    return tag("div", heading, tag("div", *sides, class_="sides"), class_="pair")
