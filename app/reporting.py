"""What a run's report is told by the entry point: its commands, and which settings are its own."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from app.entry import HYDRAS, PASSING, composer, settings, within_clone
from ipo_lightning.report import write_report
from ipo_lightning.report.run import Asked, read_asked, read_config
from ipo_lightning.storage.layout import RunDir

COMMANDS = 20
"""At most so many commands of a run are kept, the newest."""
SHOWN = ("round", "guards")
"""Keys that change no result, and are told all the same."""


def write_down(run: RunDir, command: str | None) -> None:
    """Write down which settings of a run are not at their defaults, and the command that is given.

    Args:
        command: None: it only makes the report anew.
    """
    before = read_asked(run.path)
    if command is None and before.settings is not None:
        return  # nothing is new
    commands = [one for one in before.commands if one != command]
    commands = [*commands, command][-COMMANDS:] if command else commands
    own = settings_of_run(run)
    if own is not None:
        Asked(tuple(commands), tuple(own)).write(run.path)


def command_line() -> str:
    """The command that this process was started by."""
    return shlex.join(["python", *sys.argv])


def settings_of_run(run: RunDir) -> list[tuple[str, str, str]] | None:
    """Setting, default and value here of all that differs; None without a config.yaml."""
    own = within_clone(dict(read_config(run)))
    if not own:
        return None
    default, chosen = default_settings()
    found = [(key, choice, here) for key, choice in sorted(chosen.items())
             if (here := chosen_here().get(key, choice)) != choice]  # fmt: skip
    groups = {key for key, *_ in found}
    mine = {key: own[key] for key in default if key in own}
    mine["trainer"] = {key: mine.get("trainer", {}).get(key) for key in default["trainer"]}
    rows = [(key, text(old), text(new)) for key, old, new in differing(default, mine, groups)]
    return [*found, *rows]


def default_settings() -> tuple[dict[str, Any], dict[str, str]]:
    """The settings without any override, and the choices that they are made of."""
    running = GlobalHydra.instance().hydra
    try:
        with composer():
            cfg = compose("train", return_hydra_config=True)
            chosen = choices(cfg.hydra.runtime.choices)
            plain = DictConfig({key: cfg._get_node(key) for key in cfg if key != "hydra"})
            # Settings leave out what these two have at its default.
            whole = (*SHOWN, "rollout", "evaluation")
            return {**settings(plain), **{key: resolved(plain[key]) for key in whole}}, chosen
    finally:
        GlobalHydra.instance().hydra = running


def resolved(node: Any) -> Any:
    """A node as plain data."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def chosen_here() -> dict[str, str]:
    """The choices of this process's command; none where it was not started by Hydra."""
    return choices(HydraConfig.get().runtime.choices) if HydraConfig.initialized() else {}


def choices(found: Mapping[str, Any]) -> dict[str, str]:
    """Group -> choice, of the groups that change what a run is."""
    kept = {str(group): str(one) for group, one in found.items()}
    passing = {"hydra", *PASSING} - {*SHOWN}
    return {group: one for group, one in kept.items() if group.partition("/")[0] not in passing}


def differing(old: Any, new: Any, told: set[str], key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Full key, default and value of each setting that differs; "-" where the default has none.

    A group's class is left out where its choice is ``told``.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in new:
            place = key if name == "_target_" else f"{key}.{name}".lstrip(".")
            if name == "_target_" and key not in told or name not in HYDRAS:
                yield from differing(old.get(name, "-"), new[name], told, place)
    elif old != new:
        yield key, old, new


def text(value: Any) -> str:
    """A setting's value as a person gives it."""
    if isinstance(value, Mapping):
        value = value.get("_target_", dict(value))
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    said = str(value)
    dotted = "." in said and all(part.isidentifier() for part in said.split("."))
    return said.rpartition(".")[2] if dotted else said


def report_again(cfg: DictConfig) -> Path:
    """Make the report of a run anew, from its files, with its plots.

    Raises:
        InputError: there is no such run.
    """
    run = RunDir(Path(cfg.paths.outputs) / cfg.name)
    if run.path.is_dir():
        write_down(run, None)
    return write_report(run.path, plots=True)
