"""What cannot work, refused in the first second: before a heavy import, before a file is written.

What a class or function takes its signature says (`ipo_lightning.settings`), which is read from its
file. Here are the settings that none takes, and what settings mean for each other.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf

from app.entry import degrees_of, none_lacking
from app.loggers import check_loggers
from app.planning.memory import check_memory, check_precision, shards
from app.signatures import check_settings
from app.twins import refuse_twins
from ipo_lightning.errors import InputError
from ipo_lightning.settings import (
    AtLeast,
    AtMost,
    Count,
    NotNegative,
    Null,
    Object,
    Positive,
    Prompt,
    Says,
    Text,
)

STAGES = ("rollout", "critique", "labelling", "training", "evaluation")
Threads = Annotated[Count | None, Null("torch's default")]
Matmul = Literal["highest", "high", "medium"]
PARTS = ("backbone", "loss", "reference", "critic", "eval_critic", "labelling", "calibration",
         "data.prompts", "optim.optimizer", "trainer", "callbacks.iteration", "network", "stages",
         "reward_loss")  # fmt: skip
Devices = Annotated[
    Annotated[int, AtLeast(-1)] | str | Sequence[int],
    Says("a whole number, auto, or a list of them"),
]
Log = Literal["text", "json"]
ACCELERATOR = {"trainer.accelerator": Text}
PATHS = {"paths.outputs": Text, "paths.store": Text, "paths": Mapping[str, str | None]}
ROLLOUT = {
    "rollout.negative_prompt": Prompt | None,
    "rollout.cache": Object | None,
    "rollout.draft": Mapping[str, Any] | None,
    "rollout.served": Object | None,
}
"""What conf/sample.yaml, conf/audit.yaml and conf/train.yaml share."""
SETTINGS: dict[str, Any] = {
    **PATHS,
    **ROLLOUT,
    **ACCELERATOR,
    "task": Literal["policy", "critic"],
    "name": Annotated[Text, Says("the name of a folder")],
    "push_to_hub": Annotated[Text | None, Says("OWNER/NAME")],
    "round": Count,
    "seed": int,
    "threads": Threads,
    "float32_matmul": Matmul,
    "dry_run": bool,
    "report_only": bool,
    "debug": bool,
    "log": Log,
    "accept_version": bool,
    "requeue": bool,
    "start": Annotated[Text | None, Null("the base model")],
    "start_merge": bool,
    "step": Literal["plain", "two_pass"],
    "until": Literal[STAGES] | None,
    **dict.fromkeys(PARTS, Object),
    "callbacks": Mapping[str, Object | None],
    "logger": Object | Mapping[str, Object | None] | None,
    "data.real": Object | None,
    "evaluation.split": Literal["train", "select", "final"],
    "evaluation.prompts": Annotated[Count | None, Null("all")],
    "evaluation.choice_n": Annotated[int, AtLeast(0)],
    "evaluation.guidance_scale": Annotated[
        Annotated[float, AtLeast(1)] | None, Null("that of rollout")
    ],
    "evaluation.gauges": Mapping[str, Object] | None,
    "evaluation.real_clips": Object | None,
    "optim.optimizer.lr": Positive,
    "optim.optimizer.weight_decay": NotNegative,
    "trainer.accumulate_grad_batches": Count,
    "trainer.devices": Devices,
    "trainer.num_nodes": Count,
    "trainer.strategy": Text | Object,
    "trainer.precision": int | str | None,
    "trainer.gradient_clip_val": NotNegative | None,
    "trainer.log_every_n_steps": Count | None,
    "trainer.enable_progress_bar": bool,
    "plan.memory_gib": Annotated[Positive | None, Null("of the GPU of this machine")],
    "plan.reserve_gib": NotNegative,
    "plan.tflops": Annotated[Positive | None, Null("measured here")],
    "plan.utilisation": Annotated[Positive, AtMost(1)],
    "stopping.patience": Count,
    "stopping.epochs": Count,
}
"""Settings of conf/train.yaml and conf/train_critic.yaml that no class of ours takes."""
CRITICS = ("critic", "eval_critic")
FILES = ("data.prompts.path",)
FILES_OR_FOLDERS = ("data.imported.path",)
OF_ANY = ("seed", "name", "paths", "optim", "trainer", "data")
NEEDED = (*OF_ANY, "round", "plan", "regularise", "backbone", "loss", "reference", "rollout",
          "critic", "eval_critic", "labelling", "evaluation", "calibration", "stages",
          "callbacks.iteration")  # fmt: skip
NEEDED_BY_CRITICS = (*OF_ANY, "stopping", "network", "reward_loss")


@none_lacking()
def check(cfg: DictConfig) -> None:
    """Refuse what cannot work in the training of a policy.

    Raises:
        InputError: names the setting, what it is, and what to give instead.
    """
    _check_needed(cfg, NEEDED)
    check_settings(cfg, SETTINGS)
    _check_files(cfg)
    check_name(str(cfg.name), "store")
    check_loggers(cfg)
    _check_combinations(cfg)


@none_lacking()
def check_critic(cfg: DictConfig) -> None:
    """Refuse what cannot work in the training of a critic; see `check`."""
    _check_needed(cfg, NEEDED_BY_CRITICS)
    check_settings(cfg, SETTINGS)
    check_name(str(cfg.name), "store")
    check_loggers(cfg)
    check_precision(cfg)
    _check_merger(cfg)
    if not Path(cfg.data.path).exists():
        raise InputError(
            setting="data.path", value=cfg.data.path, expected="there is no such file or folder"
        )
    if shards(cfg):
        raise InputError(
            "trainer=fsdp: the network of a critic is never sharded (an adapter does not need it); "
            "choose trainer=ddp"
        )
    if (degrees := degrees_of(cfg)).size > 1:
        raise InputError(
            setting="trainer.strategy",
            value=str(degrees),
            expected="the network of a critic is on each device whole; give ulysses=1 and ring=1",
        )
    if cfg.optim.ema is not None:
        raise InputError(
            setting="optim.ema",
            value=cfg.optim.ema,
            expected="a critic keeps the weights that did best on the held-out prompts, never an "
            "average; give null",
        )


def _check_needed(cfg: DictConfig, keys: Sequence[str]) -> None:
    for key in keys:
        if OmegaConf.select(cfg, key) is None:
            more = "; choose default too: callbacks=[default,lr_monitor]"
            beside = more if key == "callbacks.iteration" else ""
            raise InputError(setting=key, expected=f"a run cannot do without it{beside}")


def _check_files(cfg: DictConfig) -> None:
    for key in FILES_OR_FOLDERS:
        value = OmegaConf.select(cfg, key)
        if value is not None and not Path(value).exists():
            raise InputError(setting=key, value=value, expected="there is no such file or folder")
    for key in FILES:
        value = OmegaConf.select(cfg, key)
        if value is not None and cfg.data.get("imported") is None and not Path(value).is_file():
            raise InputError(setting=key, value=value, expected="there is no such file")


def check_name(name: str, *taken: str) -> None:
    """Refuse a name that cannot be a folder's, and those that are taken; see `check`."""
    if not name or name in (".", "..", *taken) or os.sep in name:
        folder = f"give the name of a folder, without {os.sep!r}"
        raise InputError(setting="name", value=name, expected=folder)


def _check_merger(cfg: DictConfig) -> None:
    half = cfg.network.get("dtype") == "bfloat16" and cfg.trainer.precision != "bf16-mixed"
    if cfg.network.get("merger") and half:
        raise InputError(
            "network.merger=true trains in float32, network.dtype=bfloat16 keeps the rest in "
            f"bfloat16, and trainer.precision={cfg.trainer.precision} does not mix them; choose "
            "bf16-mixed, or network.dtype=float32"
        )


def _check_combinations(cfg: DictConfig) -> None:
    check_memory(cfg)
    if cfg.regularise.real and cfg.data.get("real") is None:
        raise InputError(
            f"regularise.real={cfg.regularise.real}, but there are no real clips: give data.real "
            "(docs/real-videos.md), or regularise.real=0"
        )
    refuse_twins(*(OmegaConf.to_container(cfg[name], resolve=True) for name in CRITICS))
    if str(cfg.reference._target_).endswith(".AdapterReference") and not cfg.backbone.get("lora"):
        raise InputError(
            "reference=adapter: the reference is the policy with its adapter off, but all weights "
            "are trained here; choose reference=cached, or give backbone.lora (see "
            "experiment=shapes_lora)"
        )
