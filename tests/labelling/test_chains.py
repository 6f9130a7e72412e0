"""Where comparisons got no answer, strengths alone make no label."""

import random
from functools import partial

import pytest

from ipo_lightning.labelling import Filters, Labelling, all_pairs
from ipo_lightning.storage.records import Candidate, PairVerdict

N = 5


def candidates() -> list[Candidate]:
    gauges = {"motion": 1.0, "blank": 0.0}
    return [Candidate(0, "a prompt", k, k, f"latents{k}", f"video{k}", gauges) for k in range(N)]


def compared(first: int, second: int, chance: float | None) -> PairVerdict:
    """A verdict with this outcome; None: no answer."""
    lost = None if chance is None else 1 - chance
    tie = None if chance is None else 0.0
    fault = "" if chance is not None else "timeout"
    place = (0, first, second, f"video{first}", f"video{second}", "critic")
    return PairVerdict(*place, chance, tie, lost, fault=fault)


def pairs(verdicts: list[PairVerdict]) -> tuple[list[tuple[int, int]], dict[str, int]]:
    labels = Labelling(partial(all_pairs, margin=0.0), Filters()).pairs(candidates(), verdicts)
    return [(row.winner, row.loser) for row in labels.rows], dict(labels.dropped)  # type: ignore[union-attr]


def test_two_halves_that_never_met_are_not_compared() -> None:
    """0 > 1 and 2 > 3 are known; 2 > 3 > 0 > 1 is the truth."""
    kept, dropped = pairs(
        [compared(0, 1, 1.0), compared(2, 3, 1.0), compared(0, 3, None), compared(1, 2, None)]
    )
    assert sorted(kept) == [(0, 1), (2, 3)]
    assert dropped["no chain of duels between the two"] > 0


def test_what_follows_from_two_comparisons_is_kept() -> None:
    kept, _ = pairs([compared(0, 1, 1.0), compared(1, 2, 1.0)])
    assert sorted(kept) == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("seed", range(30))
def test_no_label_is_wrong_whichever_verdicts_are_missing(seed: int) -> None:
    draw = random.Random(seed)
    place = draw.sample(range(N), N)
    verdicts = [
        compared(i, j, None if draw.random() < 0.5 else float(place[i] < place[j]))
        for i in range(N)
        for j in range(i + 1, N)
    ]
    for winner, loser in pairs(verdicts)[0]:
        assert place[winner] < place[loser]
