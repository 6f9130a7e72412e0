"""Statistics of the annotators, where people were a run's critic."""

from collections.abc import Mapping
from pathlib import Path

from ipo_lightning.critics.people.answers import Account, read_answers
from ipo_lightning.errors import InputError
from ipo_lightning.report.markup import Html, html_table, section, tag
from ipo_lightning.report.run import Run
from ipo_lightning.report.tables import number

NOTE = (
    "From the annotators' files, for all runs that share them. A repeat is a question that was "
    "shown again with sides swapped. How often annotators agree with themselves limits what can be "
    "learnt from their labels."
)


def people(run: Run) -> Html:
    """A table of annotators; nothing where the run's critic has no answers of people."""
    critic = run.config.get("critic")
    place = critic.get("answers") if isinstance(critic, Mapping) else None
    if not isinstance(place, str):
        return Html("")
    moved = run.path.parent / Path(place).name  # if the run was moved with its store
    path = Path(place) if Path(place).exists() else moved
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
        "same on repeats": f"{one.agreed} / {one.repeats}",
    }
