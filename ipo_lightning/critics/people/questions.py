"""What one annotator is asked: in which order, which video on which side, and what twice.

All of it is a function of (seed, annotator, question): the page can be written again, and two
annotators see different sides and orders.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from ipo_lightning.critics.protocols import Question
from ipo_lightning.seeds import derive_seed
from ipo_lightning.settings import Share, checked

APART = 5
"""Other questions at least between a question and its repeat, where there are so many."""


class Shown(NamedTuple):
    """One question as one annotator sees it."""

    id: str
    """Names the question and, where it is asked twice, the time; it tells neither."""
    prompt: str
    left: str
    """sha256 of the video on the left."""
    right: str


@checked
def plan(
    questions: Sequence[Question], *, annotator: str, seed: int, repeats: Share
) -> list[Shown]:
    """The questions in an annotator's order, hidden repeats with swapped sides among them.

    Args:
        repeats: share of the questions that are asked a second time, in [0, 1], rounded up.
    """
    draw = _Draw(seed, annotator)
    order = sorted(questions, key=lambda one: draw.seed("order", one))
    again = sorted(order, key=lambda one: draw.seed("repeat", one))[: ceil(repeats * len(order))]
    places = {question: place for place, question in enumerate(order)}
    laid = [(Fraction(place), draw.shown(one, 0)) for one, place in places.items()]
    laid += [(draw.later(one, places[one], len(order)), draw.shown(one, 1)) for one in again]
    return [shown for _, shown in sorted(laid, key=lambda one: one[0])]


class _Draw:
    """An annotator's own randomness."""

    def __init__(self, seed: int, annotator: str) -> None:
        self.parts = (seed, annotator)

    def seed(self, purpose: str, question: Question) -> int:
        return derive_seed("annotate", purpose, *self.parts, *question)

    def shown(self, question: Question, time: int) -> Shown:
        turned = self.seed("side", question) % 2 != time  # the second time, the other way round
        left, right = question[:2] if turned else (question.second, question.first)
        return Shown(f"{self.seed(f'id {time}', question):016x}", question.prompt, left, right)

    def later(self, question: Question, place: int, count: int) -> Fraction:
        """Where a repeat stands among ``count`` questions: after its own, and not too soon."""
        earliest = min(place + APART, count - 1)
        room = count - earliest
        return earliest + Fraction(1, 2) + self.seed("place", question) % room
