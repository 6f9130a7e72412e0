"""A configuration against the signatures of its classes, before any of them is imported.

Importing torch, diffusers and transformers takes seconds; to read a signature from a file takes
milliseconds. What cannot be read so is checked when it is built (`app.entry.build`).
"""

import ast
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from app.entry import HYDRAS
from app.keys import KEYS
from ipo_lightning.errors import InputError, within
from ipo_lightning.settings import PART, Signature, allowing_default, check, takes_object

IMPORTED = ("typing", "collections.abc", "pathlib", "ipo_lightning.settings")
"""Modules that are imported for what annotations mean by their names: they load at once."""
HARMLESS = ("checked", "dataclass", "override", "runtime_checkable", "final")
"""Decorators that leave a signature as it is."""


def check_settings(cfg: DictConfig, own: Mapping[str, Any]) -> None:
    """Refuse values that are not allowed, and settings that a class does not have.

    Args:
        own: key -> annotation, of settings that no class takes.

    Raises:
        InputError: names the setting, what it is, and what to give instead.
    """
    plain = OmegaConf.to_container(cfg, resolve=True)
    for key, hint in {**own, **settings_of_parts(), **own}.items():  # its own hints count
        value = _value(plain, key)
        if value is not ...:  # as a chosen config may lack it
            check(key, value, hint)
    _check_part(plain, "")
    _check_places(plain, "")


def _value(settings: Any, key: str) -> Any:
    """The value of a key; ``...`` where there is none.

    Raises:
        InputError: another value stands where the settings around it should.
    """
    above = ""
    for name in key.split("."):
        if not isinstance(settings, dict):
            named = "give settings by name, as {setting}.NAME=VALUE"
            raise InputError(setting=above, value=settings, expected=named)
        if name not in settings:
            return ...
        settings, above = settings[name], f"{above}.{name}".lstrip(".")
    return settings


def _check_places(node: Any, key: str) -> None:
    """Refuse what is a file and cannot be read to an end, as /dev/zero, whatever it is given for.

    A prompt is none, even if a file has its name.
    """
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict | list):
        parts = node.items() if isinstance(node, dict) else enumerate(node)
    for name, value in parts:
        if str(name) not in ("prompt", "negative_prompt"):
            _check_places(value, f"{key}.{name}".lstrip("."))
    if isinstance(node, str) and _is_special(node):
        endless = "it is a device, a pipe or a socket; give a file or a folder"
        raise InputError(setting=key, value=node, expected=endless)


def _is_special(text: str) -> bool:
    try:
        mode = os.stat(text).st_mode
    except (OSError, ValueError):  # no file, or no name of one
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def settings_of_parts() -> dict[str, Any]:
    """Key -> annotation, of the settings that app/assembly.py hands to parts."""
    return {
        key: signature.hints[name]
        for target, keys in KEYS.items()
        if (signature := read_signature(target))
        for name, key in keys.items()
    }


def _check_part(node: Any, key: str) -> None:
    """Refuse settings that a part's class does not take, and so of all parts within it."""
    if isinstance(node, list):
        for place, value in enumerate(node):
            _check_part(value, f"{key}.{place}")
    if not isinstance(node, dict):
        return
    if signature := read_signature(str(node.get("_target_"))):
        own = {name: value for name, value in node.items() if name not in HYDRAS}
        with _advised(), within(key):
            signature.check({name: value for name, value in own.items() if not _is_open(value)})
            for name, value in own.items():
                if _is_no_part(value) and takes_object(signature.hints.get(name, Any)):
                    raise InputError(setting=name, value=value, expected=f"give {PART}")
    for name, value in node.items() if node.get("_recursive_", True) else ():
        _check_part(value, f"{key}.{name}".lstrip("."))


def _is_open(value: Any) -> bool:
    """Whether it is known only when it is made, or has not been given."""
    return value == "???" or (isinstance(value, dict) and "_target_" in value)


def _is_no_part(value: Any) -> bool:
    """Whether it is a mapping from which nothing is made."""
    return isinstance(value, dict) and "_target_" not in value


@contextmanager
def _advised() -> Iterator[None]:
    """Say how a part of a critic is chosen by its name, where a name stands in its place."""
    try:
        yield
    except InputError as error:
        *above, name = error.setting.split(".")
        groups = {"vlm": "critic/vlm", "critic": "critic"}
        group = "critic" if "members" in above else groups.get(name)
        if error.expected == f"give {PART}" and isinstance(error.value, str) and group:
            at = "" if error.setting == "critic.vlm" else f"@{error.setting}"
            error.expected = f"to choose its settings by a name give {group}{at}=NAME"
        raise


# -------------------------------------------------------------------- signatures from files


class Unknown(KeyError):
    """What cannot be told from files alone."""


class Module(dict[str, Any]):
    """A module's file, as what annotations in it mean by its names: read, never run."""

    def __init__(self, path: Path, package: str) -> None:
        super().__init__()
        self.package = package
        self.nodes: dict[str, ast.AST] = {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for name in _defined(node):
                self.nodes[name] = node

    def find(self, name: str) -> "tuple[Module, ast.AST]":
        """The module in which a name is defined, and its definition there."""
        node = self.nodes.get(name)
        if isinstance(node, ast.ImportFrom) and not node.level:
            return module_of(str(node.module)).find(_origin(node, name))
        if node is None:
            raise Unknown(name)
        return self, node

    def __missing__(self, name: str) -> Any:
        node = self.nodes.get(name)
        if isinstance(node, ast.ImportFrom):
            if node.module in IMPORTED:
                return getattr(import_module(node.module), _origin(node, name))
            if str(node.module).partition(".")[0] != self.package:
                return Any
        home, node = self.find(name)
        if isinstance(node, ast.ClassDef):
            return type(name, (), {})  # enough to know that an object is taken
        if isinstance(node, ast.Assign):
            text = isinstance(node.value, ast.Constant)
            return ast.literal_eval(node.value) if text else home.evaluated(node.value)
        raise Unknown(name)

    def base(self, node: ast.expr) -> "tuple[Module, ast.ClassDef] | None":
        """The class that a class is made from; None of one that has no settings."""
        name = ast.unparse(node.value if isinstance(node, ast.Subscript) else node)
        if name in ("ABC", "Generic", "NamedTuple", "Protocol", "object"):
            return None
        home, found = self.find(name)
        if not isinstance(found, ast.ClassDef):
            raise Unknown(name)
        return home, found

    def evaluated(self, node: ast.expr | None) -> Any:
        """The annotation that an expression stands for; Any where it cannot be told."""
        if node is None:
            return Any
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        try:
            return eval(compile(ast.Expression(node), "annotation", "eval"), {}, self)
        except Exception:  # of a package that is not read, or no annotation at all
            return Any


def _origin(node: ast.ImportFrom, name: str) -> str:
    """What a name is called where it is imported from."""
    return next(one.name for one in node.names if name == (one.asname or one.name))


def _defined(node: ast.stmt) -> list[str]:
    """Names that a statement at the door of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [one.asname or one.name for one in node.names]
    if isinstance(node, ast.Assign):
        return [one.id for one in node.targets if isinstance(one, ast.Name)]
    return []


@cache
def module_of(name: str) -> Module:
    """A module by its full name.

    Raises:
        Unknown: it is not there, or no file of Python.
    """
    top, *within = name.split(".")
    spec = find_spec(top)  # of a package's first name, which imports nothing
    if spec is None:
        raise Unknown(name)
    places = [Path(one) for one in spec.submodule_search_locations or ()]
    files = [Path(spec.origin)] if spec.origin and not within else []
    for place in places:
        path = place.joinpath(*within)
        files += [path / "__init__.py", path.with_suffix(".py")]
    for file in files:
        if file.suffix == ".py" and file.is_file():
            return Module(file, top)
    raise Unknown(name)


@cache
def read_signature(target: str) -> Signature | None:
    """The settings of a ``_target_``; None where its file does not tell them."""
    module, _, name = target.rpartition(".")
    try:
        home, node = module_of(module).find(name)
        found = _of_class(home, node) if isinstance(node, ast.ClassDef) else _of(home, node)
    except (Unknown, OSError, SyntaxError, ValueError, ImportError):
        return None
    return (found or Signature(name, {}, False))._replace(name=name)


def _of_class(home: Module, node: ast.ClassDef) -> Signature | None:
    """What a class is made of; None where it takes nothing."""
    _check_decorators(node)
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name in ("__init__", "__new__"):
            return _of(home, part, drop=1)
    above = [one for one in map(home.base, node.bases) if one is not None]
    found = next(filter(None, (_of_class(*one) for one in above)), None)
    names = [ast.unparse(one) for one in (*node.bases, *node.decorator_list)]
    if not any(name == "NamedTuple" or name.startswith("dataclass") for name in names):
        return found
    own = {
        one.target.id: home.evaluated(one.annotation)
        for one in node.body
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        if "init=False" not in ast.unparse(one) and "ClassVar" not in ast.unparse(one.annotation)
    }
    return Signature(node.name, {**(found.hints if found else {}), **own}, False)


def _of(home: Module, node: ast.AST, drop: int = 0) -> Signature:
    """What a function takes, but for its first parameters."""
    if not isinstance(node, ast.FunctionDef):
        raise Unknown(ast.dump(node))
    _check_decorators(node)
    taken = [*node.args.posonlyargs, *node.args.args]
    given = [None] * (len(taken) - len(node.args.defaults))
    defaults = dict(zip(taken, [*given, *node.args.defaults], strict=True))
    defaults |= dict(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    hints = {
        one.arg: allowing_default(home.evaluated(one.annotation), _constant(default))
        for one, default in [*defaults.items()][drop:]
    }
    return Signature(node.name, hints, node.args.kwarg is not None)


def _check_decorators(node: ast.ClassDef | ast.FunctionDef) -> None:
    for one in node.decorator_list:
        if not ast.unparse(one).startswith(HARMLESS):
            raise Unknown(node.name)


def _constant(default: ast.expr | None) -> Any:
    """A default, as far as it is written out: None is None, other things are not."""
    return default.value if isinstance(default, ast.Constant) else ...
