"""What cannot work, refused in the first second: before a heavy import, before a file is written.

Only what the settings alone tell is looked at here; the parts check the rest when they are made.
"""

import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from app.planning.memory import check_memory, shards
from ipo_lightning.errors import InputError

STEPS = ("plain", "two_pass")
STAGES = ("rollout", "critique", "labelling", "training", "evaluation")


class Number(NamedTuple):
    """What a setting's value must be; a setting that the chosen config lacks is not looked at."""

    least: float = -math.inf
    whole: bool = False
    above: bool = False
    """Whether ``least`` itself is too little."""
    null: str = ""
    """What null means, where it is allowed."""
    word: str = ""
    """What may stand in place of a number."""
    endless: bool = False
    """Whether it may be infinite."""

    def wants(self) -> str:
        """The sentence for whoever gave something else."""
        kind = "a whole number" if self.whole else "a number"
        bound = f"{'above' if self.above else 'at least'} {self.least:g}"
        text = kind if self.least == -math.inf else f"{kind}, {bound}"
        if self.word:
            text += f", or {self.word}"
        return f"{text}, or null ({self.null})" if self.null else text

    def takes(self, value: Any) -> bool:
        """Whether a value will do."""
        if value is None:
            return bool(self.null)
        if self.word and value == self.word:
            return True
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if not (abs(value) <= sys.float_info.max or self.endless):
            return False
        return value > self.least if self.above else value >= self.least


NUMBERS = {
    "round": Number(1, whole=True),
    "seed": Number(whole=True),
    "threads": Number(1, whole=True, null="torch's default"),
    "rollout.n": Number(2, whole=True),  # one candidate is no preference
    "rollout.prompts": Number(1, whole=True, null="all"),
    "rollout.steps": Number(1, whole=True),
    "rollout.guidance_scale": Number(1),
    "rollout.shared": Number(0),
    "rollout.batch_size": Number(1, whole=True, null="all of a prompt", word="auto"),
    "evaluation.n": Number(1, whole=True),
    "evaluation.prompts": Number(1, whole=True, null="all"),
    "data.batch_size": Number(1, whole=True),
    "data.optimizer_steps": Number(1, whole=True),
    "data.num_workers": Number(0, whole=True),
    "data.imported.rounds": Number(1, whole=True, null="all"),
    "data.prompts.select": Number(0),
    "data.prompts.final": Number(0),
    "loss.beta": Number(0, above=True, word="auto"),
    "loss.label_smoothing": Number(0),
    "loss.flip_rate": Number(0),
    "loss.winner_penalty": Number(0),
    "loss.floor": Number(0),
    "loss.gamma": Number(0),
    "loss.snr": Number(0, above=True),
    "loss.scale": Number(0, above=True),
    "loss.desirable_weight": Number(0),
    "loss.undesirable_weight": Number(0),
    "loss.desirable_reward": Number(0),
    "loss.undesirable_reward": Number(0),
    "labelling.pair_rule.margin": Number(0),
    "labelling.pair_rule.depth": Number(1, whole=True, null="as many as there are"),
    "labelling.filters.motion_ratio": Number(0),
    "labelling.weight.power": Number(0),
    "labelling.weight.alpha": Number(0),
    "labelling.weight.bin": Number(0, above=True),
    "labelling.filters.min_motion": Number(0),
    "labelling.filters.max_motion": Number(0, endless=True),
    "labelling.filters.min_flow": Number(0),
    "labelling.filters.max_flow": Number(0, endless=True),
    "labelling.filters.max_frozen": Number(0),
    "labelling.filters.max_empty": Number(0),
    "labelling.upper": Number(endless=True),
    "labelling.lower": Number(endless=True),
    "labelling.min_certainty": Number(0),
    "labelling.veto": Number(0, null="none"),
    "labelling.max_missing": Number(0),
    "labelling.ridge": Number(0, above=True),
    "regularise.winners": Number(0),
    "regularise.real": Number(0),
    "regularise.safeguard": Number(0, null="off"),
    "calibration.logit": Number(0, above=True),
    "calibration.draws": Number(2, whole=True),
    "calibration.batch_size": Number(1, whole=True),
    "reference.batch_size": Number(1, whole=True),
    "reference.decay": Number(0),
    "optim.optimizer.lr": Number(0, above=True),
    "optim.optimizer.weight_decay": Number(0),
    "optim.warmup_steps": Number(0, whole=True),
    "optim.ema": Number(0, null="off"),
    "callbacks.iteration.checkpoint_every": Number(1, whole=True),
    "trainer.accumulate_grad_batches": Number(1, whole=True),
    "plan.memory_gib": Number(0, above=True, null="of the GPU of this machine"),
    "plan.reserve_gib": Number(0),
    "plan.tflops": Number(0, above=True, null="measured here"),
    "plan.utilisation": Number(0, above=True),
    "backbone.lora.rank": Number(1, whole=True),
    "backbone.lora.alpha": Number(0, above=True),
}
OF_CRITICS = {
    "": {
        "frames": Number(1, whole=True),
        "scale": Number(0, above=True),
        "ties": Number(1),
        "fps": Number(0, above=True, null="as it was trained"),
        "batch_size": Number(1, whole=True),
        "annotators": Number(1, whole=True),
        "seed": Number(whole=True),
        "repeats": Number(0),
        "min_answered": Number(0, above=True),
        "embed_mib": Number(0),
        "sharpness": Number(0, above=True),
        "noise": Number(0),
        "bias": Number(),
    },
    "vlm": {
        "batch_size": Number(1, whole=True),
        "samples": Number(1, whole=True),
        "temperature": Number(0),
        "max_tokens": Number(1, whole=True),
        "seed": Number(whole=True, null="none is sent"),
        "top_logprobs": Number(1, whole=True, null="not asked for"),
    },
    "vlm.viewing": {
        "fps": Number(0, above=True),
        "least_frames": Number(1, whole=True),
        "most_frames": Number(1, whole=True),
        "min_pixels": Number(1, whole=True),
        "max_pixels": Number(1, whole=True),
    },
    "vlm.server": {
        "concurrency": Number(1, whole=True),
        "timeout": Number(0, above=True),
        "connect_timeout": Number(0, above=True),
        "retries": Number(0, whole=True),
        "backoff": Number(0),
        "patience": Number(0),
        "budget_requests": Number(1, whole=True, null="no limit"),
        "budget_tokens": Number(1, whole=True, null="no limit"),
    },
}
"""Part of a shipped critic -> its numbers; one of somebody's own may mean others by these names."""
TEXTS = {
    "": {"path": False, "model": False, "base": False, "checkpoint": False, "answers": False,
         "dtype": False, "revision": True, "base_revision": True, "processor": True,
         "aesthetic": True, "prompt_text": True, "normalisation": True, "attention": True},
    "prompt_template": {"prompt_text": False},
    "vlm": {"dtype": False, "model": False, "revision": True, "attention": True,
             "limit_field": False},
    "vlm.server": {"base_url": False, "key_variable": True},
}  # fmt: skip
"""The same of texts; true: it may be null."""
CRITIC_SWITCHES = {"": ("scaled", "concurrent", "words"), "vlm": ("remote_code",)}
"""The same of what is true or false."""
WEIGHTS = ("weights", "prompt_template.weights", "prompt_template.grades")
"""Settings of a critic that give a number to each of some names."""
MAPPINGS = ("vlm.template", "vlm.extra")
"""Settings of a critic that hold further ones, or null."""
PARTS = ("", "vlm", "vlm.viewing", "vlm.server", "prompt_template", "network", "members", "critic")
"""Places in a shipped critic where the settings of a part stand."""
LABELLING_PARTS = ("pair_rule", "filters", "weight", "schedule")
SWITCHES = (
    "dry_run",
    "debug",
    "rollout.lossless",
    "rollout.dynamic_guidance",
    "backbone.checkpointing",
    "backbone.compile",
    "backbone.tiling",
    "loss.graded",
    "reference.offload",
    "labelling.both_orders",
)
FILES = ("data.prompts.path",)
FILES_OR_FOLDERS = ("data.imported.path",)
CRITIC_NUMBERS = {
    "seed": Number(whole=True),
    "threads": Number(1, whole=True, null="torch's default"),
    "data.validation": Number(0, above=True),
    "data.batch_size": Number(1, whole=True),
    "data.optimizer_steps": Number(1, whole=True),
    "data.num_workers": Number(0, whole=True),
    "stopping.patience": Number(1, whole=True),
    "stopping.epochs": Number(1, whole=True),
    "optim.optimizer.lr": Number(0, above=True),
    "optim.optimizer.weight_decay": Number(0),
    "optim.warmup_steps": Number(0, whole=True),
    "trainer.accumulate_grad_batches": Number(1, whole=True),
    "reward_loss.ties": Number(1, above=True),
    "network.width": Number(1, whole=True),
    "network.steps": Number(0, whole=True),
    "network.clips": Number(1, whole=True),
    "network.lora.rank": Number(1, whole=True),
    "network.lora.alpha": Number(0, above=True),
}
"""Of conf/train_critic.yaml."""
NEEDED = ("backbone", "data", "loss", "reference", "rollout", "critic", "eval_critic", "labelling",
          "evaluation", "optim", "trainer", "callbacks.iteration")  # fmt: skip


def check(cfg: DictConfig) -> None:
    """Refuse what cannot work.

    Raises:
        InputError: names the setting, what it is, and what to give instead.
    """
    for key in NEEDED:
        if OmegaConf.select(cfg, key) is None:
            raise InputError(f"{key}: a run cannot do without it")
    check_numbers(cfg, NUMBERS)
    check_switches(cfg, SWITCHES)
    _check_labelling(cfg.labelling)
    check_critic_settings("critic", cfg.critic)
    check_critic_settings("eval_critic", cfg.eval_critic)
    for key in FILES_OR_FOLDERS:
        value = OmegaConf.select(cfg, key)
        if value is not None and not Path(value).exists():
            raise InputError(f"{key}={value}: there is no such file or folder")
    for key in FILES:
        value = OmegaConf.select(cfg, key)
        if value is not None and cfg.data.get("imported") is None and not Path(value).is_file():
            raise InputError(f"{key}={value}: there is no such file")
    if cfg.step not in STEPS:
        raise InputError(f"step={cfg.step}: choose one of {', '.join(STEPS)}")
    if cfg.until not in (None, *STAGES):
        raise InputError(f"until={cfg.until}: choose one of {', '.join(STAGES)}, or null")
    check_name(str(cfg.name), "store")
    _check_combinations(cfg)


def check_critic(cfg: DictConfig) -> None:
    """Refuse what cannot work in the training of a critic; see `check`."""
    check_numbers(cfg, CRITIC_NUMBERS)
    check_switches(cfg, ("dry_run", "debug", "data.in_memory", "network.tuned", "network.merger"))
    check_name(str(cfg.name), "store")
    _check_precision(cfg)
    _check_merger(cfg)
    if not Path(cfg.data.path).exists():
        raise InputError(f"data.path={cfg.data.path}: there is no such file or folder")
    if shards(cfg):
        raise InputError(
            "trainer=fsdp: a critic's network is not sharded here, and under an adapter it needs "
            "not be; choose trainer=ddp"
        )
    if cfg.optim.ema is not None:
        raise InputError(
            f"optim.ema={cfg.optim.ema}: a critic keeps the weights of its best look at the "
            "held-out prompts, no average; give null"
        )


def _check_labelling(labelling: DictConfig) -> None:
    for part in LABELLING_PARTS if _ours(labelling) else ():
        value = labelling.get(part, _ABSENT)  # absent: the class's own, where it has one
        if not isinstance(value, DictConfig) and value is not _ABSENT:
            raise InputError(
                f"labelling.{part}={value}: here stand the settings of a part; give "
                f"labelling.{part}._target_=NAME, as labelling.schedule._target_="
                "ipo_lightning.labelling.tournaments.all_pairs, or another labelling="
            )


def check_critic_settings(key: str, critic: DictConfig) -> None:
    """Refuse settings of a critic, and of those within it, that cannot work; see `check`.

    Args:
        key: where it stands among the settings.
    """
    if not _ours(critic):
        return  # of somebody's own: what it takes is its own affair
    for part in PARTS:
        node = _of_ours(critic, part) if part else critic
        place = f"{key}.{part}".rstrip(".")
        if isinstance(node, DictConfig) and _ours(node):
            check_numbers(node, OF_CRITICS.get(part, {}), f"{place}.")
            check_switches(node, CRITIC_SWITCHES.get(part, ()), f"{place}.")
            _check_texts(node, TEXTS.get(part, {}), f"{place}.")
        elif not isinstance(node, DictConfig) and node is not _ABSENT:
            raise _no_part(place, node)
    for name in MAPPINGS:
        value = _of_ours(critic, name)
        if value not in (None, _ABSENT) and not isinstance(value, DictConfig):
            raise InputError(f"{key}.{name}={value}: give {{NAME: VALUE}}, or null")
    for name, member in (critic.get("members") or {}).items():
        if not isinstance(member, DictConfig):
            raise _no_part(f"{key}.members.{name!s}", member)
    if not isinstance(critic.get("dims", OmegaConf.create([])), ListConfig):
        raise InputError(f"{key}.dims={critic.dims}: give a list of names, such as [VQ, MQ]")
    for name in WEIGHTS:
        _check_weights(f"{key}.{name}", _of_ours(critic, name))
    for place, within in _within(critic):
        check_critic_settings(f"{key}.{place}", within)


def _of_ours(critic: DictConfig, key: str) -> Any:
    """A setting of a shipped critic; absent where a part of somebody's own has it."""
    owner = key.rpartition(".")[0]
    node = OmegaConf.select(critic, owner) if owner else critic
    if not isinstance(node, DictConfig) or not _ours(node):
        return _ABSENT
    return OmegaConf.select(critic, key, default=_ABSENT)


def _check_texts(node: DictConfig, texts: Mapping[str, bool], place: str) -> None:
    for name, may_lack in texts.items():
        value = node.get(name, _ABSENT)
        if value is _ABSENT or (value is None and may_lack) or (isinstance(value, str) and value):
            continue
        text = "a text, or null" if may_lack else "a text"
        if isinstance(value, int | float) and not isinstance(value, bool):
            text += f"; one that looks like a number in quotes: '{place}{name}=\"{value}\"'"
        raise InputError(f"{place}{name}={value}: give {text}")


def _no_part(key: str, value: Any) -> InputError:
    """The refusal of a plain value where the settings of a part must stand."""
    *within, name = key.split(".")
    group = {"vlm": "critic/vlm", "critic": "critic"}.get(name)
    if "members" in within:
        group = "critic"
    if isinstance(value, str) and group:
        at = "" if key == "critic.vlm" else f"@{key}"
        return InputError(
            f"{key}={value}: settings stand here; to choose them give {group}{at}=NAME"
        )
    return InputError(f"{key}={value}: here stand the settings of a part, among them _target_")


def _ours(node: DictConfig) -> bool:
    return str(node.get("_target_")).startswith("ipo_lightning.")


def _within(critic: DictConfig) -> list[tuple[str, DictConfig]]:
    """The critics that one is made of, by their places in it."""
    members = critic.get("members")
    found = [*members.items()] if isinstance(members, DictConfig) else []
    nodes = [(f"members.{name!s}", node) for name, node in found]
    nodes.append(("critic", critic.get("critic")))
    return [(place, node) for place, node in nodes if isinstance(node, DictConfig)]


def _check_weights(key: str, value: Any) -> None:
    if value is None or value is _ABSENT:  # the critic's own
        return
    if not isinstance(value, DictConfig):
        raise InputError(f"{key}={value}: give a number to each name, as {{NAME: 1.0}}")
    for name, weight in value.items():
        if not Number().takes(weight):
            raise InputError(f"{key}.{name!s}={weight}: give a number")


def _check_merger(cfg: DictConfig) -> None:
    half = cfg.network.get("dtype") == "bfloat16" and cfg.trainer.precision != "bf16-mixed"
    if cfg.network.get("merger") and half:
        raise InputError(
            f"network.merger=true trains in float32 beside network.dtype=bfloat16, which "
            f"trainer.precision={cfg.trainer.precision} does not bring together; choose bf16-mixed "
            "or network.dtype=float32"
        )


def check_name(name: str, *taken: str) -> None:
    """Refuse what is no name of a folder, or one of those that are taken; see `check`."""
    if not name or name in (".", "..", *taken) or os.sep in name:
        raise InputError(f"name={name}: give the name of a folder, without {os.sep!r}")


def check_numbers(cfg: DictConfig, numbers: Mapping[str, Number], place: str = "") -> None:
    """Refuse values that are no such numbers; see `check`. ``place`` is what keys begin with."""
    for key, number in numbers.items():
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if value is not _ABSENT and not number.takes(value):
            raise InputError(f"{place}{key}={value}: give {number.wants()}")


def check_switches(cfg: DictConfig, switches: Sequence[str], place: str = "") -> None:
    """Refuse what is neither true nor false; see `check_numbers`."""
    for key in switches:
        value = OmegaConf.select(cfg, key, default=False)
        if not isinstance(value, bool):
            raise InputError(f"{place}{key}={value}: give true or false")


def _check_precision(cfg: DictConfig) -> None:
    if str(cfg.trainer.precision) == "16-mixed":
        raise InputError(
            "trainer.precision=16-mixed: float16 overflows in these networks, and a skipped step "
            "is an error here; choose bf16-mixed or 32-true"
        )


def _check_combinations(cfg: DictConfig) -> None:
    _check_precision(cfg)
    check_memory(cfg)
    if cfg.regularise.real and cfg.data.get("real") is None:
        raise InputError(
            f"regularise.real={cfg.regularise.real}, but there are no real clips: give data.real "
            "(docs/real-videos.md), or regularise.real=0"
        )
    if makes_of(cfg.critic) & makes_of(cfg.eval_critic):
        warnings.warn(
            "the held-out judge is of the critic's own make: it cannot see the critic's mistakes",
            stacklevel=2,
        )
    if str(cfg.reference._target_).endswith(".AdapterReference") and not cfg.backbone.get("lora"):
        raise InputError(
            "reference=adapter: the reference is the policy with its adapter off, but all weights "
            "are trained here; choose reference=cached, or give backbone.lora (see "
            "experiment=shapes_lora)"
        )


def makes_of(critic: DictConfig) -> set[str]:
    """What a critic's mistakes come from: its model where it has one, else its class; of one that
    is made of others, all of theirs."""
    within = [makes_of(one) for _, one in _within(critic)]
    if within:
        return set().union(*within)
    models = (OmegaConf.select(critic, key) for key in ("vlm.model", "model", "path"))
    return {str(next(filter(None, models), critic._target_))}


_ABSENT = object()
