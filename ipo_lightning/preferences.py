"""Preferences between two videos: probabilities, both orders, Bradley-Terry.

Pure functions of plain numbers. A preference is a distribution over "the first is better",
"neither" and "the second is better".
"""

import math
from typing import Literal, NamedTuple

Outcome = Literal["first", "tie", "second"]


class Preference(NamedTuple):
    """Probabilities that sum to 1."""

    first: float
    tie: float
    second: float

    @property
    def expected(self) -> float:
        """Chance that the first is better, a tie counting half, in [0, 1]."""
        return 0.5 + 0.5 * (self.first - self.second)

    @property
    def outcome(self) -> Outcome:
        """The likeliest; where two are equally likely, a tie."""
        if self.first > max(self.tie, self.second):
            return "first"
        return "second" if self.second > max(self.tie, self.first) else "tie"

    def mirrored(self) -> "Preference":
        """The same with the two videos exchanged."""
        return Preference(self.second, self.tie, self.first)


def rao_kupper(difference: float, ties: float = 1.0) -> Preference:
    """Scores to a preference, by Bradley-Terry with ties (Rao and Kupper 1967).

    ``P(first) = sigma(d - ln k)``, ``P(second) = sigma(-d - ln k)``, and the rest, ``(k^2 - 1)
    P(first) P(second)``, is the tie.

    Args:
        difference: d, the first's score minus the second's, in logits.
        ties: k >= 1; 1 leaves no room for ties.
    """
    if not ties >= 1:
        raise ValueError(f"ties={ties}: give 1 or more")
    first = sigmoid(difference - math.log(ties))
    second = sigmoid(-difference - math.log(ties))
    return Preference(first, (ties * ties - 1) * first * second, second)


def both_orders(shown: Preference, swapped: Preference) -> tuple[Preference, bool]:
    """The preference freed of the place's influence, and whether the two answers agree.

    Args:
        shown: the answer to (A, B). swapped: the answer to (B, A), about (B, A).

    Returns:
        The mean, about (A, B), and whether both answers have the same outcome. Exchanging A and B
        mirrors it exactly: sums of two floats do not depend on their order.
    """
    back = swapped.mirrored()
    mean = Preference(*((a + b) / 2 for a, b in zip(shown, back, strict=True)))
    return mean, shown.outcome == back.outcome


def sigmoid(x: float) -> float:
    """Logistic function, without overflow."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    return math.exp(x) / (1 + math.exp(x))
