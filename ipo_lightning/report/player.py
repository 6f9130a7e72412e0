"""The part of the page that plays the base and all rounds on the same noise, side by side."""

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ipo_lightning.report.clips import Clips, Detail, embedded
from ipo_lightning.report.markup import Html, tag
from ipo_lightning.report.pairing import CRITIC, JUDGE, Draw, draw
from ipo_lightning.report.run import Run
from ipo_lightning.report.tables import Row, finite
from ipo_lightning.report.verdict import best_number, shown_round
from ipo_lightning.video import spread

Rounds = Mapping[int, Mapping[Draw, Row]]
"""Round -> its evaluation videos."""


def player(run: Run, find: Callable[[str], Path]) -> tuple[Html, dict[str, Any]]:
    """The controls, and the data for the page's script; no controls where there are no videos."""
    rounds = {one.number: {draw(row): row for row in one.evaluation} for one in run.rounds}
    rounds = {number: rows for number, rows in rounds.items() if rows}
    if not rounds:
        return tag("p", "No evaluation videos yet.", class_="empty"), {}
    important = [0, best_number(run.lines) or 0, max(rounds)]
    detail, clips = embedded(lambda detail: names_of(chosen(rounds, detail, important)), find)
    shown = chosen(rounds, detail, important)
    content = data(shown, clips, shown_round(run.lines), best_number(run.lines))
    said = detail.words()
    if clips.left_out:
        said += f" For {clips.left_out} videos there was no room."
    return controls(content, said.strip()), content


def chosen(rounds: Rounds, detail: Detail, important: list[int]) -> Rounds:
    """The rounds and the videos of a prompt that a page holds at a detail."""
    numbers = sorted(rounds)
    if detail.rounds is not None and len(numbers) > detail.rounds:
        first = [number for number in dict.fromkeys(important) if number in rounds]
        others = [numbers[i] for i in spread(len(numbers), len(numbers)) if numbers[i] not in first]
        more = detail.rounds - len(first)
        picked = [others[i] for i in spread(len(others), more)] if more > 0 else []
        numbers = sorted({*first[: detail.rounds], *picked})
    return {number: few(rounds[number], detail.videos) for number in numbers}


def few(rows: Mapping[Draw, Row], videos: int | None) -> Mapping[Draw, Row]:
    """The first videos of each prompt; None: all."""
    if videos is None:
        return rows
    counts: dict[Any, int] = {}
    kept = {}
    for key, row in rows.items():
        counts[key[:2]] = counts.get(key[:2], 0) + 1
        if counts[key[:2]] <= videos:
            kept[key] = row
    return kept


def names_of(rounds: Rounds) -> list[str]:
    """Names of the videos, each once."""
    rows = (row for videos in rounds.values() for row in videos.values())
    return list(dict.fromkeys(str(row["video"]) for row in rows if row.get("video")))


def data(rounds: Rounds, clips: Clips, shown: int | None, best: int | None) -> dict[str, Any]:
    """What the script shows: rounds, and a row for each draw with a cell a round."""
    places = {name: place for place, name in enumerate(clips.content)}
    keys = list(dict.fromkeys(key for videos in rounds.values() for key in videos))
    rows = []
    for key in keys:
        cells = {number: videos[key] for number, videos in rounds.items() if key in videos}
        first = next(iter(cells.values()))
        rows.append({
            "prompt": str(key[1]),
            "number": key[2],
            "category": str(first["category"]) if first.get("category") else "",
            "cells": {number: cell(row, places) for number, row in cells.items()},
        })  # fmt: skip
    return {
        "rounds": list(rounds),
        "shown": shown,
        "best": best,
        "seconds": clips.seconds or 1.0,
        "small": clips.small,
        "rows": rows,
        "clips": list(clips.content.values()),
    }


def cell(row: Row, places: Mapping[str, int]) -> dict[str, Any]:
    """One video: the place of its clip, if it has one, and its scores."""
    return {
        "clip": places.get(str(row.get("video"))),
        "judge": finite(row.get(JUDGE)),
        "critic": finite(row.get(CRITIC)),
    }


def controls(content: Mapping[str, Any], said: str) -> Html:
    """The form above the videos, and the list that the script fills."""
    later = [number for number in content["rounds"] if number]
    categories = sorted({row["category"] for row in content["rows"] if row["category"]})
    options = [tag("option", name, value=name) for name in categories]
    text = files("ipo_lightning.report").joinpath("player.html").read_text(encoding="utf-8")
    return Html(Template(text).substitute(
        last=max(len(later) - 1, 0),
        categories=Html("").join(options),
        hide_categories="" if categories else "hidden",
        hide_rounds="" if len(later) > 1 else "hidden",
        said=tag("p", said, class_="note") if said else "",
    ))  # fmt: skip


def as_json(content: Mapping[str, Any]) -> str:
    """Data within a script element, which no text in it can close."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
