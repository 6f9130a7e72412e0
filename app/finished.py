"""A finished run answers from its files: the model, the trainer and the critics are not loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from app.claiming import without_hydra
from app.entry import build
from app.held_out import evaluated_prompts
from app.identity import Identity, identity_of
from ipo_lightning.errors import InputError
from ipo_lightning.guards import Guards
from ipo_lightning.losses import label_kind
from ipo_lightning.storage.foreign_yaml import read_settings
from ipo_lightning.storage.layout import RunDir

ELSEWHERE = ("round", "log", "debug")
"""Settings that are checked before any part is made, and that may be others than before."""


@dataclass(frozen=True)
class Finished:
    """What is shown of a run in which nothing is left to make; see `app.assembly.Parts`."""

    run: RunDir
    guards: Guards
    prompts: Sequence[str]
    """That it trains on."""
    held_out: Sequence[str]
    """That policies are evaluated on."""

    def identity(self, cfg: DictConfig, *, goes_on: bool) -> Identity:
        """What the run is made of beside its settings."""
        lists = {"training prompts": self.prompts, "held-out prompts": self.held_out}
        return identity_of(cfg, [], lists)

    def notes(self) -> list[str]:
        """Nothing: its critic has nothing to say of itself."""
        return []


def finished_run(cfg: DictConfig) -> Finished | None:
    """The run that ``cfg`` describes, if its files alone show that it is finished.

    None where anything has to be looked at more closely, of which the parts of the run then say
    what is wrong: its settings are others than those that it was finished with, or its inputs are
    more than prompts.
    """
    run = RunDir(f"{cfg.paths.outputs}/{cfg.name}")
    try:
        if not run.lines() or not _same_settings(run, cfg) or _asks_parts(cfg):
            return None
        if not finished(run, cfg, label_kind(build(cfg.loss, "loss"))):
            return None
        prompts = build(cfg.data.prompts, "data.prompts")
        held_out = list(evaluated_prompts(cfg, prompts(cfg.evaluation.split)))
        return Finished(run, build(cfg.guards, "guards"), prompts("train"), held_out)
    except InputError:
        return None


def finished(run: RunDir, cfg: DictConfig, kind: str) -> bool:
    """Whether there is nothing left to do, and all files are as they were written.

    Args:
        kind: of the labels, see `label_kind`.
    """
    done = run.done(cfg.round, kind)
    if not (all(done.values()) if cfg.until is None else done[cfg.until]):
        return False
    return all(map(run.closed, range(cfg.round))) and not run.round(cfg.round).faults()


def _same_settings(run: RunDir, cfg: DictConfig) -> bool:
    """Whether config.yaml has these settings: they were checked when it was written."""
    if not run.config_file.is_file():
        return False
    now: Any = OmegaConf.to_container(without_hydra(cfg))
    before = read_settings(run.config_file, "restore it")
    return _but_elsewhere(before) == _but_elsewhere(now)


def _but_elsewhere(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in ELSEWHERE}


def _asks_parts(cfg: DictConfig) -> bool:
    """Whether files that parts read belong to the run, or its critic has notes, or it is sent."""
    reads = cfg.data.get("imported") is not None or bool(cfg.regularise.real)
    return reads or bool(cfg.push_to_hub) or _has_notes(cfg.critic.get("_target_"))


def _has_notes(critic: str | None) -> bool:
    """Whether a critic may have something to tell of a run; so it may where it cannot be found."""
    try:
        return hasattr(critic and get_object(critic), "notes")
    except Exception:  # of whatever its module raises: the critic is then built, and says so
        return True
