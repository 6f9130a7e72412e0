"""Preferences between two videos: probabilities, both orders, Bradley-Terry.

Pure functions of plain numbers. A preference is a distribution over "the first is better",
"neither" and "the second is better".
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Outcome = Literal["first", "tie", "second"]


class Preference(NamedTuple):
    """Probabilities that sum to 1."""

    first: float
    tie: float
    second: float

    @property
    def expected(self) -> float:
        """Chance that the first is better, in [0, 1]; a tie counts half."""
        return 0.5 + 0.5 * (self.first - self.second)

    @property
    def outcome(self) -> Outcome:
        """The likeliest outcome; a tie where two are equally likely."""
        if self.first > max(self.tie, self.second):
            return "first"
        return "second" if self.second > max(self.tie, self.first) else "tie"

    def mirrored(self) -> "Preference":
        """The preference with the two videos exchanged."""
        return Preference(self.second, self.tie, self.first)


def rao_kupper(difference: float, ties: float = 1.0) -> Preference:
    """The preference of two scores, by Bradley-Terry with ties (Rao and Kupper 1967).

    ``P(first) = sigma(d - ln k)``, ``P(second) = sigma(-d - ln k)``, ``P(tie) = (k^2 - 1) P(first)
    P(second)``.

    Args:
        difference: d, the first's score minus the second's, in logits.
        ties: k >= 1; 1: there are no ties.
    """
    if not ties >= 1:
        raise ValueError(f"ties={ties}: give 1 or more")
    first = sigmoid(difference - math.log(ties))
    second = sigmoid(-difference - math.log(ties))
    return Preference(first, (ties * ties - 1) * (first * second), second)


def both_orders(shown: Preference, swapped: Preference) -> tuple[Preference, bool]:
    """The preference without position bias, and whether the two answers agree.

    Args:
        shown: the answer to (A, B). swapped: the answer to (B, A), about (B, A).

    Returns:
        The mean of both, about (A, B), and whether they have the same outcome. Exchanging A and B
        mirrors the result exactly: the sum of two floats does not depend on their order.
    """
    back = swapped.mirrored()
    mean = Preference(*((a + b) / 2 for a, b in zip(shown, back, strict=True)))
    return mean, shown.outcome == back.outcome


def both_orders_of(shown: Mapping[str, float], swapped: Mapping[str, float]) -> dict[str, float]:
    """By dimension: chance that A is better, from the answers to (A, B) and, about B, to (B, A).

    A dimension in which the two disagree is a tie. One that only one answer has is left out: its
    position bias cannot be removed.
    """
    merged = {}
    for name in sorted(shown.keys() & swapped.keys()):
        there, back = shown[name] - 0.5, 0.5 - swapped[name]
        merged[name] = 0.5 + (there + back) / 2 if there * back > 0 else 0.5
    return merged


class Strengths(NamedTuple):
    """The strength of each of N items, in logits, see `bradley_terry`."""

    values: tuple[float, ...]
    """Their mean is 0 within each group of items that were compared with each other."""
    covariance: tuple[tuple[float, ...], ...]
    """(N, N), of the Gaussian approximation to their posterior."""

    def error(self, i: int, j: int) -> float:
        """Standard error of the difference of two strengths."""
        rows = self.covariance
        return math.sqrt(max(rows[i][i] + rows[j][j] - 2 * rows[i][j], 0.0))

    def certainty(self, i: int, j: int) -> float:
        """Chance that item i is stronger than item j, given the comparisons."""
        error = self.error(i, j)
        scaled = (self.values[i] - self.values[j]) / error if error else 0.0
        return 0.5 * math.erfc(-scaled / math.sqrt(2))


RIDGE = 0.1
"""Default precision of the prior of strengths: standard deviation sqrt(10) logits."""


def bradley_terry(
    count: int, outcomes: Mapping[tuple[int, int], float], ridge: float = RIDGE
) -> Strengths:
    """Maximum a posteriori strengths s of the outcomes: ``P(i beats j) = sigma(s_i - s_j)``.

    Maximises ``sum y log sigma(s_i - s_j) + (1 - y) log sigma(s_j - s_i) - ridge / 2 sum s^2``,
    which has one maximum: the prior keeps the strength of an unbeaten item finite, and gives items
    that are not connected by comparisons a large error. The result does not depend on the order of
    the outcomes; items with equal outcomes have exactly equal strengths.

    Args:
        count: N items, numbered from 0.
        outcomes: (i, j) -> y, the chance that i is better, a tie counting half, in [0, 1].
        ridge: precision of the strengths' normal prior around 0, above 0.
    """
    if not ridge > 0:
        raise ValueError(f"ridge={ridge}: give a number above 0")
    if not all(math.isfinite(y) for y in outcomes.values()):
        raise ValueError("an outcome is not a number")
    games = sorted((i, j, y) if i < j else (j, i, 1 - y) for (i, j), y in outcomes.items())
    first = torch.tensor([i for i, _, _ in games], dtype=torch.long)
    second = torch.tensor([j for _, j, _ in games], dtype=torch.long)
    won = torch.tensor([y for _, _, y in games], dtype=torch.float64)
    values, precision = _newton(count, first, second, won, ridge)
    covariance = torch.linalg.inv(precision)
    rounded = tuple(round(value, 9) + 0.0 for value in values.tolist())  # + 0.0: no minus zero
    return Strengths(rounded, tuple(tuple(row) for row in covariance.tolist()))


def _newton(
    count: int, first: Tensor, second: Tensor, won: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """The maximum (N,), and the negative second derivative there (N, N), float64."""
    values = torch.zeros(count, dtype=torch.float64)
    sides = torch.eye(count, dtype=torch.float64)
    design = sides[first] - sides[second]  # (games, N): +1 for the first, -1 for the second
    before = math.inf
    while True:
        chance = torch.sigmoid(design @ values)
        slope = design.T @ (won - chance) - ridge * values
        bend = (chance * (1 - chance))[:, None] * design
        precision = design.T @ bend + ridge * sides
        step = torch.linalg.solve(precision, slope)
        longest = float(step.abs().max()) if count else 0.0
        # Where the step does not get shorter, the rest is rounding.
        if longest < 1e-12 or before <= longest < 1e-3:
            return values, precision
        before = longest
        values = values + step * min(1.0, 1 / longest)  # at most one logit, so as not to overshoot


def sigmoid(x: float) -> float:
    """Logistic function, without overflow."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))
