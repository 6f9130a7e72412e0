"""The command line as it was typed: which settings are free text is told by the signatures.

A setting whose parameter takes a ``str`` or a ``Path``, and no number, is free text: names,
revisions, models, paths, prompts. Hydra gets its value in quotes (`app.quoting`).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app import audit_settings, checks, compare_settings, sample_settings
from app.entry import composer, group_of, single_runs
from app.quoting import as_text, as_texts, reads_otherwise
from app.signatures import read_signature, settings_of_parts
from ipo_lightning.settings import is_text, is_whole, of_elements, takes_elements

OWN: Mapping[str, Mapping[str, Any]] = {
    "train": checks.SETTINGS,
    "train_critic": checks.SETTINGS,
    "sample": sample_settings.SETTINGS,
    "audit": audit_settings.SETTINGS,
    "compare": compare_settings.SETTINGS,
}
"""Configuration -> its settings that no class takes."""
VALUED = ("--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--package", "-p",
          "--cfg", "-c", "--experimental-rerun")  # fmt: skip
"""Hydra's flags that a value follows."""
INFO = ("--info", "-i")
TOPICS = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""The same, and values of it: it may do without."""


def as_typed(config: str, arguments: Sequence[str]) -> list[str]:
    """The command line for Hydra: flags first, and free text in quotes.

    Values that Hydra reads as they are stay without quotes. In a sweep, commas stand between
    values, but for prompts: these are swept over in quotes, ``prompt="'a, b','c'"``.
    """
    words = flags_first(arguments)
    asked = get_args_parser().parse_known_args(words)[0]
    sweep = asked.multirun or "hydra.mode=MULTIRUN" in words
    hints = list[Hints]()
    if any(map(_may_be_text, words)):  # else nothing has to be composed to tell
        hints = list(_hints(asked.config_name or config, words, asked.config_dir))
    return [_quoted(word, hints, sweep) for word in words]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Hydra's flags before the overrides: in the midst of them argparse loses track."""
    left, flags, overrides, last = list(arguments), [], [], []
    while left:
        word = left.pop(0)
        if word in INFO and not set(left[:1]) & set(TOPICS):
            last.append(word)  # before an override, it would take that for its topic
        elif not word.startswith("-"):
            overrides.append(word)
        else:
            flags.append(word)
            if word in (*INFO, *VALUED):
                flags += left[:1]
                del left[:1]
    return [*flags, *overrides, *last]


def _quoted(word: str, hints: Sequence["Hints"], sweep: bool) -> str:
    """A word of the command line, its value in quotes where it is free text."""
    if not _may_be_text(word):
        return word
    key, _, value = word.partition("=")
    name = key.lstrip("+")
    found = [hint for one in hints if is_text(hint := one.of(name))]
    if not found or (value[:1] in "[{" and all(map(takes_elements, found))):
        return word
    if not sweep or any(map(is_whole, found)):
        return f"{key}={as_text(value)}"
    return f"{key}={as_texts(value)}"


def _may_be_text(word: str) -> bool:
    """Whether a word gives a value that Hydra does not read as it is."""
    key, equals, _ = word.partition("=")
    return bool(equals) and key[:1] not in "-~" and not group_of(key) and reads_otherwise(word)


class Hints:
    """What each setting takes, of a configuration with the choices that were made."""

    def __init__(self, cfg: DictConfig, own: Mapping[str, Any]) -> None:
        self.cfg, self.own = cfg, own

    def of(self, key: str) -> Any:
        """The annotation of a setting; Any where nothing tells it."""
        if key in self.own:
            return self.own[key]
        above, _, name = key.rpartition(".")
        if not above:
            return Any
        if target := self._target(above):
            signature = read_signature(target)
            return signature.hints.get(name, Any) if signature else Any
        return of_elements(self.of(above))

    def _target(self, key: str) -> str | None:
        try:
            return OmegaConf.select(self.cfg, f"{key}._target_")
        except OmegaConfBaseException:  # below a plain value, or it refers to what is not there
            return None


def _hints(config: str, words: Sequence[str], folder: str | None) -> Iterator[Hints]:
    """What the settings take, for each of the choices among the words."""
    own = {**OWN.get(config, {}), **settings_of_parts()}
    chosen = [word for word in words if _chooses(word)]
    if folder and not any(word.startswith("hydra.searchpath=") for word in chosen):
        chosen.append(f"hydra.searchpath=[file://{Path(folder).absolute()}]")
    with composer():
        for one in single_runs(_parsed(chosen)):
            try:
                yield Hints(compose(config, one), own)
            except (HydraException, OmegaConfBaseException, ValueError, TypeError):
                yield Hints(OmegaConf.create(), own)  # what is wrong is said when all is composed


def _chooses(word: str) -> bool:
    """Whether it decides which settings there are."""
    key, equals, value = word.partition("=")
    return bool(equals) and not word.startswith("-") and (
        bool(group_of(key)) or key.endswith("._target_") or "_target_:" in value
        or key == "hydra.searchpath"
    )  # fmt: skip


def _parsed(words: Sequence[str]) -> list[Any]:
    found = []
    for word in words:
        try:
            found.append(OverridesParser.create().parse_override(word))
        except HydraException:  # named when all is composed
            continue
    return found
