"""Names of settings and targets that were others before: old run folders stay readable.

Old names on the command line are refused with the new one; in the config.yaml of a run made before
the change they are read as what they are called now.
"""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from app.quoting import without_references
from ipo_lightning.errors import InputError
from ipo_lightning.storage.foreign_yaml import read_settings

SETTINGS = {
    "data.updates": "data.optimizer_steps",
    "optim.warmup_updates": "optim.warmup_steps",
    "calibration.visits": "calibration.draws",
    "labelling.guards": "labelling.filters",
    "callbacks.iteration.together": "callbacks.iteration.parallel_prompts",
}
"""Old setting -> new one, by their full keys."""
PARTS_OF_CRITICS = {
    "chat": "vlm",
    "enough": "min_answered",
    "form": "prompt_template",
    "wording": "prompt_text",
}
"""The same of what stands anywhere within ``critic`` and ``eval_critic``."""
OURS = ("ipo_lightning.", "data.")
"""Settings of other classes keep their names."""
GROUPS = {"critic/chat": "critic/vlm"}
TARGETS = {
    "data.imported": "data.published",
    "data.preferences": "data.critic_datamodule",
    "ipo_lightning.calibration": "ipo_lightning.draws.calibration",
    "ipo_lightning.critics.adapters": "ipo_lightning.critics.combined.adapters",
    "ipo_lightning.critics.endpoint.EndpointChat": "ipo_lightning.critics.vlm.endpoint.EndpointVLM",
    "ipo_lightning.critics.ensemble": "ipo_lightning.critics.combined.ensemble",
    "ipo_lightning.critics.forms": "ipo_lightning.critics.vlm.templates",
    "ipo_lightning.critics.frames": "ipo_lightning.critics.scorers.frames",
    "ipo_lightning.critics.gauged": "ipo_lightning.critics.scorers.gauged",
    "ipo_lightning.critics.hpsv3": "ipo_lightning.critics.scorers.hpsv3",
    "ipo_lightning.critics.human": "ipo_lightning.critics.people.human",
    "ipo_lightning.critics.judges.PairJudge": "ipo_lightning.critics.vlm.critics.PairVLMCritic",
    "ipo_lightning.critics.judges.PointJudge": "ipo_lightning.critics.vlm.critics.PointVLMCritic",
    "ipo_lightning.critics.judges": "ipo_lightning.critics.vlm.critics",
    "ipo_lightning.critics.local.LocalChat": "ipo_lightning.critics.vlm.local.LocalVLM",
    "ipo_lightning.critics.reward": "ipo_lightning.critics.scorers.reward",
    "ipo_lightning.critics.reward_training": "ipo_lightning.reward.multimodal",
    "ipo_lightning.critics.server": "ipo_lightning.critics.vlm.server",
    "ipo_lightning.critics.trained": "ipo_lightning.reward.trained",
    "ipo_lightning.critics.videoreward": "ipo_lightning.critics.scorers.videoreward",
    "ipo_lightning.critics.viewing": "ipo_lightning.critics.pretrained.viewing",
    "ipo_lightning.labelling.Guards": "ipo_lightning.labelling.Filters",
    "ipo_lightning.reward_losses": "ipo_lightning.reward.losses",
    "ipo_lightning.strategies": "ipo_lightning.parallel.strategies",
    "ipo_lightning.tournaments": "ipo_lightning.labelling.tournaments",
}
"""Where a ``_target_`` began -> where it begins now."""


def old_name(word: str) -> str | None:
    """What is wrong with an override by a name of before; None where it is not one."""
    key, equals, value = word.partition("=")
    new = _new_key(key)
    if not equals or new == key:
        return None
    return f"{word}: {key.lstrip('+~')} is now called {new.lstrip('+~')}; give {new}={value}"


def saved_settings(file: Path, cure: str) -> DictConfig:
    """The settings that a run was made with, from its config.yaml, which may be of anybody.

    They refer to nothing: what looks like an interpolation is text.

    Args:
        cure: what to do where it cannot be read, for the message.

    Raises:
        InputError: it is damaged, or more than plain data.
    """
    found = with_new_names(read_settings(file, cure))
    _refuse_missing(found)
    return OmegaConf.create(without_references(found))


def _refuse_missing(value: Any) -> None:
    """Refuse what OmegaConf takes for a value that is yet to be given."""
    if value == "???":
        raise InputError("config.yaml has a ??? in place of a value: it is not a run's own")
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _refuse_missing(one)


def with_new_names(config: Any, key: str = "", ours: bool = True) -> Any:
    """A run's settings, as plain dicts and lists, by the names of today.

    Args:
        key: where they stand. ours: whether a class of this project takes them.
    """
    if isinstance(config, dict):
        ours = str(config["_target_"]).startswith(OURS) if "_target_" in config else ours
        found = {}
        for name, value in config.items():
            place = f"{key}.{name}".lstrip(".")
            new = _new_key(place).rpartition(".")[2] if ours else name
            found[new] = with_new_names(value, place, ours)
        return found
    if isinstance(config, list):
        return [with_new_names(one, f"{key}.{place}", ours) for place, one in enumerate(config)]
    return new_target(config) if key.endswith("._target_") else config


def new_target(target: Any) -> Any:
    """Where a ``_target_`` of before is now; another value as it is."""
    if not isinstance(target, str):
        return target
    fits = [old for old in TARGETS if f"{target}.".startswith(f"{old}.")]
    if not fits:
        return target
    old = max(fits, key=len)
    return TARGETS[old] + target.removeprefix(old)


def _new_key(key: str) -> str:
    """What a key of the command line or of a config is called now."""
    mark, plain = re.match(r"([+~]*)(.*)", key, re.DOTALL).groups()  # type: ignore[union-attr]
    group, at, package = plain.partition("@")
    if at or group in GROUPS:
        return f"{mark}{GROUPS.get(group, group)}{at}{_new_key(package)}"
    for old, new in SETTINGS.items():
        if f"{plain}.".startswith(f"{old}."):
            return mark + new + plain.removeprefix(old)
    first, *parts = plain.split(".")
    if first in ("critic", "eval_critic"):
        parts = [
            part if above == "members" else PARTS_OF_CRITICS.get(part, part)  # members' own names
            for above, part in zip([first, *parts], parts, strict=False)
        ]
    return mark + ".".join([first, *parts])
