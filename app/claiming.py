"""A run's folder, for one run alone: its settings and inputs are written down, or compared."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from app.entry import PASSING, within_clone
from app.identity import (
    IDENTITY,
    Identity,
    judge_named,
    other_judge,
    read_identity,
    refuse_other_inputs,
    refuse_other_settings,
    refuse_other_version,
    settings_of,
    write_identity,
)
from app.quoting import without_references
from app.renamed import saved_settings
from ipo_lightning.errors import InputError, readable
from ipo_lightning.parallel.run_lock import held
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import write_atomically

RANKS = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Variables by which launchers number the processes of a run; 0 leads."""


@contextmanager
def claimed(
    cfg: DictConfig, run: RunDir, identity: Callable[[], Identity], *, goes_on: bool
) -> Iterator[None]:
    """The run's folder, for this run alone until it ends; see `claim`.

    The leading process has it for all: the others, and sweeps, meet in the store.
    """
    with ExitStack() as until_the_end:
        if leads():
            try:
                until_the_end.enter_context(held(run.path))
            except OSError as error:
                raise InputError(f"paths.outputs={cfg.paths.outputs}: {error}") from error
        claim(run, cfg, identity if leads() else None, goes_on=goes_on)
        yield


def leads() -> bool:
    """Whether this process is the first of its run, as far as launchers have numbered them."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def claim(
    run: RunDir,
    cfg: DictConfig,
    identity: Callable[[], Identity] | None = None,
    *,
    goes_on: bool = True,
) -> None:
    """Write config.yaml and identity.json, or refuse a folder that holds another run.

    Args:
        identity: what the run is made of, looked at once the settings fit; None: not compared.
        goes_on: whether anything is left to make: what is finished may be shown by any version.

    Raises:
        InputError: names the settings, files or versions that differ.
    """
    now = settings_of(cfg)
    old = None if identity is None else read_identity(run)
    begun, before = run.config_file.exists(), settings_before(run) or now
    refuse_other_settings(run, before, now)
    if identity is not None:
        refuse_other_settings(run, (old or {}).get("settings", now), now)
        _refuse_unknown_settings(run, old, begun)
        begun = begun or old is not None
        made_of = identity()
        _check_identity(run, old, made_of, begun, goes_on, accept=bool(cfg.accept_version))
        if other_judge(before, now):
            _judge_again(run, before, now)
        if goes_on or not begun:
            write_identity(run, old, made_of)
    if not leads():
        return
    resolved = OmegaConf.to_yaml(without_hydra(cfg), resolve=True)
    write_atomically(run.config_file, resolved.encode())


def settings_before(run: RunDir) -> list[dict[str, Any]] | None:
    """Of the run in a folder, by config.yaml, else by identity.json; None where neither says."""
    if not run.config_file.exists():
        return (read_identity(run) or {}).get("settings")
    saved = saved_settings(run.config_file, "restore it, or give another name=NAME")
    with readable(run.config_file):
        return settings_of(saved)


def has_other_judge(run: RunDir, cfg: DictConfig) -> bool:
    """Whether what is trained was evaluated by another judge than ``cfg`` has."""
    before = settings_before(run)
    return before is not None and other_judge(before, settings_of(cfg))


def _judge_again(
    run: RunDir, before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> None:
    """Take back what the judge of before said, with a warning; policies and labels stay."""
    was, judge = judge_named(before[0]), judge_named(now[0])
    if run.lines():
        warnings.warn(
            f"eval_critic has changed: all rounds of {run.path} are evaluated again by {judge}; "
            f"what {was} said of them is in {run.rejudged_file.name}", stacklevel=2,
        )  # fmt: skip
    run.forget_evaluations(was)


MADE = ("round_*", "checkpoints", "critic")
"""What a run has in its folder once it has made something."""


def _refuse_unknown_settings(run: RunDir, old: Mapping[str, Any] | None, begun: bool) -> None:
    """Refuse a folder with results of which nothing says what they were made with.

    Raises:
        InputError: config.yaml is gone, and identity.json does not know the settings either.
    """
    if begun or not any(True for name in MADE for _ in run.path.glob(name)):
        return
    if old is None or "settings" not in old:
        raise InputError(
            f"{run.path} has results, but no {run.config_file.name} that says of which settings: "
            "put it back, or give another name=NAME"
        )
    warnings.warn(f"{run.config_file} is gone; it is made anew", stacklevel=2)


def _check_identity(
    run: RunDir,
    old: Mapping[str, Any] | None,
    now: Identity,
    begun: bool,
    goes_on: bool,
    *,
    accept: bool,
) -> None:
    if old is not None:
        refuse_other_inputs(run, old, now)
        if goes_on:
            refuse_other_version(run, old, now, accept=accept)
    elif begun and goes_on:
        warnings.warn(
            f"{run.path} has no {IDENTITY}, as runs of before: it goes on with its files and the "
            "version that are here now, unchecked",
            stacklevel=2,
        )


def without_hydra(cfg: DictConfig) -> DictConfig:
    """All settings; paths in this clone that results depend on start at the clone."""
    plain: Mapping[Any, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    kept = {
        key: value if key in PASSING else within_clone(value)
        for key, value in plain.items()
        if key != "hydra"
    }
    return OmegaConf.create(without_references(kept))  # else ${...} that was typed is looked up
