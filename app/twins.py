"""The held-out judge is never the critic's twin: it would see none of the critic's mistakes.

Twins share weights or rules, under whatever name: as a member of an ensemble, within another class,
by another revision of a hub id, or in a copied folder.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ipo_lightning.errors import InputError, readable

OURS = "ipo_lightning."
PEOPLE = "ipo_lightning.critics.people."
"""People are no model: they may label videos and judge others."""
WITHIN = ("members", "critic")
"""Settings of our classes that hold other critics; of others' classes every object may be one."""
NAMES = ("path", "model")
"""Settings that name a model: a hub id, a folder, or the name that a server knows it by."""
NO_WEIGHTS = ("base", "processor", "answers", "cache")
"""Settings that may name a folder with weights of which none are used."""
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".gguf", ".onnx")


@dataclass
class Make:
    """What the mistakes of one critic come from.

    Args:
        key: its setting, such as ``critic.members.clip``. marks: model names, or the class of one
            without a model. files: of weights.
    """

    key: str
    marks: set[str] = field(default_factory=set)
    files: list[Path] = field(default_factory=list)


def refuse_twins(critic: Any, judge: Any) -> None:
    """Refuse a judge with the weights or rules of the critic, as far as settings and files tell.

    Args:
        critic: the settings under ``critic``, as plain data. judge: those under ``eval_critic``.

    Raises:
        InputError: names both settings.
    """
    for theirs in makes(critic, "critic"):
        for its in makes(judge, "eval_critic"):
            if shared := _shared(theirs, its):
                raise _twins(its.key, theirs.key, shared)


def refuse_alike(critic: Any, judge: Any) -> None:
    """The same of critics that are there: by the models and rules that their identities name.

    Raises:
        InputError: names what they share.
    """
    if shared := sorted(_models(critic) & _models(judge)):
        raise _twins("eval_critic", "critic", shared[0])


def _twins(its: str, theirs: str, shared: str) -> InputError:
    return InputError(
        f"{its} is the twin of {theirs} ({shared}): a judge with the critic's weights or rules "
        "shares its mistakes, and cannot tell whether the videos got better.\n"
        "Choose a judge of another make by eval_critic=NAME (docs/critics.md), or remove the member"
    )


def _models(critic: Any) -> set[str]:
    """``model@revision`` of the identity of a critic and of all critics within it."""
    if hasattr(critic, "recall"):  # of people's answers
        return set()
    held = [*getattr(critic, "members", {}).values(), *getattr(critic, "__dict__", {}).values()]
    within = [one for one in held if hasattr(one, "rate") or hasattr(one, "compare")]
    found = set().union(*map(_models, within))
    combines = bool(getattr(critic, "members", None))  # its identity begins with its own kind
    return found if combines else found | {str(critic.identity).partition("#")[0]}


# -------------------------------------------------------------------- settings


def makes(node: Any, key: str) -> Iterator[Make]:
    """The make of a critic, or of each of those that it combines."""
    target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
    if not target or target.startswith(PEOPLE):
        return
    ours = target.startswith(OURS)
    inner = list(_objects(node, key, WITHIN if ours else None))
    for place, one in inner:
        yield from makes(one, place)
    if inner and ours:
        return
    make = Make(key)
    for name, text in _texts(node):
        if name in NAMES:
            make.marks.add(_model_name(text))
        if name not in NO_WEIGHTS:
            make.files += _weight_files(text, hub=name in NAMES)
    if not make.marks and not make.files:
        make.marks.add(target if ours else f"{target} with {dict(node)}")
    yield make


def _objects(node: Any, key: str, names: tuple[str, ...] | None) -> Iterator[tuple[str, Any]]:
    """The objects among the settings of one, with their keys.

    Args:
        names: of settings that are looked at; None: all.
    """
    for name, value in node.items() if isinstance(node, Mapping) else enumerate(node):
        if names is not None and name not in names:
            continue
        place = f"{key}.{name}"
        if isinstance(value, Mapping) and "_target_" in value:
            yield place, value
        elif isinstance(value, Mapping | list | tuple):
            yield from _objects(value, place, None)


def _texts(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Last name of the key, and value, of every text."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _texts(value, str(key))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value, name)
    elif isinstance(node, str) and node:
        yield name, node


def _model_name(text: str) -> str:
    """A model's name without its revision; of a folder where it really lies."""
    path = os.path.expanduser(text)
    return os.path.realpath(path) if os.path.exists(path) else text.partition("@")[0].casefold()


# -------------------------------------------------------------------- files


def _weight_files(text: str, *, hub: bool) -> list[Path]:
    """Files of weights in the file or folder that a text names, or in the cache of a hub id."""
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path):
        return [path] if path.suffix.lower() in WEIGHTS else []
    if os.path.isdir(path) and (hub or os.sep in text):
        return _weights_in(path)
    return _weights_in(_cache_of(text)) if hub and text.count("/") == 1 else []


def _cache_of(hub_id: str) -> Path:
    """Where a hub's files lie once they are downloaded."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE, "models--" + hub_id.partition("@")[0].replace("/", "--"), "snapshots")


def _weights_in(folder: Path) -> list[Path]:
    found = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in WEIGHTS)
    return [path for path in found if path.is_file()]


def _shared(one: Make, other: Make) -> str:
    """What two critics have in common; "" where there is nothing."""
    if marks := sorted(one.marks & other.marks):
        return marks[0]
    sizes = [{_size(path) for path in make.files} for make in (one, other)]
    both = {size for size in sizes[0] & sizes[1] if size}
    found = [{_content(path): path for path in make.files if _size(path) in both}
             for make in (one, other)]  # fmt: skip
    same = found[0].keys() & found[1].keys()
    return f"the weights in {found[1][min(same)]}" if same else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # refused where it is read
        return 0


def _content(path: Path) -> str:
    """A hash of the file; only files of equal size come here.

    Raises:
        InputError: it cannot be read.
    """
    from ipo_lightning.storage.store import sampled_hash

    with readable(path):
        return sampled_hash(path)
