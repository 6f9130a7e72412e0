"""What the settings of audit.py must be, looked at before anything is loaded."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf

from app.checks import ACCELERATOR, PATHS, Log, Threads, check_name
from app.entry import choices_of, none_lacking
from app.signatures import check_settings
from ipo_lightning.errors import InputError
from ipo_lightning.settings import Above, AtLeast, Below, Count, Null, Text

SETTINGS: dict[str, Any] = {
    **PATHS,
    **ACCELERATOR,
    "pairs": Text,
    "format": Text,
    "videos": Annotated[Text | None, Null("the file's own folder")],
    "name": Text | None,
    "n": Annotated[int | None, AtLeast(2), Null("all")],
    "calibration": Annotated[float, Above(0), Below(1)],
    "bins": Count,
    "repeats": Count,
    "repeat_pairs": Count,
    "batch_size": Count,
    "examples": Annotated[int, AtLeast(0)],
    "seed": int,
    "threads": Threads,
    "skip_missing": bool,
    "tensorboard": bool,
    "dry_run": bool,
    "debug": bool,
    "log": Log,
}
"""None of a class."""


@none_lacking()
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
    check_settings(cfg, SETTINGS)
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
