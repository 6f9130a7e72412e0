"""What the settings of sample.py ask for: checked early, and turned into parts.

A checkpoint may come from a run's folder, whose own settings then hold but for what is given.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf

from app.checks import Threads
from app.entry import REPO
from app.signatures import check_settings, read_signature
from ipo_lightning.errors import InputError
from ipo_lightning.settings import Count, Null, Positive

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
}
"""What the config.yaml beside a checkpoint may name: a run's folder may come from anybody."""

SETTINGS = {
    "n": Count,
    "seed": int,
    "threads": Threads,
    "batch_size": Annotated[Count | None, Null("8 of tiny videos, else 1")],
    "fps": Annotated[Positive | None, Null("the model's")],
    "enlarge": Annotated[Count | None, Null("to 128 px at least")],
    "trainer.devices": Count | Literal["auto"],
    "scheduler": Literal["ddim", "dpm", "unipc", "euler"] | None,
    "precision": Literal["float32", "bf16"],
    **dict.fromkeys(("tiling", "slicing", "offload", "overwrite", "debug"), bool),
}
"""Those that no class takes."""
OF_RUN = ("steps", "guidance_scale", "dynamic_guidance")
"""Settings of `ipo_lightning.policy.Sampling` that may be left to the run."""
LARGE = 2**20
"""Pixels of a video, over all its frames, above which two are not denoised together unasked."""


def check_sample(cfg: DictConfig) -> None:
    """Refuse what cannot work, before anything is loaded.

    Raises:
        InputError: names the setting, what it is, and what to give instead.
    """
    sampling = read_signature("ipo_lightning.policy.Sampling")
    hints = sampling.hints if sampling else {}
    of_run = {name: Annotated[hints[name] | None, Null("as in the run")] for name in OF_RUN}
    check_settings(cfg, {**SETTINGS, **of_run})


def backbone_of(cfg: DictConfig, checkpoint: "Checkpoint", saved: DictConfig) -> dict[str, Any]:
    """The backbone's settings: the run's own, else those given here."""
    node: dict[str, Any] = OmegaConf.to_container(saved.get("backbone", cfg.backbone), resolve=True)  # type: ignore[assignment]
    if "backbone" in saved and not set(targets(node)) <= TRUSTED:
        raise InputError(
            f"{checkpoint.config}: its backbone names {sorted(set(targets(node)) - TRUSTED)}, none "
            "of this project's; copy the policy folder out of the run and give backbone="
        )
    if is_shipped(node):
        node["path"] = str(REPO / SHIPPED)  # a run may have been made in another clone
    if checkpoint.kind == "pipeline":
        if is_shipped(node) and not checkpoint.path.endswith(SHIPPED):
            node["decode_batch"] = 1  # not that of the shipped model's tiny videos
        node.update(path=checkpoint.path, revision=checkpoint.revision, lora=None)
    if checkpoint.kind in ("lora", "transformer"):
        node.update(lora=None)  # a LoRA file brings its own rank and layers
    return node


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


def sampling_of(cfg: DictConfig, saved: DictConfig, node: dict[str, Any]) -> "Sampling":
    """How videos are drawn: as given here, else as in rollout=, in the run, in CogVideoX's usual.

    What makes candidates of a run cheaper or more alike (``shared``, ``cache``) is left out.
    """
    from ipo_lightning.policy import Sampling

    run: Any = cfg.get("rollout") or saved.get("rollout") or {}
    if not run and is_shipped(node):
        run = OmegaConf.load(REPO / "conf/rollout/shapes.yaml")
    usual = {"steps": 50, "guidance_scale": 6.0, "negative_prompt": "", "scheduler": None,
             "dynamic_guidance": False}  # fmt: skip
    chosen = {
        name: run.get(name, default) if cfg[name] is None else cfg[name]
        for name, default in usual.items()
    }
    return Sampling(
        int(chosen["steps"]),
        float(chosen["guidance_scale"]),
        str(chosen["negative_prompt"] or ""),
        scheduler=chosen["scheduler"],
        dynamic_guidance=bool(chosen["dynamic_guidance"]),
    )


def batch_of(cfg: DictConfig, size: tuple[int, int, int]) -> int:
    """Videos of ``size`` (frames, height, width) that are denoised together."""
    if cfg.batch_size is not None:
        return int(cfg.batch_size)
    return 8 if size[0] * size[1] * size[2] <= LARGE else 1


def processes_of(cfg: DictConfig) -> int:
    """How many processes share the videos: one a device."""
    import torch

    from app.assembly import device_of

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

    from app.assembly import device_of

    device = device_of(cfg)
    return torch.device("cuda", rank) if device.type == "cuda" else device


def arithmetic(cfg: DictConfig, device: "torch.device") -> AbstractContextManager[Any]:
    """What is entered around sampling and decoding."""
    import torch

    if cfg.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
