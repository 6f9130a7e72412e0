"""Free text in Hydra's grammar: quoted so that it is read as it was typed.

Without quotes ``7064e87`` is a number, ``a, b`` a list to try in turn, ``{x`` an error, and
``${seed}`` stands for another setting.
"""

import re
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
SWEEPS = re.compile(r"(choice|range|interval|glob|shuffle|sort|tag)\(.*\)", re.DOTALL)
"""Values that Hydra tries in turn."""


def without_references(value: Any) -> Any:
    """Plain data that OmegaConf reads as it is: what looks like an interpolation is text."""
    if isinstance(value, dict):
        return {key: without_references(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_references(one) for one in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\*)\$\{", lambda found: f"{found[1] * 2}\\${{", value)


def quoted(text: str) -> str:
    """A text in quotes, as Hydra takes it: backslashes count before a quote and at the end."""
    text = re.sub(r"(\\*)('|\Z)", _escaped_quote, without_references(text))
    return f"'{text}'"


def _escaped_quote(found: re.Match[str]) -> str:
    return found[1] * 2 + ("\\'" if found[2] else "")


def as_text(value: str) -> str:
    """A value of the command line that Hydra reads as the text that was typed.

    One in quotes keeps them, and refers to nothing either. ``null`` alone stays null.
    """
    if value in ("", "null") or _is_plain(value):
        return value
    if QUOTED.fullmatch(value):
        return re.sub(r"(?<!\\)((?:\\\\)*)\$\{", lambda found: f"{found[1]}\\${{", value)
    return quoted(value)


def as_texts(value: str) -> str:
    """The same of a value in a sweep, where commas stand between the texts to try in turn."""
    if choice := re.fullmatch(r"choice\((.*)\)", value, re.DOTALL):
        return f"choice({as_texts(choice[1])})"
    if SWEEPS.fullmatch(value):
        return value
    return ",".join(map(as_text, split(value)))


def split(value: str) -> Iterator[str]:
    """The parts between commas, but for those within quotes."""
    start = 0
    for found in re.finditer(f"{QUOTED.pattern}|,|$", value, re.DOTALL):
        if found[0] in (",", "") and found.start() >= start:
            yield value[start : found.start()].strip()
            start = found.end()


def _is_plain(value: str) -> bool:
    """Whether Hydra reads a value as the text that it is, without quotes."""
    if "${" in value:
        return False
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return False
    return not override.is_sweep_override() and override.value() == value


def reads_otherwise(word: str) -> bool:
    """Whether Hydra takes the value of ``KEY=VALUE`` for anything but the text that it is."""
    _, equals, value = word.partition("=")
    return bool(equals) and value not in ("", "null") and not _is_plain(value)
