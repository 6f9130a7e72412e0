"""What the settings of sample.py ask for: checked early, and turned into parts.

A checkpoint may come from a run's folder, whose own settings then hold but for what is given.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from omegaconf import DictConfig, OmegaConf

from app.checks import ACCELERATOR, PATHS, ROLLOUT, Log, Matmul, Threads
from app.entry import REPO, none_lacking
from app.renamed import saved_settings
from app.signatures import check_settings, read_signature
from ipo_lightning.errors import InputError
from ipo_lightning.settings import Count, Null, Positive, Prompt, Text

if TYPE_CHECKING:
    import torch

    from ipo_lightning.hub.checkpoints import Checkpoint
    from ipo_lightning.policy import Sampling

SHIPPED = "ipo_lightning/shapes/pipeline"
TRUSTED = {
    "ipo_lightning.backbones.cogvideox.CogVideoX",
    "ipo_lightning.backbones.cogvideox.Lora",
    "ipo_lightning.backbones.wan.Wan",
    "ipo_lightning.backbones.wan.Lora",
    "ipo_lightning.backbones.start.Start",
}
"""What the config.yaml beside a checkpoint may name: a run's folder may come from anybody."""
CURE = "copy the policy folder out of the run and give backbone="

SETTINGS: dict[str, Any] = {
    **PATHS,
    **ROLLOUT,
    **ACCELERATOR,
    "ckpt": Text,
    "prompt": Prompt | None,
    "prompts": Text | None,
    "export": Annotated[Text | None, Null("nothing")],
    "negative_prompt": Annotated[Prompt | None, Null("as in the run")],
    "n": Count,
    "seed": int,
    "naming": Literal["plain", "vbench", "vbench2"],
    "names": Annotated[Text | None, Null("after the prompts")],
    "threads": Threads,
    "float32_matmul": Matmul,
    "batch_size": Annotated[Count | None, Null("8 of tiny videos, else 1")],
    "fps": Annotated[Positive | None, Null("the model's")],
    "enlarge": Annotated[Count | None, Null("to 128 px at least")],
    "trainer.devices": Count | Literal["auto"],
    "scheduler": Literal["ddim", "dpm", "unipc", "euler"] | None,
    "precision": Literal["float32", "bf16"],
    **dict.fromkeys(("tiling", "slicing", "offload", "overwrite", "debug"), bool),
    "log": Log,
}
"""Those that no class takes."""
OF_RUN = ("steps", "guidance_scale", "dynamic_guidance", "guidance_interval")
"""Settings of `ipo_lightning.policy.Sampling` that may be left to the run."""
LARGE = 2**20
"""Pixels of a video, over all its frames, above which two are not denoised together unasked."""


@none_lacking()
def check_sample(cfg: DictConfig) -> None:
    """Refuse what cannot work, before anything is loaded.

    Raises:
        InputError: names the setting, what it is, and what to give instead.
    """
    check_settings(cfg, {**SETTINGS, **hints_of_run()})


def hints_of_run() -> dict[str, Any]:
    """The hints of `OF_RUN`, by name."""
    sampling = read_signature("ipo_lightning.policy.Sampling")
    hints = sampling.hints if sampling else {}
    return {name: Annotated[hints[name] | None, Null("as in the run")] for name in OF_RUN}


def settings_beside(checkpoint: "Checkpoint") -> dict[str, Any]:
    """The settings of the run that a checkpoint lies in, as plain data; none where it lies alone.

    Raises:
        InputError: they are damaged, or not a run's.
    """
    if checkpoint.config is None:
        return {}
    saved = OmegaConf.to_container(saved_settings(checkpoint.config, CURE), resolve=True)
    found = {str(key): value for key, value in cast(dict[Any, Any], saved).items()}
    for group in ("backbone", "rollout"):
        if not isinstance(found.get(group, {}), dict):
            raise InputError(f"{checkpoint.config}: its {group} is {str(found[group])[:40]!r}, not "
                             f"settings by name; {CURE}")  # fmt: skip
    if "backbone" in found:
        _check_backbone(found["backbone"], checkpoint.config)
    return found


def _check_backbone(node: dict[str, Any], config: Path) -> None:
    """Refuse what would run code, or look something up on this machine."""
    refuse_foreign(node, "backbone", config, TRUSTED, CURE)
    if not str(node.get("_target_")).endswith((".CogVideoX", ".Wan")) or "path" not in node:
        raise InputError(f"{config}: its backbone has no _target_ or no path; {CURE}")


def refuse_foreign(
    node: dict[str, Any],
    group: str,
    config: Path,
    trusted: Collection[str],
    cure: str,
    hydras: Collection[str] = ("_target_",),
) -> None:
    """Refuse settings of a config.yaml that would run code, or look something up on this machine.

    Args:
        group: where they stand. trusted: what a ``_target_`` may be. cure: for the message.
        hydras: keys of Hydra's that may be there.

    Raises:
        InputError: names what is not trusted, or no plain data.
    """
    names = set(targets(node))
    if not names <= set(trusted):
        raise InputError(f"{config}: its {group} names {sorted(names - set(trusted))[:3]}, none of "
                         f"this project's; {cure}")  # fmt: skip
    odd = [text for text in texts(node)
           if "${" in text or (text[:1] == "_" and text not in hydras)]  # fmt: skip
    if odd:
        raise InputError(f"{config}: its {group} has {odd[0][:60]}, which is not plain data; "
                         f"{cure}")  # fmt: skip


def texts(node: Any) -> Iterator[str]:
    """Every key and every text at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from texts(value)
    elif isinstance(node, str):
        yield node


def backbone_of(cfg: DictConfig, checkpoint: "Checkpoint", saved: dict[str, Any]) -> dict[str, Any]:
    """The backbone's settings: the run's own, else those given here."""
    given: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
    node: dict[str, Any] = {**saved["backbone"]} if "backbone" in saved else given
    if is_shipped(node):
        node["path"] = str(REPO / SHIPPED)  # a run may have been made in another clone
    elif isinstance(path := node["path"], str) and not os.path.exists(path):
        in_clone = os.path.join(REPO, path)  # a run's paths in the clone start at the clone
        node["path"] = in_clone if os.path.isdir(in_clone) else path
    if checkpoint.kind == "pipeline":
        if is_shipped(node) and not checkpoint.path.endswith(SHIPPED):
            node["decode_batch"] = 1  # not that of the shipped model's tiny videos
        node.update(path=checkpoint.path, revision=checkpoint.revision, lora=None, start=None)
    if checkpoint.kind in ("lora", "transformer"):
        node.update(lora=None)  # a LoRA file brings its own rank and layers
        node.update(start=base_start(node.get("start")) if checkpoint.kind == "lora" else None)
    return node


def base_start(start: dict[str, Any] | None) -> dict[str, Any] | None:
    """What base weights begin with where an adapter lies over them: a LoRA that was trained on is
    in the adapter itself."""
    merged = start is None or start.get("merge", True)
    return start if merged else cast(dict[str, Any], start).get("before")


def is_shipped(node: dict[str, Any]) -> bool:
    """Whether a backbone is the embedded world's."""
    return str(node["path"]).endswith(SHIPPED)


def targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` at any depth: each of them is code that Hydra would run."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def sampling_of(
    cfg: DictConfig, saved: DictConfig | dict[str, Any], node: dict[str, Any]
) -> "Sampling":
    """How videos are drawn: as given here, else as in rollout=, in the run, in CogVideoX's usual.

    What makes candidates of a run cheaper or more alike (``shared``, ``cache``) is left out, and
    its guidance is that of its evaluation.
    """
    from ipo_lightning.policy import Sampling

    run: Any = cfg.get("rollout") or _evaluated(saved)
    if not run and is_shipped(node):
        run = OmegaConf.load(REPO / "conf/rollout/shapes.yaml")
    usual = {"steps": 50, "guidance_scale": 6.0, "negative_prompt": "", "scheduler": None,
             "dynamic_guidance": False, "guidance_interval": None}  # fmt: skip
    chosen = {
        name: run.get(name, default) if cfg[name] is None else cfg[name]
        for name, default in usual.items()
    }
    interval = chosen["guidance_interval"]
    return Sampling(
        int(chosen["steps"]),
        float(chosen["guidance_scale"]),
        str(chosen["negative_prompt"] or ""),
        scheduler=chosen["scheduler"],
        dynamic_guidance=bool(chosen["dynamic_guidance"]),
        guidance_interval=interval and tuple(interval),
    )


def _evaluated(saved: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """The sampling settings of a run's evaluation."""
    rollout, evaluation = (dict(saved.get(name) or {}) for name in ("rollout", "evaluation"))
    scale = evaluation.get("guidance_scale")
    if scale is None:
        return rollout
    dynamic = bool(rollout.get("dynamic_guidance")) and scale > 1
    return rollout | {"guidance_scale": scale, "dynamic_guidance": dynamic}


def batch_of(cfg: DictConfig, size: tuple[int, int, int]) -> int:
    """Videos of ``size`` (frames, height, width) that are denoised together."""
    if cfg.batch_size is not None:
        return int(cfg.batch_size)
    return 8 if size[0] * size[1] * size[2] <= LARGE else 1


def processes_of(cfg: DictConfig) -> int:
    """How many processes share the videos: one a device."""
    import torch

    from app.process import device_of

    asked, kind = cfg.trainer.devices, device_of(cfg).type
    there = torch.cuda.device_count()
    if kind == "cuda" and (there == 0 or (asked != "auto" and asked > there)):
        raise InputError(f"trainer (accelerator={cfg.trainer.accelerator}, devices={asked}): this "
                         f"machine has {there} GPUs")  # fmt: skip
    if asked == "auto":
        return there if kind == "cuda" else 1
    return int(asked)


def place_of(cfg: DictConfig, rank: int) -> "torch.device":
    """The device of one of the processes."""
    import torch

    from app.process import device_of

    device = device_of(cfg)
    return torch.device("cuda", rank) if device.type == "cuda" else device


def arithmetic(cfg: DictConfig, device: "torch.device") -> AbstractContextManager[Any]:
    """What is entered around sampling and decoding."""
    import torch

    if cfg.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
