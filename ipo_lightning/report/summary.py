"""The run in Markdown, for a README, an issue or a paper's notes."""

from collections.abc import Sequence
from pathlib import Path

from ipo_lightning.guards import alarms
from ipo_lightning.report.costs import cost_rows
from ipo_lightning.report.parts import train_command
from ipo_lightning.report.run import Run
from ipo_lightning.report.tables import Row, rounds_rows
from ipo_lightning.report.verdict import answers, headline

PLOTS = ("rounds", "dimensions", "training")
"""Names of the files that `plots` draws, without their endings."""


def markdown(run: Run, folder: Path, command: str | None = None) -> str:
    """The verdict, the answers, the alarms, the tables, and the plots that lie in ``folder``."""
    told = [f"- guards, round {line['round']}: {plain(text)}"
            for line in run.lines for text in alarms(line)]  # fmt: skip
    asked = [command] if command else list(run.asked.commands) or [train_command(run)]
    plots = [f"![{name}]({name}.png)" for name in PLOTS if (folder / f"{name}.png").exists()]
    parts = [
        f"# {plain(run.name)}",
        plain(headline(run.lines)),
        "\n".join(f"- **{one.question}:** {plain(one.text)}" for one in answers(run)),
        "\n".join(told),
        code(asked),
        markdown_table(rounds_rows(run.lines)),
        "\n\n".join(plots),
        markdown_table(cost_rows(run)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows of text as a table; "" without rows."""
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[plain(str(text)) for text in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(text: str) -> str:
    """Text in which Markdown and HTML find nothing to format, on one line."""
    escaped = "".join(f"\\{one}" if one in "\\`*_[]<>|#&!~" else one for one in text)
    return " ".join(escaped.split())


def code(lines: Sequence[str]) -> str:
    """Lines as a block that nothing in them can close."""
    return "\n".join("    " + " ".join(line.split()) for line in lines)
