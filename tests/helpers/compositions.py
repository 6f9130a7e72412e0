"""Hydra composes a choice of files once in a process: parsing and merging them is most of a test.

What is kept is Hydra's own result, and the values of a command line are still Hydra's to put in.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig

from app.entry import CONF

Plugins.instance()  # whose search makes the classes of the sources anew
FileConfigSource = SourcesRegistry.instance().resolve("file")
PARSED: dict[tuple[str, str, int], ConfigResult] = {}
parse = FileConfigSource.load_config


def parse_once(self: ConfigSource, config_path: str) -> ConfigResult:
    """Hydra's reader of a YAML file, which is kept: parsing is a fourth of each composition."""
    file = Path(self.path, self._normalize_file_name(config_path))
    if not file.is_file():
        return parse(self, config_path)
    key = self.provider, str(file), file.stat().st_mtime_ns
    if key not in PARSED:
        PARSED[key] = parse(self, config_path)
    return copy.deepcopy(PARSED[key])


FileConfigSource.load_config = parse_once
CHOSEN: dict[str, Any] = {}
SHIPPED = ("hydra.conf", str(CONF), "")
"""Paths of Hydra's own files, of this project's, and of what is stored in the process."""
find_defaults, merge_defaults = (
    config_loader_impl.create_defaults_list,
    (ConfigLoaderImpl._compose_config_from_defaults_list),
)


def once(repo: IConfigRepository, work: Callable[[], Any], *key: Any) -> Any:
    """What Hydra makes of the choices among files as they are, which is kept: all of a composition
    but the values that are given beside them, which Hydra then changes as ever."""
    own = [Path(source.path) for source in repo.get_sources() if source.path not in SHIPPED]
    if not all(folder.is_dir() for folder in own):
        return work()
    files = [(str(file), file.stat().st_mtime_ns) for one in own for file in one.rglob("*.yaml")]
    place = repr((own, sorted(files), key))
    if place not in CHOSEN:
        CHOSEN[place] = work()
    return CHOSEN[place]


def find_once(
    repo: IConfigRepository, config_name: str | None, overrides_list: list[Override], **rest: bool
) -> DefaultsList:
    """Hydra's list of the files that are chosen, beside the values of this command line."""
    own = Overrides(repo, overrides_list)
    choices = own.override_choices, own.append_group_defaults, own.deletions
    key = "found", config_name, *choices, rest
    found = once(repo, lambda: find_defaults(repo, config_name, overrides_list, **rest), *key)
    return dataclasses.replace(found, config_overrides=own.config_overrides)


def merge_once(
    self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
) -> DictConfig:
    """The content of these files together, which is the caller's own."""
    key = "merged", defaults
    return copy.deepcopy(once(repo, lambda: merge_defaults(self, defaults, repo), *key))


config_loader_impl.create_defaults_list = find_once
ConfigLoaderImpl._compose_config_from_defaults_list = merge_once
