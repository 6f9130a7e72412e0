"""Prompts composed by rule, of the paper's six categories: each a function of a seed and a number.

The same seed and number give the same prompt for ever, whatever else is composed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple, TypeVar

from ipo_lightning.errors import InputError
from ipo_lightning.prompts import words
from ipo_lightning.prompts.likeness import Known
from ipo_lightning.prompts.words import PLACES, Deed
from ipo_lightning.seeds import derive_seed

T = TypeVar("T")
Subjects = Mapping[str, Sequence[str]]
Deeds = Mapping[str, Sequence[Deed]]
LONGEST_SEARCH = 2000
"""Compositions in a row that are near-duplicates of others, after which no more are looked for."""


class Draws:
    """The words of one composition.

    Args:
        parts: that determine it: a seed, a category, a number.
    """

    def __init__(self, *parts: str | int) -> None:
        self.parts = parts

    def pick(self, slot: str, options: Sequence[T]) -> T:
        """One of some options, for a place of its own in the prompt."""
        return options[derive_seed("prompts", *self.parts, slot) % len(options)]

    def filmed(self, places: Sequence[str]) -> tuple[str, str]:
        """A place of one of some kinds; and light or camera work there, with a full stop, which in
        one prompt of three is the full stop alone."""
        kind = self.pick("places", places)
        light = f" {self.pick('light', words.LIGHTS[kind])}."
        return self.pick("place", PLACES[kind]), self.pick("shot", (".", light, self.camera()))

    def camera(self) -> str:
        """A sentence on camera work, after a full stop."""
        return f". {self.pick('camera', words.CAMERAS)}"


class Composition(NamedTuple):
    """A composed prompt."""

    prompt: str
    outline: str
    """Who does what in it: part of one prompt of a set alone."""


def _done(subjects: Sequence[str], deeds: Sequence[Deed], draws: Draws) -> Composition:
    """Somebody, what they do, and where."""
    deed = draws.pick("deed", deeds)
    outline = f"{draws.pick('subject', subjects)} {deed.doing}"
    place, shot = draws.filmed(deed.places)
    return Composition(f"{outline} {place}{shot}", outline)


def _of_kind(subjects: Subjects, deeds: Deeds, draws: Draws) -> Composition:
    """The same, of subjects of some kind that do what such do."""
    kind = draws.pick("kind", sorted(subjects))
    return _done(subjects[kind], deeds[kind], draws)


def _action(draws: Draws) -> Composition:
    place, shot = draws.filmed(words.ACTION_PLACES)
    outline = f"{_small(draws.pick('subject', words.PEOPLE))} {draws.pick('first', words.FIRST)}"
    then = draws.pick("then", words.THEN)
    return Composition(f"{_capital(place)}, {outline}, {then}{shot}", outline)


def _place(draws: Draws) -> Composition:
    happening = draws.pick("happening", words.HAPPENINGS)
    outline = happening.format(draws.pick("scene", words.SCENES))
    return Composition(outline + draws.pick("shot", (".", draws.camera())), outline)


def _style(draws: Draws) -> Composition:
    kinds = {**words.ANIMALS, **words.VEHICLES}
    shown = _of_kind(kinds, {**words.ANIMAL, **words.VEHICLE}, draws)
    prompt = f"{draws.pick('style', words.STYLES)} {_small(shown.prompt)}"
    return Composition(prompt, shown.outline)


def _small(text: str) -> str:
    return text[0].lower() + text[1:]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


CATEGORIES: Mapping[str, Callable[[Draws], Composition]] = {
    "human": partial(_done, words.PEOPLE, words.HUMAN),
    "animal": partial(_of_kind, words.ANIMALS, words.ANIMAL),
    "action": _action,
    "vehicle": partial(_of_kind, words.VEHICLES, words.VEHICLE),
    "place": _place,
    "style": _style,
}
"""The paper's categories -> how a prompt of it is composed."""


def compositions(category: str, known: Known, seed: int = 0) -> Iterator[Composition]:
    """Compositions of a category, none like another or like a known one.

    Each is asked for once ``known`` has learnt what became of the one before.

    Raises:
        InputError: there are no more.
    """
    in_vain = 0
    for number in count():
        found = CATEGORIES[category](Draws(seed, category, number))
        if known.like(found.prompt) or known.like(found.outline):
            in_vain += 1
        else:
            in_vain = 0
            yield found
        if in_vain == LONGEST_SEARCH:
            break
    raise InputError(
        f"of the category {category} no further prompts can be composed that are no "
        "near-duplicates: lower n, or add prompts of your own (add path=FILE)"
    )
