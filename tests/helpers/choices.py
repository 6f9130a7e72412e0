"""The shipped choices, and what each needs beside it to be a whole run."""

from importlib.metadata import distributions
from pathlib import Path

import pytest

from app.entry import CONF, choices_of
from ipo_lightning.reward.losses import RewardScale
from ipo_lightning.shapes.reward_encoder import ShapesReward
from tests.helpers import tiny_wan

OF_CRITICS = ("network", "reward_loss")
"""Groups of conf/train_critic.yaml alone."""
GROUPS = sorted({path.parent.name for path in CONF.glob("*/*.yaml")})
EVERY = [f"{group}={name}" for group in GROUPS for name in choices_of(group)]
CHOICES = [choice for choice in EVERY if not choice.startswith(OF_CRITICS)]
BESIDE = {"reference=adapter": ["experiment=shapes_lora"], "reference=none": ["loss=simpo"],
          "rollout=served": ["rollout.served.model=tiny"],
          **{f"eval_critic={name}": ["critic=gauges"] for name in choices_of("critic")
             if name.startswith("shapes")}}  # fmt: skip
"""What a choice cannot do without."""
PLUGINS = {"hparams_search=optuna": "hydra-optuna-sweeper"}
"""What a choice does not compose without, which no part of this project brings;
tests/app/test_loggers.py composes it all the same."""
PACKAGES = {"logger=wandb": "wandb", "logger=mlflow": "mlflow"}
"""What a choice composes without, and is refused without."""


def lacking(choice: str) -> str | None:
    """The plugin of Hydra's that a choice needs, where it is not installed."""
    plugin = PLUGINS.get(choice)
    return plugin if plugin and not any(distributions(name=plugin)) else None


def beside(choice: str, tmp_path: Path) -> list[str]:
    """The overrides that make a choice a whole run."""
    if choice.startswith("callbacks=") and choice != "callbacks=default":
        return [f"callbacks=[default,{choice.partition('=')[2]}]"]
    if plugin := lacking(choice):
        pytest.skip(f"{plugin} is not installed")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a video of {number} apples\n" for number in range(200)))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(
        f'{{"prompt": "a video of {number} apples", "chosen": "a.mp4", "rejected": "b.mp4"}}\n'
        for number in range(200)
    ))  # fmt: skip
    files = {
        "data=imported": [f"data.imported.path={pairs}", "evaluation.real_clips=null"],
        "data=file": [f"data.prompts.path={prompts}", "evaluation.real_clips=null"],
    }
    if choice.endswith("critic=reward"):
        return [choice, f"{choice.partition('=')[0]}.model={tmp_path}"]
    if choice == "experiment=shapes_wan":  # its folder is made, not shipped
        return [choice, f"backbone.path={tiny_wan.save_pipeline(tmp_path / 'wan')}"]
    if choice.startswith("experiment=ipo_"):
        critics = ["critic=shapes", "eval_critic=shapes_judge"]
        return [choice, *critics, f"data.prompts.path={prompts}"]
    if choice.endswith("critic=trained"):
        family = ShapesReward(dims=["Overall"], steps=0, clips=64)
        family.export(family.build(), tmp_path / "critic", RewardScale((0.0,), (1.0,)))
        return [choice, f"{choice.partition('=')[0]}.path={tmp_path / 'critic'}"]
    return [choice, *(BESIDE | files).get(choice, [])]
