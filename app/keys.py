"""Where the settings stand of parts that app/assembly.py makes itself: each from several places."""

from collections.abc import Callable
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from ipo_lightning.errors import InputError

T = TypeVar("T")

KEYS = {
    "ipo_lightning.rounds.rollout.RolloutPlan": {
        "n": "rollout.n",
        "prompts_per_round": "rollout.prompts",
        "seed": "seed",
    },
    "ipo_lightning.rounds.datamodule.PreferenceDataModule": {
        "batch_size": "data.batch_size",
        "optimizer_steps": "data.optimizer_steps",
        "max_passes": "data.max_passes",
        "num_workers": "data.num_workers",
        "seed": "seed",
    },
    "ipo_lightning.evaluation.Evaluation": {"n": "evaluation.n", "seed": "seed"},
    "ipo_lightning.module.PreferenceModule": {
        "winner_weight": "regularise.winners",
        "real_weight": "regularise.real",
        "safeguard": "regularise.safeguard",
        "warmup_steps": "optim.warmup_steps",
        "ema": "optim.ema",
        "seed": "seed",
    },
    "ipo_lightning.policy.Sampling": {
        "steps": "rollout.steps",
        "guidance_scale": "rollout.guidance_scale",
        "scheduler": "rollout.scheduler",
        "dynamic_guidance": "rollout.dynamic_guidance",
        "guidance_interval": "rollout.guidance_interval",
        "guidance_forwards": "rollout.guidance_forwards",
        "attention": "rollout.attention",
        "compile": "rollout.compile",
        "shared": "rollout.shared",
        "batch_size": "rollout.batch_size",
    },
    "ipo_lightning.reward.module.RewardModule": {
        "warmup_steps": "optim.warmup_steps",
        "seed": "seed",
    },
    "ipo_lightning.sampling.Sampler": {"lossless": "rollout.lossless"},
}
"""Class -> its parameter -> the full key of the setting."""


def make(maker: Callable[..., T], cfg: DictConfig, *parts: Any, **more: Any) -> T:
    """A part, from the settings of `KEYS` and from parts made before.

    Raises:
        InputError: names the wrong setting by its full key.
    """
    keys = KEYS[f"{maker.__module__}.{maker.__qualname__}"]
    found = {name: OmegaConf.select(cfg, key, default=...) for name, key in keys.items()}
    own = {name: value for name, value in found.items() if value is not ...}
    try:
        return maker(*parts, **own, **more)
    except InputError as error:
        error.setting = keys.get(error.setting, error.setting)
        raise
