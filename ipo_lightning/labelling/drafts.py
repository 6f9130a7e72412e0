"""Which drafts of a round a label needs, and which labels of the finals disagree with them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ipo_lightning.labelling.standings import Standing
from ipo_lightning.storage.records import Pair, Point

TURNED = "turned"
"""Why finals give no label: their order, or their side of the bounds, is not that of the drafts."""

Place = tuple[int, int]
"""Prompt index and candidate: of a draft and of the final from the same seed."""


class Drafts(NamedTuple):
    """What a labelling says of a round's drafts."""

    scores: Mapping[Place, float]
    """The critic's scores, or strengths; of the drafts that have one."""
    sides: Mapping[Place, bool]
    """Whether a draft is desirable; of those that would become points."""
    wanted: Mapping[int, tuple[int, ...]]
    """Prompt index -> the candidates that are in a label, ascending."""
    dropped: Mapping[str, int]
    """Reason -> how many candidates, couples or prompts give no label."""
    prompts: int
    """How many prompts have drafts."""

    def turned(self, winner: Standing, loser: Standing) -> bool:
        """Whether the drafts were in the other order."""
        return self.scores[place_of(winner)] < self.scores[place_of(loser)]

    def bound(self, finals: Sequence[Standing]) -> float:
        """The score that divides finals into as many desirable ones as were so as drafts: the
        middle between the two next to it; infinite where all are on one side."""
        desirable = sum(self.sides[place_of(one)] for one in finals)
        ranked = sorted((one.score for one in finals), reverse=True)
        if not 0 < desirable < len(ranked):
            return float("-inf") if desirable else float("inf")
        return (ranked[desirable - 1] + ranked[desirable]) / 2


def place_of(one: Standing) -> Place:
    """Where a candidate stands."""
    return one.candidate.prompt_index, one.candidate.candidate


def drafts_of(
    groups: Iterable[Sequence[Standing]],
    labels: Sequence[Pair] | Sequence[Point],
    dropped: Mapping[str, int],
) -> Drafts:
    """What the standings of drafts, by prompt, and the labels that they would give come to."""
    found = list(groups)
    wanted: dict[int, set[int]] = {}
    for row in labels:
        used = (row.winner, row.loser) if isinstance(row, Pair) else (row.candidate,)
        wanted.setdefault(row.prompt_index, set()).update(used)
    points = [row for row in labels if isinstance(row, Point)]
    return Drafts(
        {place_of(one): one.score for group in found for one in group},
        {(row.prompt_index, row.candidate): row.desirable for row in points},
        {prompt: tuple(sorted(wanted[prompt])) for prompt in sorted(wanted)},
        dropped,
        len(found),
    )
