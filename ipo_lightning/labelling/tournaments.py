"""Which videos of a prompt are compared with which: schedules of comparisons.

A schedule is a pure function of what has been played, round by round: it names the couples of the
next round, and none once it is finished. It keeps no state, so that a tournament goes on where it
was interrupted, and says the same on every rank.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Annotated

from ipo_lightning.settings import AtLeast, checked

Couple = tuple[int, int]
"""Two of the N items of a tournament, the smaller number first."""
Results = Mapping[Couple, float | None]
"""Couple -> chance that its first is better, a tie counting half; None: no verdict."""
Schedule = Callable[[int, Sequence[Results]], list[Couple]]
"""(N, results of the rounds so far) -> couples of the next round; none where it is finished."""
CLOSE = 0.5
"""Points that may be owed to having sat out a round."""


def next_round(schedule: Schedule, count: int, rounds: Sequence[Results]) -> list[Couple]:
    """The couples of the next round that have not met before; none ends the tournament."""
    met = {couple for results in rounds for couple in results}
    return [couple for couple in schedule(count, rounds) if couple not in met]


def play(
    schedule: Schedule, count: int, compare: Callable[[Sequence[Couple]], Results]
) -> dict[Couple, float | None]:
    """The results of a whole tournament."""
    rounds: list[Results] = []
    while couples := next_round(schedule, count, rounds):
        rounds.append(compare(couples))
    return {couple: won for results in rounds for couple, won in results.items()}


def all_pairs(count: int, rounds: Sequence[Results]) -> list[Couple]:
    """Everything against everything, at once: N (N - 1) / 2 comparisons."""
    return [] if rounds else list(combinations(range(count), 2))


def opposite(count: int, rounds: Sequence[Results]) -> list[Couple]:
    """The k-th of the first half against the k-th of the second: N/2 comparisons, at once."""
    half = count // 2
    return [] if rounds else [(item, half + item) for item in range(half)]


@checked
def swiss(
    count: int,
    rounds: Sequence[Results],
    *,
    extra: Annotated[int, AtLeast(0)] = 0,
    final: bool = True,
) -> list[Couple]:
    """In each round those meet who have fared alike: about N/2 log2 N comparisons.

    After ``ceil(log2 N)`` rounds of N/2 comparisons a critic without noise or ties has left one
    item unbeaten and one that has won nothing, the best and the worst; of seven, where it matters
    who sits out, it may leave two unbeaten.

    Args:
        extra: rounds beyond ``ceil(log2 N)``, for a noisy critic.
        final: ends with a round of up to three comparisons: the first against the last, which is
            the couple that most labels are made of, and the first two and the last two where half
            a point or less lies between them. Where verdicts are chances, points are hardly ever
            far apart: the last two then meet only while that is within half of all pairs, which 8
            items and more never pass without ``extra``.
    """
    regular = max(1, math.ceil(math.log2(count))) + extra if count > 1 else 0
    met = {couple for results in rounds for couple in results}
    ranked = _ranked(count, rounds)
    if len(rounds) < regular:
        return _neighbours(ranked, met)
    if not final or len(rounds) > regular:
        return []
    return sorted(_final(ranked, points(count, rounds), met)[: _room(count, rounds)])


def points(count: int, rounds: Sequence[Results]) -> list[float]:
    """Points of each item: what it won, half for a round that it sat out or that told nothing."""
    total = [0.0] * count
    for results in rounds:
        gained = [0.5] * count
        for (first, second), won in results.items():
            gained[first] = 0.5 if won is None else won
            gained[second] = 1 - gained[first]
        total = [before + now for before, now in zip(total, gained, strict=True)]
    return total


def _ranked(count: int, rounds: Sequence[Results]) -> list[int]:
    """Items by points, the best first; the number decides between equals."""
    total = points(count, rounds)
    return sorted(range(count), key=lambda item: (-total[item], item))


def _neighbours(ranked: Sequence[int], met: set[Couple]) -> list[Couple]:
    """Each with the nearest in rank that it has not met, from both ends inwards by turns."""
    waiting = list(ranked)
    if len(waiting) % 2:
        waiting.remove(_sits_out(ranked, met))
    couples = []
    while waiting:
        one = waiting.pop(0)
        other = next((two for two in waiting if _couple(one, two) not in met), None)
        if other is not None:  # else it has met all that are left, and sits out too
            waiting.remove(other)
            couples.append(_couple(one, other))
        waiting.reverse()
    return couples


def _sits_out(ranked: Sequence[int], met: set[Couple]) -> int:
    """The one nearest to the middle of those that have played most."""
    middle, games = (len(ranked) - 1) / 2, Counter(item for couple in met for item in couple)
    place = min(range(len(ranked)), key=lambda k: (-games[ranked[k]], abs(k - middle), k))
    return ranked[place]


def _final(ranked: Sequence[int], total: Sequence[float], met: set[Couple]) -> list[Couple]:
    """The couples of the last round that have not met, those that matter most first."""
    if len(ranked) < 2:
        return []
    ends = [(ranked[0], ranked[-1])]
    ends += [(a, b) for a, b in (ranked[:2], ranked[-2:]) if total[a] - total[b] <= CLOSE]
    wanted = dict.fromkeys(_couple(one, other) for one, other in ends)
    return [couple for couple in wanted if couple not in met]


def _room(count: int, rounds: Sequence[Results]) -> int:
    """How many couples the last round may have: three, or where verdicts are chances two, and the
    third within half of all pairs."""
    played = [won for results in rounds for won in results.values()]
    if all(won in (None, 0, 0.5, 1) for won in played):
        return 3
    return max(2, count * (count - 1) // 4 - len(played))


def _couple(one: int, other: int) -> Couple:
    return (one, other) if one < other else (other, one)
