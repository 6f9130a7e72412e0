"""Evaluation videos of a round beside the base model's of the same prompt, number and seed."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch

from ipo_lightning.metrics.intervals import Interval, mean_interval, share_interval
from ipo_lightning.metrics.win_rate import agreement
from ipo_lightning.report.run import RoundFiles, Run
from ipo_lightning.report.tables import Row, finite

JUDGE, CRITIC = "eval_score", "score"
"""Columns of evaluation.jsonl: the held-out judge's scores, the training critic's."""

Draw = tuple[Any, Any, Any, Any]
"""Index of the prompt, the prompt, the video's number and its seed: what pairs two videos."""


def draw(row: Row) -> Draw:
    """What an evaluation video shares with those of other rounds that it is compared with."""
    return row.get("prompt_index"), row.get("prompt"), row.get("candidate"), row.get("seed")


class Paired(NamedTuple):
    """An evaluation video of a round, and the base's of the same draw."""

    row: Row
    base: Row

    def change(self, column: str = JUDGE) -> float | None:
        """A score minus the base's; None where one is missing."""
        return difference(self.row.get(column), self.base.get(column))

    def change_of(self, group: str, name: str) -> float | None:
        """The same of an entry of a mapping, such as a dimension."""
        row, base = ((one.get(group) or {}).get(name) for one in self)
        return difference(row, base)

    @property
    def category(self) -> str | None:
        """The prompt's category, where it has one."""
        found = self.row.get("category") or self.base.get("category")
        return str(found) if found else None


def difference(value: Any, other: Any) -> float | None:
    """One number minus another; None where one is missing."""
    first, second = finite(value), finite(other)
    return None if first is None or second is None else first - second


def paired(run: Run, number: int) -> list[Paired]:
    """The videos of a round that the base has too, in the order of the evaluation."""
    by_number = {one.number: one for one in run.rounds}
    if number not in by_number or 0 not in by_number:
        return []
    base = {draw(row): row for row in by_number[0].evaluation}
    rows = by_number[number].evaluation
    return [Paired(row, base[draw(row)]) for row in rows if draw(row) in base]


Measure = Callable[[Paired], float | None]


def known(pairs: Iterable[Paired], measure: Measure) -> tuple[torch.Tensor, torch.Tensor]:
    """Values that are not missing, float64 (N,), and the prompt of each, (N,)."""
    found = [(value, one.row.get("prompt_index")) for one in pairs
             if (value := measure(one)) is not None]  # fmt: skip
    places = {index: i for i, index in enumerate(dict.fromkeys(index for _, index in found))}
    values = torch.tensor([value for value, _ in found], dtype=torch.float64)
    return values, torch.tensor([places[index] for _, index in found], dtype=torch.long)


def mean_change(pairs: Iterable[Paired], measure: Measure = Paired.change) -> Interval:
    """Mean change over the pairs, with its 95 % interval over prompts."""
    return mean_interval(*known(pairs, measure))


def share_won(pairs: Iterable[Paired]) -> Interval:
    """Share of the pairs that the round wins by the judge, a tie counting half."""
    values, prompts = known(pairs, Paired.change)
    return share_interval(agreement(values), prompts)


class Record(NamedTuple):
    """Pairs won, tied and lost by the judge."""

    won: int
    tied: int
    lost: int

    def __str__(self) -> str:
        return f"{self.won} / {self.tied} / {self.lost}"


def record(pairs: Iterable[Paired]) -> Record:
    """How many pairs the round wins, ties and loses; those without a score are left out."""
    changes = [change for one in pairs if (change := one.change()) is not None]
    won, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return Record(won, len(changes) - won - lost, lost)


def grouped(pairs: Sequence[Paired], key: Callable[[Paired], Any]) -> dict[Any, list[Paired]]:
    """The pairs by a key, in the order in which it appears; those without one are left out."""
    groups: dict[Any, list[Paired]] = {}
    for one in pairs:
        if (name := key(one)) is not None:
            groups.setdefault(name, []).append(one)
    return groups


def by_prompt(pairs: Sequence[Paired]) -> dict[tuple[Any, str], list[Paired]]:
    """The pairs by index and text of their prompt."""
    return grouped(pairs, lambda one: (one.row.get("prompt_index"), str(one.row.get("prompt"))))


def score_interval(one: RoundFiles, column: str) -> Interval:
    """Mean score of a round's videos, with its 95 % interval over prompts."""
    return mean_change([Paired(row, {}) for row in one.evaluation],
                       lambda pair: finite(pair.row.get(column)))  # fmt: skip
