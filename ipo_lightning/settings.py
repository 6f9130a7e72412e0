"""What a setting may be, declared once: by the annotation of the parameter that takes it.

``rank: Count``, ``decay: Annotated[float, AtLeast(0), Below(1)]``, ``over: Literal["mean",
"min"]``, ``depth: Annotated[Count | None, Null("as many as there are")]``. Plain ``bool``, ``str``,
``float``, ``| None``, ``Sequence[str]``, ``Mapping[str, float]`` say the rest, and a parameter
without an annotation takes anything.

`checked` makes a class or function refuse other values when it is called. The application reads the
same annotations, of anybody's classes, before it builds them (`app.entry.build`).
"""

import functools
import inspect
import operator
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, repeat
from numbers import Integral, Number, Real
from os import PathLike
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from ipo_lightning.errors import InputError

T = TypeVar("T", bound=Callable[..., Any])

# -------------------------------------------------------------------- the vocabulary


@dataclass(frozen=True)
class Bound:
    """What a number keeps."""

    words: str
    holds: Callable[[float, float], bool]
    limit: float


AtLeast = functools.partial(Bound, "at least", operator.ge)
AtMost = functools.partial(Bound, "at most", operator.le)
Above = functools.partial(Bound, "above", operator.gt)
Below = functools.partial(Bound, "below", operator.lt)


@dataclass(frozen=True)
class Endless:
    """The number may be infinite."""


@dataclass(frozen=True)
class Word:
    """What may stand in place of the number until it is settled, as ``auto``."""

    word: str


@dataclass(frozen=True)
class Filled:
    """The text is not empty."""


@dataclass(frozen=True)
class Whole:
    """A comma in the text is part of it, as in a prompt: it separates no values to try in turn."""


@dataclass(frozen=True)
class Null:
    """What None means; for the message."""

    meaning: str


@dataclass(frozen=True)
class Says:
    """What to give, where the type alone says too little; for the message."""

    text: str


Count = Annotated[int, AtLeast(1)]
Share = Annotated[float, AtLeast(0), AtMost(1)]
Positive = Annotated[float, Above(0)]
NotNegative = Annotated[float, AtLeast(0)]
Text = Annotated[str, Filled()]
Prompt = Annotated[str, Whole()]


class Object:
    """Stands for any object, or for the settings that one is made of."""


PART = "the settings of a part, as {setting}._target_=NAME"
"""What to give where an object is taken, in the words of a configuration."""
WIDEST = 2**63
"""Whole numbers are smaller, on both sides of zero: torch and numpy take no others."""
PLAIN = (NoneType, Number, str, list, tuple)
"""Values that are never such an object."""

# -------------------------------------------------------------------- a value and its annotation


class Option(NamedTuple):
    """One member of a union, with the notes of its annotation."""

    kind: Any
    notes: tuple[Any, ...]

    def noted(self, kind: type[Any]) -> list[Any]:
        """Its notes of a kind."""
        return [note for note in self.notes if isinstance(note, kind)]


def check(setting: str, value: Any, hint: Any) -> None:
    """Refuse a value that an annotation does not allow.

    Raises:
        InputError: names the setting, or the element of it that is wrong, and what to give.
    """
    options = list(_options(hint))
    if any(_takes(option, value) for option in options):
        return
    for option in options:
        for place, element, of_element in _elements(option, value):
            check(f"{setting}.{place}", element, of_element)
    raise InputError(setting=setting, value=value, expected=_expected(options, value))


def _options(hint: Any, notes: tuple[Any, ...] = ()) -> Iterator[Option]:
    if isinstance(hint, TypeVar):
        hint = hint.__bound__ or Any
    if get_origin(hint) is Annotated:
        yield from _options(hint.__origin__, (*hint.__metadata__, *notes))
    elif get_origin(hint) in (Union, UnionType):
        for member in get_args(hint):
            yield from _options(member, notes)
    else:
        yield Option(NoneType if hint is None else hint, notes)


def is_text(hint: Any) -> bool:
    """Whether an annotation takes any text, or path, and nothing that is written like one."""
    kinds = [option.kind for option in _options(hint)]
    return any(kind is str or _is_path(kind) for kind in kinds) and not any(
        kind in (int, float, bool) for kind in kinds
    )


def is_whole(hint: Any) -> bool:
    """Whether commas are ordinary in its text."""
    return any(option.noted(Whole) for option in _options(hint))


def takes_elements(hint: Any) -> bool:
    """Whether it takes a list or a mapping."""
    return any(_is_collection(option.kind) for option in _options(hint))


def takes_object(hint: Any) -> bool:
    """Whether it takes an object of a class, and no list or mapping."""
    kinds = [option.kind for option in _options(hint)]
    plain = (int, float, str, bool, NoneType)
    made = [kind for kind in kinds if _is_class(kind) and kind not in plain]
    return bool(made) and not takes_elements(hint) and Any not in kinds


def of_elements(hint: Any) -> Any:
    """The annotation of the elements of a list or a mapping; Any where it tells none."""
    for option in _options(hint):
        if (hints := get_args(option.kind)) and _is_collection(option.kind):
            return hints[1] if issubclass(_class_of(option.kind), Mapping) else hints[0]
    return Any


def _takes(option: Option, value: Any) -> bool:
    kind = option.kind
    if kind in (int, float):
        return _takes_number(option, value)
    if kind is str:
        return isinstance(value, str) and bool(value or not option.noted(Filled))
    if kind in (bool, NoneType):
        return isinstance(value, kind)
    if get_origin(kind) is Literal:
        return any(type(value) is type(one) and value == one for one in get_args(kind))
    if _is_collection(kind):
        return _is_such(kind, value) and all(
            any(_takes(one, element) for one in _options(hint))
            for _, element, hint in _elements(option, value)
        )
    if kind is Object and isinstance(value, Mapping):
        return "_target_" in value
    return not _is_class(kind) or not isinstance(value, PLAIN) or _is_instance(value, kind)


def _takes_number(option: Option, value: Any) -> bool:
    if isinstance(value, str):
        return Word(value) in option.notes
    if isinstance(value, bool) or not isinstance(value, Integral if option.kind is int else Real):
        return False
    number: Any = value
    if option.kind is int and abs(number) >= WIDEST:
        return False
    if not (abs(number) <= sys.float_info.max or (number == number and option.noted(Endless))):
        return False
    return all(bound.holds(number, bound.limit) for bound in option.noted(Bound))


def _elements(option: Option, value: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(name or place, element, annotation) of a value that is such a collection."""
    hints = get_args(option.kind)
    if not hints or not _is_collection(option.kind) or not _is_such(option.kind, value):
        return
    if isinstance(value, Mapping):
        yield from ((name, element, hints[1]) for name, element in value.items())
    else:
        of_each = hints if ... not in hints and len(hints) > 1 else repeat(hints[0])
        yield from zip(count(), value, of_each, strict=False)


def _class_of(kind: Any) -> Any:
    return get_origin(kind) or kind


def _is_class(kind: Any) -> bool:
    return isinstance(_class_of(kind), type) and kind not in (Any, object)


def _is_collection(kind: Any) -> bool:
    """Whether it is one of Python's lists, mappings and the like."""
    plain = _is_class(kind) and _class_of(kind).__module__ in ("builtins", "collections.abc")
    return plain and issubclass(_class_of(kind), Collection) and kind not in (str, bytes)


def _is_path(kind: Any) -> bool:
    return _is_class(kind) and issubclass(_class_of(kind), PathLike)


def _is_such(kind: Any, value: Any) -> bool:
    if issubclass(_class_of(kind), Mapping):
        return isinstance(value, Mapping)
    return isinstance(value, Collection) and not isinstance(value, str | Mapping)


def _is_instance(value: Any, kind: Any) -> bool:
    if _is_path(kind):
        return isinstance(value, str | PathLike)
    try:
        return isinstance(value, _class_of(kind))
    except TypeError:  # of a protocol
        return False


# -------------------------------------------------------------------- what to give instead


def _expected(options: Sequence[Option], value: Any) -> str:
    """What to give instead of a value, as the end of a sentence."""
    given = [option for option in options if option.kind is not NoneType]
    described = {_described(option): option for option in given}
    if len(described) > 1:  # a configuration gives the others
        described.pop(PART, None)
    chosen = all(get_origin(option.kind) is Literal for option in described.values())
    meanings = [note.meaning for option in options for note in option.noted(Null)]
    null = f"null ({meanings[0]})" if meanings else "null"
    words = [*described, *([null] if len(given) < len(options) else [])]
    text = f"{'choose one of' if chosen else 'give'} {', or '.join(words)}"
    if isinstance(value, int) and abs(value) >= WIDEST and any(one.kind is int for one in options):
        return f"{text}, below 2^63"
    if isinstance(value, Number) and any(option.kind is str for option in options):
        shown = value if type(value) is int else "..."  # another was not written like that
        text += f"; one that looks like a number in quotes: '{{setting}}=\"{shown}\"'"
    return text


def _described(option: Option) -> str:
    kind = option.kind
    if said := option.noted(Says):
        return str(said[0].text)
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if kind in (int, float):
        bounds = " and ".join(f"{bound.words} {bound.limit:g}" for bound in option.noted(Bound))
        number = "a whole number" if kind is int else "a number"
        words = [note.word for note in option.noted(Word)]
        return ", or ".join([f"{number}, {bounds}" if bounds else number, *words])
    if kind in (bool, str):
        return "true or false" if kind is bool else "a text"
    if _is_collection(kind):
        return _described_elements(kind)
    return "a text" if _is_path(kind) else PART


def _described_elements(kind: Any) -> str:
    hints = get_args(kind) or (Any, Any)
    if not issubclass(_class_of(kind), Mapping):
        return "a list"
    element = ", or ".join(map(_described, _options(hints[1])))
    return "{NAME: VALUE}" if element == PART else f"{element} to each name, as {{NAME: VALUE}}"


# -------------------------------------------------------------------- signatures


class Signature(NamedTuple):
    """The settings of a class or function."""

    name: str
    hints: Mapping[str, Any]
    """Parameter -> annotation."""
    takes_more: bool
    """Whether it takes any others, as ``**settings``."""

    def check(self, given: Mapping[str, Any]) -> None:
        """Refuse settings that it does not have, and values that it does not allow.

        Raises:
            InputError: names the first.
        """
        for name, value in given.items():
            if name in self.hints:
                check(name, value, self.hints[name])
            elif not self.takes_more:
                unknown = f"{self.name} has no such setting"
                raise InputError(setting=name, value=value, expected=unknown)


def signature_of(maker: Callable[..., Any]) -> Signature | None:
    """The settings that a class or function takes; None where Python does not know them."""
    try:
        parameters = inspect.signature(maker).parameters.values()
    except (TypeError, ValueError):  # a class in C, such as datetime.timedelta
        return None
    function = inspect.unwrap(getattr(maker, "__init__", maker) if _is_class(maker) else maker)
    names = getattr(function, "__globals__", {})
    hints = {
        one.name: allowing_default(evaluated(one.annotation, names), one.default)
        for one in parameters
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }
    more = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return Signature(getattr(maker, "__name__", str(maker)), hints, more)


def evaluated(annotation: Any, names: Mapping[str, Any]) -> Any:
    """What an annotation stands for; Any where it is in quotes and its names are not known."""
    if annotation is inspect.Parameter.empty:
        return Any
    try:
        return eval(annotation, {}, names) if isinstance(annotation, str) else annotation
    except Exception:  # a name that is imported for a type checker alone
        return Any


def allowing_default(hint: Any, default: Any) -> Any:
    """An annotation with None, where that is the default: ``x: int = None``."""
    return Union[hint, None] if default is None else hint  # noqa: UP007 - of any kind


def checked(taken: T) -> T:
    """Have a class, or the keyword-only settings of a function, checked whenever it is called.

    Raises:
        InputError: a value is one that the annotations do not allow.
    """
    function: Any = taken.__init__ if isinstance(taken, type) else taken  # type: ignore[misc]
    parameters = inspect.signature(function).parameters.values()
    places = [one.name for one in parameters] if isinstance(taken, type) else []

    @functools.cache
    def hints() -> Mapping[str, Any]:  # later: now the module is not read to its end
        signature = signature_of(function)
        return signature.hints if signature else {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        known = hints()
        for name, value in chain(zip(places, args, strict=False), kwargs.items()):
            if name in known:
                check(name, value, known[name])
        return function(*args, **kwargs)

    if not isinstance(taken, type):
        return call  # type: ignore[return-value]
    taken.__init__ = call  # type: ignore[misc]
    return taken
