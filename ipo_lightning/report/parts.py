"""The parts of the page: verdict, guards, settings, commands."""

import shlex
from collections.abc import Sequence
from html import escape

from ipo_lightning.guards import alarms
from ipo_lightning.report.markup import Html, html_table, join, section, tag
from ipo_lightning.report.run import Run
from ipo_lightning.report.tables import Row
from ipo_lightning.report.verdict import answers, headline, trained
from ipo_lightning.storage.foreign_yaml import read_plain
from ipo_lightning.storage.layout import RunDir


def summary(run: Run) -> Html:
    """The verdict, the alarms of guards, and what a reader asks next."""
    concerns = [tag("p", text, class_="warning") for text in concerns_of(run.lines)]
    facts = [tag("div", tag("dt", one.question), tag("dd", one.text)) for one in answers(run)]
    box = tag("dl", *facts, class_="answers") if facts else Html("")
    again = [tag("p", text) for text in judged_again(run)]
    return join([tag("p", headline(run.lines), class_="lead"), *again, *concerns, box])


def judged_again(run: Run) -> list[str]:
    """Which judge evaluated the run before the one that it has now; nothing where none did."""
    earlier = RunDir(run.path).earlier_judges()
    if not earlier:
        return []
    return [
        f"The run was judged by {earlier[-1].get('judge')} before: all rounds were evaluated again "
        "by the judge that it has now."
    ]


def concerns_of(lines: Sequence[Row]) -> list[str]:
    """The newest round's alarms in full, or those of the last round that had some, and where there
    were others."""
    told = {line["round"]: raised for line in trained(lines) if (raised := alarms(line))}
    if not told:
        return []
    *earlier, last = told
    said = f"Guards, round {last}: {'; '.join(told[last])}."
    also = f" Alarms in round {', '.join(map(str, earlier))} too." if earlier else ""
    return [said + also]


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
    if not rows:
        return []
    return [section("Guards", html_table(rows, "findings", label="guards"), note=GUARDS_NOTE)]


GUARDS_NOTE = (
    "What may be wrong although the critic's score rises. Intervals are wider than 95 %, because "
    "every round is looked at."
)


def settings(run: Run) -> Html:
    """What differs from the defaults, as a table, and every setting folded."""
    rows = run.asked.settings
    if rows is None:
        parts = [tag("p", NOT_RECORDED, class_="empty")] if run.config_text else []
    elif not rows:
        parts = [tag("p", "All settings are at their defaults.")]
    else:
        table = [{"setting": key, "default": old, "here": new} for key, old, new in rows]
        parts = [html_table([{k: Html(escape(v)) for k, v in row.items()} for row in table],
                            "findings", label="settings")]  # fmt: skip
    summary_ = tag("summary", "Every setting (config.yaml)")
    whole = tag("details", summary_, tag("pre", run.config_text))
    return join([*parts, whole if run.config_text else tag("p", "config.yaml is missing.")])


NOT_RECORDED = (
    "What differs from the defaults is not recorded in this run. The command "
    "python train.py name=NAME report_only=true records it."
)


def commands(run: Run, command: str | None) -> Html:
    """The commands that made this run, and one that makes videos of its policy."""
    prompts = [str(row.get("prompt")) for one in run.rounds for row in one.evaluation]
    prompt = prompts[0] if prompts else "..."
    quoted = shlex.quote('prompt="{}"'.format(prompt.replace("\\", "\\\\").replace('"', '\\"')))
    asked = [command] if command else list(run.asked.commands) or [train_command(run)]
    sample = f"python sample.py ckpt={shlex.quote(str(run.path))} {quoted}"
    return tag("pre", "\n".join(f"$ {one}" for one in [*asked, sample]), class_="commands")


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
