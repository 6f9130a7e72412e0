"""Settings files that may come from anybody, read as plain data.

No tags, no aliases (a few lines of them stand for gigabytes), nothing that is deep or large, and
nothing that refers to anything: ``${...}`` is text. A run's own config.yaml is written resolved.
"""

import re
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import yaml

from ipo_lightning.errors import InputError

SIZE = 2**18
"""Bytes of a file; config.yaml of a run has about ten thousand."""
DEPTH = 32
"""Mappings and lists within each other."""
DIGITS = 64
"""Characters of a number."""
PLAIN = frozenset(
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null")
)


class _PlainLoader(yaml.SafeLoader):
    """YAML 1.1 without dates, and with ``1e-5`` a number, as OmegaConf writes and reads it."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value of a plain kind; others are refused by their tag."""
        if node.tag not in PLAIN:
            raise yaml.YAMLError(f"{_place(node.start_mark)}: the tag {node.tag[:60]}")
        number = node.tag.endswith((":int", ":float"))
        if number and len(node.value) > DIGITS:
            raise yaml.YAMLError(f"{_place(node.start_mark)}: a number of {len(node.value)} digits")
        return super().construct_object(node, deep)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping, each of whose keys is there once."""
        found: dict[Any, Any] = {}
        for key_node, value in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.YAMLError(f"{_place(key_node.start_mark)}: a key that is no text")
            if key in found:
                raise yaml.YAMLError(f"{_place(key_node.start_mark)}: the key {key} twice")
            found[key] = self.construct_object(value, deep=deep)
        return found


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, kind) for tag, kind in kinds if tag in PLAIN]
    for first, kinds in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+\Z"),
    list("-+0123456789"),
)  # fmt: skip


def read_settings(file: Path, cure: str) -> dict[str, Any]:
    """The mapping in a settings file; see `read_plain`."""
    found = read_plain(file, cure)
    if not isinstance(found, dict):
        held = "nothing" if found is None else f"a {type(found).__name__}"
        raise InputError(f"{file} cannot be read: it holds {held}, not settings by name; {cure}")
    return found


def read_plain(file: Path, cure: str) -> Any:
    """The plain data in a YAML file.

    Args:
        cure: what to do where it cannot be read, for the message.

    Raises:
        InputError: it is damaged, or more than plain data.
    """
    try:
        return parsed(_text(file))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}; {cure}") from error
    except ValueError as error:
        raise InputError(f"{file} cannot be read: {error}; {cure}") from error


def parsed(text: str) -> Any:
    """Plain data from YAML, for the caller alone; the same text is parsed once.

    Raises:
        ValueError: see `_parsed`.
    """
    return deepcopy(_parsed(text))


@lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    """Plain data from YAML.

    Raises:
        ValueError: it is not YAML, or more than plain data; says what in one line.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_PlainLoader):
            if isinstance(event, yaml.AliasEvent):
                raise yaml.YAMLError(f"{_place(event.start_mark)}: an alias, *{event.anchor}")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise yaml.YAMLError(f"{_place(event.start_mark)}: more than {DEPTH} levels")
        return yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - of plain kinds alone
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{_place(error.problem_mark)}: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())[:200]) from error


def _text(file: Path) -> str:
    if not file.is_file():
        raise ValueError("it is no file")
    size = file.stat().st_size
    if size > SIZE:
        raise ValueError(f"it has {size} bytes, more than the {SIZE} of any settings")
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("it is not text in UTF-8") from error


def _place(mark: Any) -> str:
    return "its end" if mark is None else f"line {cast(int, mark.line) + 1}"
