"""One annotator's questions: their order, the sides of the videos, and the hidden repeats.

All are a function of (seed, annotator, question), so that a page can be written again; annotators
see different orders and sides.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import NamedTuple

from ipo_lightning.critics.protocols import Question
from ipo_lightning.seeds import derive_seed
from ipo_lightning.settings import Share, checked

APART = 5
"""Least number of questions between a question and its repeat, if there are as many."""


class Shown(NamedTuple):
    """A question as an annotator sees it."""

    id: str
    """A hash of the question and of whether this is its repeat; it reveals neither."""
    prompt: str
    left: str
    """sha256 of the video on the left."""
    right: str


@checked
def plan(
    questions: Sequence[Question], *, annotator: str, seed: int, repeats: Share
) -> list[Shown]:
    """The questions in an annotator's order, with hidden repeats on swapped sides.

    Args:
        repeats: share of the questions that are asked again, in [0, 1], rounded up.
    """
    draw = _Draw(seed, annotator)
    order = sorted(questions, key=lambda one: draw.seed("order", one))
    again = sorted(order, key=lambda one: draw.seed("repeat", one))[: ceil(repeats * len(order))]
    places = {question: place for place, question in enumerate(order)}
    laid = [(Fraction(place), draw.shown(one, 0)) for one, place in places.items()]
    laid += [(draw.later(one, places[one], len(order)), draw.shown(one, 1)) for one in again]
    return [shown for _, shown in sorted(laid, key=lambda one: one[0])]


class _Draw:
    """The random choices of one annotator's page."""

    def __init__(self, seed: int, annotator: str) -> None:
        self.parts = (seed, annotator)

    def seed(self, purpose: str, question: Question) -> int:
        return derive_seed("annotate", purpose, *self.parts, *question)

    def shown(self, question: Question, time: int) -> Shown:
        turned = self.seed("side", question) % 2 != time  # the repeat has the other sides
        left, right = question[:2] if turned else (question.second, question.first)
        return Shown(f"{self.seed(f'id {time}', question):016x}", question.prompt, left, right)

    def later(self, question: Question, place: int, count: int) -> Fraction:
        """The place of a repeat among ``count`` questions: after the question, and not too soon."""
        earliest = min(place + APART, count - 1)
        room = count - earliest
        return earliest + Fraction(1, 2) + self.seed("place", question) % room
