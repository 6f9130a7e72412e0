"""How an answer is read: by whole fields at its end.

The verdict is at the end, after the reasoning. An answer with two different verdicts is unreadable,
and so is one that was cut off, one in another format, or one with further words.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ipo_lightning.critics.vlm.client import Reply
from ipo_lightning.critics.vlm.templates.base import Unreadable

T = TypeVar("T")

DECIMAL = re.compile(r"[0-9]{1,4}(\.[0-9]{1,9})?")
THINKING = re.compile(r"<(/?)think>")


def words(reply: Reply) -> str:
    """The text of an answer.

    Raises:
        Unreadable: it is empty.
    """
    text = reply.text.strip()
    if not text:
        raise Unreadable("empty")
    return text


def after_thinking(text: str, required: bool = False) -> str:
    """The text after the block ``<think>...</think>``; its opening tag may be in the chat template.

    Args:
        required: whether there must be such a block.

    Raises:
        Unreadable: the block does not end, does not come first, or is not the only one.
    """
    marks = [(mark[1], mark.start(), mark.end()) for mark in THINKING.finditer(text)]
    kinds = [kind for kind, _, _ in marks]
    if not marks and not required:
        return text
    if kinds not in (["/"], ["", "/"]):
        raise Unreadable("not one whole block of reasoning")
    if len(kinds) == 2 and text[: marks[0][1]].strip():
        raise Unreadable("words before the reasoning")
    return text[marks[-1][2] :].strip()


def lines(text: str) -> list[str]:
    """The lines that are not empty, without the marks of bold type."""
    plain = (line.replace("**", "").strip() for line in text.splitlines())
    return [line for line in plain if line]


def last_fields(
    text: str, labels: Sequence[str], parse: Callable[[str], T], header: str = ""
) -> dict[str, T]:
    """The values of the fields ``label: value`` that end an answer, a line each, in any order.

    Args:
        labels: each must be there once, in either case.
        parse: reads a value, or raises `Unreadable`.
        header: a line that must come before the fields; "": none.

    Raises:
        Unreadable: the last lines are not exactly these fields, or earlier fields contradict them.
    """
    found = lines(text)
    start = len(found) - len(labels)
    if header and (start < 1 or found[start - 1].removesuffix(":") != header):
        raise Unreadable(f"does not end with {header} and its {len(labels)} lines")
    fields: dict[str, T] = {}
    for line in found[max(start, 0) :]:
        label, value = field(line, labels)
        if label in fields:
            raise Unreadable(f"{label} twice")
        fields[label] = parse(value)
    for label in labels:
        if label not in fields:
            raise Unreadable(f"{label} is missing")
    _refuse_others(found[:start], fields, parse)
    return fields


def field(line: str, labels: Sequence[str]) -> tuple[str, str]:
    """Label and value of a line ``label: value``.

    Raises:
        Unreadable: it is another line.
    """
    name, colon, value = line.partition(":")
    for label in labels:
        if colon and name.isascii() and name.strip().lower() == label.lower():
            return label, value.strip()
    raise Unreadable(f"no field: {line[:60]}")


def _refuse_others(earlier: Sequence[str], fields: dict[str, T], parse: Callable[[str], T]) -> None:
    for line in earlier:
        try:
            label, text = field(line, list(fields))
            value = parse(text)
        except Unreadable:
            continue  # a line of the reasoning
        if value != fields[label]:
            raise Unreadable(f"two answers: {label} is {value} and {fields[label]}")


def number(text: str, least: float, most: float) -> float:
    """A decimal number in plain digits.

    Raises:
        Unreadable: it is something else, NaN, infinite, or out of bounds.
    """
    if not DECIMAL.fullmatch(text):
        raise Unreadable(f"no number: {text[:60]}")
    value = float(text)
    if not least <= value <= most:
        raise Unreadable(f"{text} is not within {least:g} to {most:g}")
    return value


def agreed(values: Sequence[T]) -> T:
    """The value that all of them have.

    Raises:
        Unreadable: there is none, or they differ.
    """
    if not values:
        raise Unreadable("no answer")
    if any(value != values[0] for value in values):
        raise Unreadable(
            f"two answers: {values[0]} and {next(v for v in values if v != values[0])}"
        )
    return values[0]


def json_object(text: str) -> dict[str, Any]:
    """The JSON object that a text consists of, with or without a code fence.

    Raises:
        Unreadable: there is more or less, a key is repeated, or a number is not finite.
    """
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*)\n\s*```", text, re.DOTALL)
    inner = fenced[1] if fenced else text
    try:
        value = json.loads(inner, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"no JSON: {str(error)[:60]}") from error
    if not isinstance(value, dict):
        raise Unreadable("no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Unreadable("a key stands twice")
    return made


def _refuse_constant(name: str) -> float:
    raise Unreadable(f"{name} is no number")
