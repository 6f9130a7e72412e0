"""A round's labels on the page: how many were kept and dropped, and examples with verdicts."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ipo_lightning.metrics.intervals import Interval, share_interval
from ipo_lightning.report.markup import Html, tag
from ipo_lightning.report.run import RoundFiles
from ipo_lightning.report.tables import Row, finite, interval, number, seconds_of
from ipo_lightning.report.videos import Videos
from ipo_lightning.video import spread

MAX_LABELS = 4  # pairs or points shown of a round
MAX_WORDS = 600  # characters of a critic's answer
FIGURES = {
    "prompts": "prompts",
    "prompts_labelled": "prompts that gave a label",
    "comparisons": "couples compared",
    "ties": "ties among them",
    "flips": "couples whose two orders disagree",
    "first_wins": "answers for the first place (1/2 is fair)",
    "score_motion": "correlation of score and motion (0 is fair)",
}
"""Names in labelling.json and what the page calls them."""

Comparisons = Mapping[tuple[Any, frozenset[Any]], Row]
"""(prompt index, two candidates) -> their verdict."""


def round_part(one: RoundFiles, videos: Videos, line: Row | None, *, unfolded: bool) -> Html:
    """A round's labels, counts and times."""
    head = tag("summary", f"Round {one.number}", tag("span", headline(one, line), class_="note"))
    parts = [counts_part(one.labelling), figures_part(one.labelling)]
    if one.missing:
        parts.append(tag("p", f"Not finished: {', '.join(one.missing)}.", class_="empty"))
    verdicts = {place(row): row for row in one.verdicts if "p_first" not in row}
    comparisons = {meeting(row): row for row in one.verdicts if "p_first" in row}
    pairs = [one.pairs[i] for i in spread(len(one.pairs), MAX_LABELS)]
    points = [one.points[i] for i in spread(len(one.points), 2 * MAX_LABELS)]
    if pairs:
        shown = (pair_part(row, verdicts, comparisons, videos) for row in pairs)
        parts.append(tag("div", *shown, class_="pairs"))
    if points:
        figures = (point_part(row, verdicts, videos) for row in points)
        parts.append(tag("div", *figures, class_="points"))
    if not pairs and not points:
        parts.append(tag("p", "No labelled videos on disk.", class_="empty"))
    return tag("details", head, *parts, **({"open": "open"} if unfolded else {}))


def label_rows(rounds: Sequence[RoundFiles]) -> list[dict[str, str]]:
    """Statistics of labels, one row a round: heading -> cell; columns that some round has."""
    rows = [statistics(one) for one in rounds]
    there = {name for row in rows for name, text in row.items() if text != "-"}
    names = [name for name in rows[0] if name == "round" or name in there]
    return [{name: row[name] for name in names} for row in rows]


def statistics(one: RoundFiles) -> dict[str, str]:
    """How many labels a round gave, and habits of its critic."""
    figures = one.labelling.get("figures") or {}
    dropped = (finite(count) for count in (one.labelling.get("dropped") or {}).values())
    first = first_place(one.verdicts)
    return {
        "round": number(one.number),
        "videos": number(len(one.candidates)),
        "labels": number(len(one.pairs) or len(one.points)),
        "prompts with a label": share(figures.get("prompts_labelled"), figures.get("prompts")),
        "dropped": number(int(sum(count or 0 for count in dropped))),
        "ties": share(figures.get("ties"), figures.get("comparisons")),
        "orders disagree": share(figures.get("flips"), figures.get("comparisons")),
        "first place taken": interval(first.value, (first.low, first.high)),
        "score and motion": number(figures.get("score_motion"), 2),
        "no verdict": share(sum(unanswered(row) for row in one.verdicts), len(one.verdicts)),
    }


def share(part: Any, whole: Any) -> str:
    """A count as a share of another, in per cent."""
    count, of = finite(part), finite(whole)
    return "-" if count is None or not of else f"{100 * count / of:.0f} %"


def unanswered(verdict: Row) -> bool:
    """Whether a critic gave no verdict."""
    return verdict.get("p_first" if "p_first" in verdict else "score") is None


def first_place(verdicts: Sequence[Row]) -> Interval:
    """How often the video shown first was taken, where both orders were asked; 1/2 is fair."""
    taken, prompts = [], []
    for row in verdicts:
        shown = row.get("shown") or ()
        if len(shown) == 2 and all(shown):
            for first, _, second in shown:
                taken.append(0.5 + 0.5 * ((first > second) - (first < second)))
                prompts.append(int(row["prompt_index"]))
    return share_interval(torch.tensor(taken, dtype=torch.float64), torch.tensor(prompts))


def place(row: Row) -> tuple[Any, Any]:
    """Prompt and candidate."""
    return row.get("prompt_index"), row.get("candidate")


def meeting(verdict: Row) -> tuple[Any, frozenset[Any]]:
    """Prompt and the two candidates of a verdict."""
    return verdict.get("prompt_index"), frozenset((verdict.get("first"), verdict.get("second")))


def headline(one: RoundFiles, line: Row | None) -> str:
    """How many labels a round has, and its seconds by stage."""
    labels = f"{len(one.pairs)} pairs" if one.pairs else f"{len(one.points)} labelled videos"
    times = ", ".join(f"{name} {s:.0f} s" for name, s in seconds_of(line or {}).items())
    return f"{labels}; {times}" if times else labels


def counts_part(labelling: Row) -> Html:
    """How many labels were kept and why the rest was dropped."""
    if not labelling:
        return Html("")
    dropped = labelling.get("dropped") or {}
    reasons = [f"{reason}: {number(count)}" for reason, count in dropped.items()]
    of_drafts = (labelling.get("drafts") or {}).get("dropped") or {}
    reasons += [f"drafts, {reason}: {number(count)}" for reason, count in of_drafts.items()]
    chips = [tag("span", f"kept: {number(labelling.get('kept'))}", class_="chip kept")]
    chips += [tag("span", text, class_="chip") for text in reasons]
    return tag("p", *chips, class_="chips")


def figures_part(labelling: Row) -> Html:
    """Statistics of the verdicts, as a small table."""
    figures = labelling.get("figures") or {}
    rows = [
        tag("tr", tag("th", words, scope="row"), tag("td", number(figures[name]), class_="number"))
        for name, words in FIGURES.items()
        if name in figures
    ]
    return tag("table", tag("tbody", *rows), class_="figures level") if rows else Html("")


def pair_part(
    pair: Row, verdicts: Mapping[Any, Row], comparisons: Comparisons, videos: Videos
) -> Html:
    """A winner and its loser, side by side."""
    sides = []
    for side in ("winner", "loser"):
        row = verdicts.get((pair.get("prompt_index"), pair.get(side)), {})
        label = f"{side}: {pair.get('prompt', '')}"
        words = verdict_words(side, row) if row else [side]
        figure = videos.figure(pair.get(f"{side}_video"), label, *words)
        sides.append(tag("div", figure, words_part(row.get("raw")), class_=side))
    facts = f"margin {number(pair.get('margin'))}, weight {number(pair.get('weight'))}"
    title = tag("h3", str(pair.get("prompt", "")), tag("span", facts, class_="note"))
    comparison = comparison_part(pair, comparisons) if comparisons else Html("")
    return tag("div", title, tag("div", *sides, class_="sides"), comparison, class_="pair")


def comparison_part(pair: Row, comparisons: Comparisons) -> Html:
    """The verdict on a winner and its loser, with the answers to both orders."""
    both = frozenset((pair.get("winner"), pair.get("loser")))
    found = comparisons.get((pair.get("prompt_index"), both))
    if found is None:
        return tag("p", f"The two were not compared: winner by their strengths, with certainty "
                   f"{number(pair.get('certainty'))}.", class_="note")  # fmt: skip
    won = found.get("first") == pair.get("winner")
    chances = [found.get(name) for name in ("p_first", "p_tie", "p_second")]
    win, tie, lose = chances if won else reversed(chances)
    agreed = "the two orders agree" if found.get("consistent") else "the two orders disagree"
    lines = [f"winner {number(win)}, tie {number(tie)}, loser {number(lose)}; {agreed}"]
    lines += [
        f"{order}: first {number(shown[0])}, tie {number(shown[1])}, second {number(shown[2])}"
        for order, shown in zip(orders(won), found.get("shown") or (), strict=False)
        if shown
    ]
    dims = (found.get("dims") or {}).items()
    turned = [f"{name} {number(value if won else 1 - value)}" for name, value in dims]
    lines += [f"winner's chance by dimension: {', '.join(turned)}"] if turned else []
    return tag("div", *(tag("p", line, class_="note") for line in lines),
               words_part("\n---\n".join(filter(None, found.get("raw") or ()))))  # fmt: skip


def orders(won: bool) -> Sequence[str]:
    """Names of the two orders of a comparison; ``won``: its first video is the winner."""
    names = ("winner shown first", "loser shown first")
    return names if won else names[::-1]


def point_part(point: Row, verdicts: Mapping[Any, Row], videos: Videos) -> Html:
    """One labelled video."""
    row = verdicts.get(place(point), {"score": point.get("score")})
    kind = "desirable" if point.get("desirable") else "undesirable"
    prompt = str(point.get("prompt", ""))
    captions = (*verdict_words(kind, row), f"weight {number(point.get('weight'))}", prompt)
    figure = videos.figure(point.get("video"), f"{kind}: {prompt}", *captions)
    return tag("div", figure, class_="winner" if point.get("desirable") else "loser")


def verdict_words(kind: str, verdict: Row) -> list[str]:
    """The label, the score and its dimensions, a line each."""
    dims = (verdict.get("dims") or {}).items()
    return [
        f"{kind} {number(verdict.get('score'))}",
        ", ".join(f"{name} {number(value)}" for name, value in dims),
    ]


def words_part(raw: Any) -> Html:
    """The critic's answer, folded."""
    words = raw if isinstance(raw, str) else json.dumps(raw) if raw else ""
    if not words.strip():
        return Html("")
    cut = words if len(words) <= MAX_WORDS else words[:MAX_WORDS] + " ..."
    return tag("details", tag("summary", "the critic's answer"), tag("pre", cut), class_="words")
