"""What the settings of audit.py must be, looked at before anything is loaded."""

import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from app.checks import Number, check_critic_settings, check_name, check_numbers, check_switches
from app.entry import choices_of
from ipo_lightning.errors import InputError

NUMBERS = {
    "n": Number(2, whole=True, null="all"),
    "calibration": Number(0, above=True),
    "bins": Number(1, whole=True),
    "repeats": Number(1, whole=True),
    "repeat_pairs": Number(1, whole=True),
    "batch_size": Number(1, whole=True),
    "examples": Number(0, whole=True),
    "seed": Number(whole=True),
    "threads": Number(1, whole=True, null="torch's default"),
}
SWITCHES = ("skip_missing", "tensorboard", "dry_run", "debug")


def check_audit(cfg: DictConfig) -> None:
    """Refuse what cannot work.

    Raises:
        InputError: names the setting, what it is, and what to give instead.
    """
    if cfg.get("critic") is None:
        raise InputError(
            "critic: none was given, or none of that name is there: say whom to audit, "
            "critic=CHOICE (shipped are "
            f"{', '.join(choices_of('critic'))}; one of your own: docs/extending.md)"
        )
    check_numbers(cfg, NUMBERS)
    check_switches(cfg, SWITCHES)
    check_critic_settings("critic", cfg.critic)
    if not cfg.calibration < 1:
        raise InputError(f"calibration={cfg.calibration}: give a share of the prompts, below 1")
    if not os.path.exists(str(cfg.pairs)):  # of a name that is too long: false
        raise InputError(f"pairs={cfg.pairs}: there is no such file")
    if cfg.videos is not None and not os.path.isdir(str(cfg.videos)):
        raise InputError(f"videos={cfg.videos}: there is no such folder")
    if cfg.name is not None:
        check_name(str(cfg.name))
    dims_of(cfg)


def dims_of(cfg: DictConfig) -> dict[str, tuple[str, ...]]:
    """People's dimension -> the critic's, as plain tuples.

    Raises:
        InputError: ``dims`` is of another form.
    """
    given: Any = OmegaConf.to_container(cfg.dims) if OmegaConf.is_config(cfg.dims) else cfg.dims
    if not isinstance(given or {}, Mapping):
        raise InputError(f"dims={given}: give {{people's: [the critic's, ...]}}, or null")
    found = {}
    for theirs, its in (given or {}).items():
        names = [its] if isinstance(its, str) else its
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise InputError(f"dims.{theirs}={its}: give the names of the critic's dimensions")
        found[str(theirs)] = tuple(names)
    return found
