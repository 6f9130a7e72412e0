"""Words of the command line that stand for others: presets of ``debug=``, an adapter's settings."""

import re
from collections.abc import Sequence

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.entry import choices_of, composer
from app.signatures import read_signature
from ipo_lightning.errors import InputError

ADAPTER = "rank: 8, alpha: '${.rank}', targets: [to_q, to_k, to_v, 'to_out.0'], seed: '${seed}'"
"""An adapter's settings where one of them is given: on all of attention, scaled by 1."""


def expanded(config: str, arguments: Sequence[str]) -> list[str]:
    """The command line with all that its shortcuts stand for.

    Raises:
        InputError: a preset is asked for where there is none.
    """
    return with_adapter(config, with_preset(config, arguments))


def with_preset(config: str, arguments: Sequence[str]) -> list[str]:
    """``debug=fast`` chooses conf/debugging/fast.yaml; ``debug=true`` is a setting of its own.

    ``~logger`` chooses none.
    """
    presets = choices_of("debugging")
    words = []
    for word in arguments:
        key, _, value = word.partition("=")
        if word == "~logger":  # Hydra deletes no choice from a list of several
            word = "logger=none"
        if key == "debug" and {*value.split(",")} <= {*presets}:
            if config != "train":
                raise InputError(f"{word}: presets are for task=policy; here give true or false")
            word = f"debugging={value}"
        words.append(word)
    return words


def with_adapter(config: str, arguments: Sequence[str]) -> list[str]:
    """``backbone.lora.rank=4`` where nothing else gives an adapter: one of the backbone's family.

    What is not given is as in `ADAPTER`.
    """
    names = {found[1] for word in arguments if (found := re.match(r"\+*(\w+)\.lora\.\w+=", word))}
    added, words = [], list(arguments)
    for name in names:
        if any(word.lstrip("+").startswith(f"{name}.lora=") for word in arguments):
            continue
        if target := adapter_of(_chosen(config, name, arguments), name):
            added.append(f"{name}.lora={{_target_: {target}, {ADAPTER}}}")
            words = [re.sub(rf"^\++({name}\.lora\.)", r"\1", word) for word in words]
    return [*added, *words]


def adapter_of(cfg: DictConfig, name: str) -> str | None:
    """The adapter's class of a part of the settings that can have one, and has none."""
    node = cfg.get(name)
    if not OmegaConf.is_dict(node) or node.get("lora", ...) is not None:
        return None
    module = str(node.get("_target_")).rpartition(".")[0]
    return f"{module}.Lora" if read_signature(f"{module}.Lora") else None


def _chosen(config: str, name: str, arguments: Sequence[str]) -> DictConfig:
    """The settings by the choices of one group and of an experiment, the first ones of a sweep.

    What is wrong with them is said when all words are composed.
    """
    keys = ("hydra.searchpath", name, "experiment")
    words = [word for word in arguments if word.partition("=")[0] in keys]
    first = [word if word.startswith("hydra.") else word.partition(",")[0] for word in words]
    try:
        with composer():
            return compose(config, first)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError):
        return OmegaConf.create()
