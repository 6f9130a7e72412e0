"""The choices of ``eval_critic``: every critic, as the held-out judge; and its prompts.

A choice of ``eval_critic`` is a file of conf/eval_critic, or the critic of the same name in
conf/critic with its settings under ``eval_critic``.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig


def register_held_out(conf: Path) -> None:
    """Give Hydra a choice ``eval_critic=NAME`` for each ``conf/critic/NAME.yaml``.

    A file ``conf/eval_critic/NAME.yaml`` takes its place. Hydra refuses a file of the same name in
    another folder of its search path: it would take the choice made here for that file's schema.
    """
    own = {file.name for file in (conf / "eval_critic").glob("*.yaml")}
    for file in sorted((conf / "critic").glob("*.yaml")):
        if file.name in own:
            continue
        ConfigStore.instance().store(
            group="eval_critic",
            name=file.stem,
            node={"defaults": [{"/critic@_here_": file.stem}]},
            provider="conf/critic",
        )


def evaluated_prompts(cfg: DictConfig, prompts: Sequence[str]) -> Sequence[str]:
    """The prompts that policies are evaluated on; warns of fewer than half of those asked for."""
    asked, split = cfg.evaluation.prompts, cfg.evaluation.split
    found = prompts[:asked]
    if asked is not None and 2 * len(found) < asked:
        warnings.warn(
            f"evaluation.prompts={asked}: the {split} split has {len(found)} prompts, so that "
            f"intervals will be wide: add prompts or raise data.prompts.{split}",
            stacklevel=2,
        )
    return found
