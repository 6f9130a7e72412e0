"""The choices of ``eval_critic``: every critic, as the held-out judge.

A choice of ``eval_critic`` is a file of conf/eval_critic, or the critic of the same name in
conf/critic with its settings under ``eval_critic``.
"""

from pathlib import Path

from hydra.core.config_store import ConfigStore


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
