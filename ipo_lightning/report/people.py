"""How the people who labelled worked, where a run's critic was people."""

from collections.abc import Mapping
from pathlib import Path

from ipo_lightning.critics.people.answers import Account, read_answers
from ipo_lightning.errors import InputError
from ipo_lightning.report.markup import Html, html_table, section, tag
from ipo_lightning.report.run import Run
from ipo_lightning.report.tables import number

NOTE = (
    "From the files that annotators handed in, for all runs that share them. A repeat is a "
    "question that was asked twice unnoticed, sides swapped: how often somebody agrees with "
    "themselves bounds what their labels can teach."
)


def people(run: Run) -> Html:
    """A table of annotators; nothing where the run's critic has no answers of people."""
    critic = run.config.get("critic")
    place = critic.get("answers") if isinstance(critic, Mapping) else None
    if not isinstance(place, str):
        return Html("")
    beside = run.path.parent / Path(place).name  # where a run was moved with its store
    path = Path(place) if Path(place).exists() else beside
    try:
        accounts = read_answers(path).accounts()
    except InputError as error:
        return section("People", tag("p", str(error), class_="warning"))
    table = html_table([_row(one) for one in accounts]) if accounts else tag(
        "p", "No answers yet.", class_="empty"
    )  # fmt: skip
    return section("People", table, note=NOTE)


def _row(one: Account) -> dict[str, str]:
    return {
        "annotator": one.annotator or "(no name)",
        "answers": number(one.answers),
        "ties": number(one.ties),
        "cannot say": number(one.cannot_say),
        "seconds": "-" if one.seconds is None else f"{one.seconds:.1f}",
        "repeats alike": f"{one.agreed} / {one.repeats}",
    }
