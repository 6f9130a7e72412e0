"""An audit of a critic as plain-text tables and as one self-contained HTML page.

The page is made only from ``audit.json`` and ``pairs.jsonl`` in the audit's folder.
"""

from collections.abc import Sequence
from pathlib import Path

from ipo_lightning.critics.people.annotations import OVERALL
from ipo_lightning.report.charts import Frame, Mark, Series, axes, legend, line, path, spoken
from ipo_lightning.report.labels import words_part
from ipo_lightning.report.markup import Html, html_table, section, tag
from ipo_lightning.report.page import HEAD
from ipo_lightning.report.tables import Row, interval, number, table
from ipo_lightning.report.videos import Videos
from ipo_lightning.storage.run_files import read_object
from ipo_lightning.storage.store import read_jsonl, write_atomically

FINDINGS = "audit.json"
PAIRS = "pairs.jsonl"
PAGE = "audit.html"


def write_audit(folder: Path) -> Path:
    """Write the page of an audit's folder, and return its path."""
    found = read_object(folder / FINDINGS)
    rows = read_jsonl(folder / PAIRS)
    target = folder / PAGE
    write_atomically(target, page(found, rows).encode())
    return target


def tables(found: Row) -> str:
    """The tables that are printed at the end of an audit."""
    blocks = [side_rows(found), answer_rows(found), fact_rows(found)]
    return "\n\n".join(table(rows, list(rows[0])) for rows in blocks)


# -------------------------------------------------------------------- rows


def side_rows(found: Row) -> list[dict[str, str]]:
    """Agreement where people had a preference, one row a dimension: heading -> cell."""
    rows = []
    for name, block in found["dims"].items():
        people = block["people"] or {}
        rows.append({
            "dimension": name,
            "pairs": number(block["accuracy"]["n"]),
            "accuracy": estimate(block["accuracy"]),
            "one person": estimate(people.get("accuracy")),
            "critic there": estimate(people.get("critic")),
            "spearman": number(block["spearman"], 2),
            "kendall": number(block["kendall"], 2),
        })  # fmt: skip
    return rows


def answer_rows(found: Row) -> list[dict[str, str]]:
    """Agreement on three answers (first, tie, second), one row a dimension."""
    rows = []
    for name, block in found["dims"].items():
        alpha = block["alpha"]
        rows.append({
            "dimension": name,
            "pairs": number(block["accuracy_ties"]["n"]),
            "with ties": estimate(block["accuracy_ties"]),
            "always one": number(block["majority_class"], 2),
            "kappa": estimate(block["kappa"]),
            "alpha, people": estimate(alpha["people_nominal"]),
            "and critic": estimate(alpha["with_critic_nominal"]),
        })  # fmt: skip
    return rows


def fact_rows(found: Row) -> list[dict[str, str]]:
    """One row a fact about the critic or people: name, value, reference value."""
    overall, answered = found["dims"][OVERALL], found["answered"]
    faults = ", ".join(f"{reason}: {count}" for reason, count in answered["faults"].items())
    facts = [
        ("pairs with a verdict", estimate(answered["share"]), faults),
        ("accuracy, no verdict counted as wrong", estimate(overall["accuracy_all"]), "chance 0.5"),
        ("no side taken", estimate(overall["abstained"]), NO_SIDE[found["kind"]]),
        *_habits(found),
        *_probabilities(found),
        *_surest(found),
        *_people(found),
        (
            "people's dimensions left out",
            ", ".join(found["unmatched"]) or "-",
            "the critic has no such dimension; give dims= if another means the same",
        ),
        *_cost(found["cost"]),
    ]
    return [{"what": a, "measured": b, "reference": c} for a, b, c in facts if b != "-"]


Fact = tuple[str, str, str]
NO_SIDE = {
    "pointwise": "equal scores, counted half right",
    "pairwise": "a tie, or two answers that disagree; counted half right",
    "recorded": "a tie, counted half right",
}


def _habits(found: Row) -> list[Fact]:
    place, again = found["place"], found["again"]
    facts = []
    if place:
        facts += [
            ("first place among decided answers", estimate(place["first"]), "fair 0.5"),
            ("verdict changes with the order", estimate(place["flips"]), "never 0, a coin 0.5"),
        ]
    if again:
        asked = f"{again['pairs']} pairs, {again['times']} times"
        facts.append(("same answer when asked again", estimate(again["alike"]), asked))
    return facts


def _probabilities(found: Row) -> list[Fact]:
    calibration = found["calibration"]
    facts = []
    for name, words in (("own", "its own probabilities"), ("fitted", "fitted probabilities")):
        if one := calibration[name]:
            half = f"always 0.5 has {number(calibration['brier_of_half'])}"
            facts.append((f"calibration error, {words}", number(one["ece"], 2), "perfect 0"))
            facts.append((f"Brier score, {words}", estimate(one["brier"], 3), half))
    return facts


def _surest(found: Row) -> list[Fact]:
    chance = "of those on which people had a preference"
    return [
        (f"accuracy on the surest {100 * one['share']:.0f} %", estimate(one["accuracy"]), chance)
        for one in found["surest"]
    ]


def _people(found: Row) -> list[Fact]:
    people, counts = found["people"], found["counts"]
    return [
        ("people: same answer on the same pair", estimate(people["again"]), ""),
        ("people: the left one taken", estimate(people["left"]), "fair 0.5"),
        (
            "people: divided, counted as a tie",
            str(counts["divided"]),
            f"of {counts['pairs']} pairs",
        ),
    ]


def _cost(cost: Row) -> list[Fact]:
    if not cost["calls"]:
        return [("cost of 1000 comparisons", "not measured", "all answers came from the store")]
    spent = [f"{number(value)} {name}" for name, value in cost["spent_a_thousand"].items()]
    seconds = f"{cost['seconds_a_thousand']:.3g} s"
    counted = f"{number(1000 * cost['calls_a_pair'])} {cost['unit']} on {cost['device']}"
    return [("cost of 1000 comparisons", ", ".join([seconds, *spent]), counted)]


def estimate(value: Row | None, digits: int = 2) -> str:
    """A value with its interval; "-" where it is unknown."""
    if not value or value["value"] is None:
        return "-"
    if digits == 2:
        return interval(value["value"], (value["low"], value["high"]))
    bounds = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['value']:.3f}{bounds}"


# -------------------------------------------------------------------- the page


def page(found: Row, rows: Sequence[Row]) -> str:
    """The whole document."""
    files = {row[f"{side}_video"]: row[f"{side}_file"] for row in rows for side in SIDES}
    videos = Videos(lambda name: Path(files[name]))
    body = tag(
        "main",
        header(found),
        section("Agreement", html_table(side_rows(found), "figures level"), note=SIDES_NOTE),
        section(
            "Ties and chance", html_table(answer_rows(found), "figures level"), note=ANSWERS_NOTE
        ),
        section("Calibration of its certainty", figures(found), note=CALIBRATION_NOTE),
        section("Settings", tag("pre", found["use"], class_="commands"), note=SETTINGS_NOTE),
        section(
            "Habits and cost", html_table(fact_rows(found), f"{LEVEL} facts"), note=HABITS_NOTE
        ),
        section("Worst disagreements", *worst(rows, videos, found["examples"]), note=WORST_NOTE),
        section("Again", tag("pre", f"$ {found['command']}", class_="commands")),
    )
    head = tag("head", HEAD, tag("title", f"Audit of {found['critic']} - ipo_lightning"))
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def header(found: Row) -> Html:
    """The title, the verdict and the counts."""
    agreement, use, *warnings = found["sentences"]
    more = [tag("p", text, class_="warning") for text in warnings]
    counts = ", ".join(f"{value} {name}" for name, value in told(found).items())
    return tag(
        "header",
        tag("p", "ipo_lightning", class_="brand"),
        tag("h1", f"Audit of {found['critic']}"),
        tag("p", agreement, class_="lead"),
        tag("p", tag("strong", use), class_="lead"),
        *more,
        tag("p", f"{found['pairs_file']}: {counts}.", class_="note"),
    )


SIDES = ("first", "second")
LEVEL = "figures level"
"""CSS class of tables without a highlighted row."""
SIDES_NOTE = (
    "Accuracy: share of the pairs on which people had a preference, with 95 % intervals "
    "over prompts; an answer without a side counts as half right. One person: how often a person "
    "agrees with the majority of the others; critic there: how often the critic agrees with the "
    "same others. Spearman and Kendall: rank correlation of its margins and people's shares."
)
ANSWERS_NOTE = (
    "Three answers (first, tie, second), on prompts other than those on which the threshold of "
    "ties was fitted. Always one: accuracy of always giving the most common answer. Kappa and "
    "Krippendorff's alpha (nominal) are agreement beyond chance: 0 is chance, 1 is full agreement."
)
SETTINGS_NOTE = (
    "Scale and k of Rao and Kupper's model with ties, fitted to people's votes on the calibration "
    "split: they turn the critic's scores or log-odds into probabilities."
)
CALIBRATION_NOTE = (
    "Left: share of right answers by the critic's certainty; on the dashed line both are equal. "
    "Right: accuracy on the pairs with the highest certainty. If the curve does not fall to the "
    "right, the critic's certainty has no meaning."
)
HABITS_NOTE = "What was measured, its value, and a value to compare it with."
WORST_NOTE = (
    "Pairs on which all people agreed and the critic preferred the other video, its highest "
    "certainty first; pairs with several people come before those with one."
)


def told(found: Row) -> dict[str, int]:
    """The counts in the header, by name."""
    counts = found["counts"]
    shown = {name: counts[name] for name in ("pairs", "prompts", "videos", "votes", "annotators")}
    return {name: value for name, value in shown.items() if value} | found["left_out"]


def figures(found: Row) -> Html:
    """The calibration plot, and accuracy by certainty."""
    known = {"own": "its own", "fitted": "after the fit"}
    curves = []
    for name, words in known.items():
        bins = (found["calibration"][name] or {}).get("bins", [])
        curves.append(Series(words, [mark(one["confidence"], one["accuracy"]) for one in bins]))
    accuracy = found["dims"][OVERALL]["accuracy"]
    shares = [*found["surest"], {"share": 1.0, "accuracy": accuracy}]
    marks = [mark(one["share"], one["accuracy"]) for one in shares if one["accuracy"]["n"]]
    people = (found["dims"][OVERALL]["people"] or {}).get("accuracy", {}).get("value")
    return tag(
        "div",
        plot("Calibration", "certainty against share of people on its side",
             [one for one in curves if one.marks], Frame(0.5, 1, 0, 1), "confidence",
             [(0.5, 0.5), (1.0, 1.0)]),
        plot("Accuracy by certainty", "over the share of pairs kept; dashed: one person",
             [Series("accuracy", marks)], Frame(0, 1, 0, 1), "share kept",
             [] if people is None else [(0.0, people), (1.0, people)]),
        class_="charts",
    )  # fmt: skip


def mark(x: float, estimate: Row) -> Mark:
    """An estimate as a point of a chart."""
    return Mark(x, estimate["value"], estimate["low"], estimate["high"])


def plot(
    title: str,
    note: str,
    series: Sequence[Series],
    frame: Frame,
    along: str,
    dashed: Sequence[tuple[float, float]],
) -> Html:
    """A chart whose horizontal axis is a share, with a dashed line between two points."""
    caption = tag("figcaption", tag("strong", title), tag("span", note, class_="note"))
    shown = [one for one in series if one.marks]
    if not shown:
        return tag("figure", caption, tag("p", "nothing to plot", class_="empty"), class_="chart")
    parts = [axes(frame, whole=False)]
    if dashed:
        points = path([frame.at(x, y) for x, y in dashed])
        parts.append(tag("polyline", points=points, class_="reference", fill="none"))
    parts += [line(frame, one, f"c{i}", along) for i, one in enumerate(shown)]
    picture = tag("svg", *parts, viewBox="0 0 340 200", role="img", aria_label=spoken(title, shown))
    return tag("figure", caption, picture, legend(shown), class_="chart")


def worst(rows: Sequence[Row], videos: Videos, examples: int) -> list[Html]:
    """The worst disagreements, with both videos of each."""
    chosen = disagreements(rows)[:examples]
    if not chosen:
        return [
            tag(
                "p",
                "There is no pair on which all people agreed and the critic did not.",
                class_="empty",
            )
        ]
    return [tag("div", *(disagreement(row, videos) for row in chosen), class_="pairs")]


def disagreements(rows: Sequence[Row]) -> list[Row]:
    """Pairs on which all people agreed and the critic did not, its highest certainty first."""
    found = []
    for row in rows:
        people, margin = row["people"], row["margin"]
        side = 1 if people["first"] else -1
        votes = max(people["first"], people["second"])
        if votes and votes == sum(people.values()) and margin is not None and margin * side < 0:
            found.append((votes < 2, -abs(margin), row))
    return [row for *_, row in sorted(found, key=lambda one: one[:2])]


def disagreement(row: Row, videos: Videos) -> Html:
    """One pair: people's choice on the left, the critic's on the right."""
    people = row["people"]
    chosen, other = SIDES if people["first"] else reversed(SIDES)
    count = people[chosen]
    captions = {
        chosen: f"better, said {count} of {count} people",
        other: "better, said the critic",
    }
    by_video = row["raw"] if row["chance"] is None else ()  # with a chance, one text an order
    sides = []
    for side, class_ in ((chosen, "winner"), (other, "loser")):
        figure = videos.figure(row[f"{side}_video"], row["prompt"], captions[side])
        words = [
            words_part(raw) for name, raw in zip(SIDES, by_video, strict=False) if name == side
        ]
        sides.append(tag("div", figure, *words, class_=class_))
    title = tag("h3", row["prompt"], tag("span", sureness(row), class_="note"))
    orders = () if by_video else in_orders(row["raw"], left_first=chosen == "first")
    return tag("div", title, tag("div", *sides, class_="sides"), *orders, class_="pair")


def in_orders(raw: Sequence[str], *, left_first: bool) -> list[Html]:
    """The critic's texts in each order of the two videos."""
    names = ("left one shown first", "right one shown first")
    return [
        words_part(f"[{name}]\n{words}")
        for name, words in zip(names if left_first else names[::-1], raw, strict=False)
    ]


def sureness(row: Row) -> str:
    """The critic's certainty, or its margin."""
    if row["chance"] is None:
        return f"margin {number(abs(row['margin']))}"
    return f"the critic was {100 * max(row['chance'], 1 - row['chance']):.0f} % sure"
