"""Schedules of comparisons: which videos of a prompt are compared, round by round.

A schedule is a pure function of the results so far: it returns the couples of the next round, and
none at the end. It has no state, so that a tournament goes on where it was interrupted, and is the
same on every rank.
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
"""Points that an item gets for a round without a comparison."""


def next_round(schedule: Schedule, count: int, rounds: Sequence[Results]) -> list[Couple]:
    """The couples of the next round that have not met; none: the tournament is finished."""
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
    """Every item against every other in one round: N (N - 1) / 2 comparisons."""
    return [] if rounds else list(combinations(range(count), 2))


def opposite(count: int, rounds: Sequence[Results]) -> list[Couple]:
    """The k-th of the first half against the k-th of the second in one round: N/2 comparisons."""
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
    """Swiss system: items with similar points meet in each round; about N/2 log2 N comparisons.

    After ``ceil(log2 N)`` rounds of N/2 comparisons, with a critic without noise or ties, the best
    item has won all comparisons and the worst none. Of seven items two may be unbeaten, since in
    each round one has no comparison.

    Args:
        extra: rounds beyond ``ceil(log2 N)``, for a noisy critic.
        final: add a last round of up to three comparisons: the first against the last, of which
            most labels are made, and the first two and the last two where they differ by half a
            point or less. Where verdicts are chances, points hardly ever differ by more: then the
            last two meet only while at most half of all pairs are compared, which 8 items and more
            never exceed without ``extra``.
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
    """Points of each item: its chances; a half for a round without a comparison or a verdict."""
    total = [0.0] * count
    for results in rounds:
        gained = [0.5] * count
        for (first, second), won in results.items():
            gained[first] = 0.5 if won is None else won
            gained[second] = 1 - gained[first]
        total = [before + now for before, now in zip(total, gained, strict=True)]
    return total


def _ranked(count: int, rounds: Sequence[Results]) -> list[int]:
    """Items by points, the best first; equal ones by their number."""
    total = points(count, rounds)
    return sorted(range(count), key=lambda item: (-total[item], item))


def _neighbours(ranked: Sequence[int], met: set[Couple]) -> list[Couple]:
    """Couples of neighbours in rank that have not met, from both ends inwards in turns."""
    waiting = list(ranked)
    if len(waiting) % 2:
        waiting.remove(_sits_out(ranked, met))
    couples = []
    while waiting:
        one = waiting.pop(0)
        other = next((two for two in waiting if _couple(one, two) not in met), None)
        if other is not None:  # else it has met all others, and has no comparison
            waiting.remove(other)
            couples.append(_couple(one, other))
        waiting.reverse()
    return couples


def _sits_out(ranked: Sequence[int], met: set[Couple]) -> int:
    """The item without a comparison: of those with most, the nearest to the middle rank."""
    middle, games = (len(ranked) - 1) / 2, Counter(item for couple in met for item in couple)
    place = min(range(len(ranked)), key=lambda k: (-games[ranked[k]], abs(k - middle), k))
    return ranked[place]


def _final(ranked: Sequence[int], total: Sequence[float], met: set[Couple]) -> list[Couple]:
    """The couples of the last round that have not met, the most important first."""
    if len(ranked) < 2:
        return []
    ends = [(ranked[0], ranked[-1])]
    ends += [(a, b) for a, b in (ranked[:2], ranked[-2:]) if total[a] - total[b] <= CLOSE]
    wanted = dict.fromkeys(_couple(one, other) for one, other in ends)
    return [couple for couple in wanted if couple not in met]


def _room(count: int, rounds: Sequence[Results]) -> int:
    """How many couples the last round may have: three; where verdicts are chances two, and a third
    only while at most half of all pairs are compared."""
    played = [won for results in rounds for won in results.values()]
    if all(won in (None, 0, 0.5, 1) for won in played):
        return 3
    return max(2, count * (count - 1) // 4 - len(played))


def _couple(one: int, other: int) -> Couple:
    return (one, other) if one < other else (other, one)
