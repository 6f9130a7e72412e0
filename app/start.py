"""``start=PATH``: the weights that round 1 starts from, as a setting of the backbone.

A run is settled to one of its rounds here, and its own beginning is taken along, so that
config.yaml names each file that the weights come from.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from app.sample_settings import base_start, settings_beside
from ipo_lightning.errors import InputError

TARGET = "ipo_lightning.backbones.start.Start"


def resolve_start(cfg: DictConfig) -> None:
    """Give the backbone what ``start`` and ``start_merge`` stand for.

    Raises:
        InputError: there is no such file, folder or finished round, or it holds no policy.
    """
    given = cfg.get("start")
    if given is None:
        if cfg.get("start_merge") is True:
            raise InputError("start_merge=true: give start= as well")
        return
    if not isinstance(given, str) or not given:
        raise InputError(f"start={given}: give a run, a round's folder, a LoRA file or a "
                         "transformer's folder")  # fmt: skip
    with open_dict(cfg):
        cfg.backbone.start = _node(cfg, given)


def _node(cfg: DictConfig, given: str) -> dict[str, Any]:
    """The settings of a `Start`."""
    path, before = _found(given)
    is_lora = path.suffix == ".safetensors"
    trained_on = is_lora and cfg.backbone.get("lora") and not cfg.get("start_merge")
    _refuse_reference(cfg, given, bool(trained_on))
    node = {"_target_": TARGET, "path": str(path), "merge": not trained_on}
    return {**node, "before": before} if is_lora and before else node


def _found(given: str) -> tuple[Path, Mapping[str, Any] | None]:
    """The file or folder that holds the weights, and what the base of a LoRA began with."""
    from ipo_lightning.hub.checkpoints import find_checkpoint

    if not Path(given).exists():
        raise InputError(
            f"start={given}: there is no such file or folder; of a hub, download it first: "
            "hf download OWNER/NAME --local-dir FOLDER"
        )
    try:
        found = find_checkpoint(given)
    except InputError as error:
        raise InputError(str(error).replace("ckpt=", "start=")) from error
    if found.kind == "pipeline":
        return _transformer(Path(found.path)), None
    if found.kind not in ("lora", "transformer"):
        what = "the base model of its run" if found.kind == "base" else "a checkpoint"
        raise InputError(
            f"start={given} is {what}: give the folder of a finished round of a run, RUN/round_K"
        )
    before = (settings_beside(found).get("backbone") or {}).get("start")
    return Path(found.path), base_start(before)


def _transformer(pipeline: Path) -> Path:
    folder = pipeline / "transformer"
    if not (folder / "config.json").is_file():
        raise InputError(f"start={pipeline}: this pipeline has no transformer/config.json")
    return folder


def _refuse_reference(cfg: DictConfig, given: str, trained_on: bool) -> None:
    """Refuse a reference that would be another policy than the one that the run starts from."""
    if trained_on and str(cfg.reference.get("_target_")).endswith(".AdapterReference"):
        raise InputError(
            f"start={given} with reference=adapter: with its adapter off, the network is not the "
            "policy that this run starts from; give start_merge=true, or reference=cached"
        )
