"""The parts of the page: outcome, settings, comparison by prompt, commands."""

import shlex
from collections.abc import Mapping
from typing import Any

from ipo_lightning.guards import alarms, best_of
from ipo_lightning.report.markup import Html, html_table, join, section, tag
from ipo_lightning.report.run import Run
from ipo_lightning.report.tables import (
    Row,
    finite,
    gain_of,
    number,
)
from ipo_lightning.report.videos import Videos
from ipo_lightning.storage.foreign_yaml import read_plain
from ipo_lightning.video import spread

MAX_PROMPTS = 6  # rows of the comparison by prompt


def summary(run: Run) -> Html:
    """The result in a sentence, and the alarms of guards."""
    trained = [one for one in run.lines if one["round"] > 0]
    if not trained:
        return tag("p", "No trained round is finished yet.", class_="lead")
    last = trained[-1]
    rate = finite(last.get("win_rate"))
    bounds = last.get("win_rate_ci") or (None, None)
    parts = [f"After round {last['round']} the policy wins "]
    parts += ["an unknown share" if rate is None else f"{100 * rate:.0f} %"]
    low, high = (finite(b) for b in bounds)
    if low is not None and high is not None:
        parts += [f" ({100 * low:.0f} to {100 * high:.0f} %)"]
        parts += [" of paired comparisons with the base", verdict_on(low, high)]
    else:
        parts += [" of paired comparisons with the base."]
    if (gain := gain_of(last)) != "-":
        parts += [f" The held-out judge's score changed by {gain}."]
    best = best_of(run.lines)
    if best["round"] != last["round"]:
        parts += [f" The best round is {best['round']}, by {best['by']}; sample.py takes that one."]
    told = [(line["round"], raised) for line in trained if (raised := alarms(line))]
    concerns = [tag("p", f"Guards, round {which}: {'; '.join(raised)}.", class_="warning")
                for which, raised in told]  # fmt: skip
    return join([tag("p", "".join(parts), class_="lead"), *concerns])


def verdict_on(low: float, high: float) -> str:
    """The conclusion from a win rate's interval."""
    if low > 0.5:
        return ": better than the base."
    return ": worse than the base." if high < 0.5 else ": no clear difference."


def guards(run: Run) -> list[Html]:
    """The section of what each guard found, round by round; none where no guard looked."""
    looked = [line for line in run.lines if line.get("checks")]
    rows = []
    for name in dict.fromkeys(name for line in looked for name in line["checks"]):
        row = {"guard": name}
        for line in looked:
            raised = name in {one["guard"] for one in line["guards"]}
            mark, found = "ALARM: " if raised else "", line["checks"].get(name)
            row[f"round {line['round']}"] = mark + found if found else "-"
        rows.append(row)
    return [section("Guards", html_table(rows, "words"), note=GUARDS_NOTE)] if rows else []


GUARDS_NOTE = (
    "What may be wrong although the critic's score rises. Intervals are wider than 95 %, because "
    "every round is looked at."
)


def choices(config: Row) -> Html:
    """The main settings: every top-level value, and the class of each group."""
    entries = []
    for name, value in config.items():
        text = choice(value)
        if text and name != "name":
            entries.append(tag("div", tag("dt", name), tag("dd", text)))
    return tag("dl", *entries, class_="choices") if entries else Html("")


def choice(value: Any) -> str:
    """A setting in a few words; "" where it is too large or off."""
    if isinstance(value, Mapping):
        target = value.get("_target_")
        plain = [f"{k} {v}" for k, v in value.items() if k[:1] != "_" and is_plain(v)]
        head = str(target).rsplit(".", 1)[-1] if target else ""
        return " ".join([head, *([f"({', '.join(plain[:4])})"] if head and plain else [])])
    return str(value) if is_plain(value) and value is not False else ""


def is_plain(value: Any) -> bool:
    """Whether a setting is a number, a switch or a short text, and not a path."""
    short = isinstance(value, str) and len(value) <= 40 and not value.startswith("/")
    return short or isinstance(value, bool | int | float)


def comparison(run: Run, videos: Videos) -> Html:
    """The same prompts and seeds in every round, side by side."""
    by_round = {r.number: {draw(row): row for row in r.evaluation} for r in run.rounds}
    columns = [number_ for number_, rows in by_round.items() if rows]
    if not columns:
        return tag("p", "No evaluation videos yet.", class_="empty")
    first = by_round[columns[0]]
    firsts = [k for k, before in zip(first, [None, *first], strict=False) if starts(k, before)]
    shown = [firsts[i] for i in spread(len(firsts), MAX_PROMPTS)]
    titles = [tag("th", "base" if c == 0 else f"round {c}", scope="col") for c in columns]
    head = tag("tr", tag("th", "prompt", scope="col"), *titles)
    body = []
    for key in shown:
        cells = [tag("td", evaluated(by_round[c].get(key), c, videos)) for c in columns]
        prompt = str(first[key].get("prompt", ""))
        body.append(tag("tr", tag("th", prompt, scope="row", class_="prompt"), *cells))
    inner = tag("table", tag("thead", head), tag("tbody", *body), class_="videos")
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label="videos")


Draw = tuple[Any, Any, Any, Any]
"""Index of the prompt, the prompt, the video's number and its seed: what pairs two videos."""


def draw(row: Row) -> Draw:
    """What an evaluation video shares with those of other rounds that it is compared with."""
    return row.get("prompt_index"), row.get("prompt"), row.get("candidate"), row.get("seed")


def starts(key: Draw, before: Draw | None) -> bool:
    """Whether a row is the first of its prompt."""
    return before is None or key[0] != before[0]


def evaluated(row: Row | None, round_number: int, videos: Videos) -> Html:
    """One evaluation video with its two scores."""
    if row is None:
        return tag("div", "not evaluated", class_="absent")
    scores = f"{number(row.get('score'))} / {number(row.get('eval_score'))}"
    label = f"round {round_number}: {row.get('prompt', '')}"
    return videos.figure(row.get("video"), label, scores)


def reproduce(run: Run, command: str | None) -> Html:
    """The commands that make this run and videos of its policy."""
    prompts = [str(row.get("prompt")) for one in run.rounds for row in one.evaluation]
    prompt = prompts[0] if prompts else "..."
    quoted = shlex.quote('prompt="{}"'.format(prompt.replace("\\", "\\\\").replace('"', '\\"')))
    lines = [
        f"$ {command or train_command(run)}",
        f"$ python sample.py ckpt={shlex.quote(str(run.path))} {quoted}",
    ]
    settings = tag("summary", "Every setting (config.yaml)")
    full = tag("details", settings, tag("pre", run.config_text))
    parts = [tag("pre", "\n".join(lines), class_="commands")]
    return join([*parts, full if run.config_text else tag("p", "config.yaml is missing.")])


def train_command(run: Run) -> str:
    """The command of a run: Hydra's record of the overrides, or the known ones."""
    record = run.path / ".hydra" / "overrides.yaml"
    found = read_plain(record, "delete it; it is a record alone") if record.exists() else None
    if isinstance(found, list):
        overrides, remark = found, []
    else:
        known = [key for key in ("name", "seed", "round") if key in run.config]
        overrides = [f"{key}={run.config[key]}" for key in known]
        remark = [" # with the settings below"]
    return " ".join(["python train.py", *(shlex.quote(str(item)) for item in overrides), *remark])
