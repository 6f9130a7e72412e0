"""What a checkpoint path can be, and how its weights get into a network.

Files come from others: tensors are read by safetensors or with ``weights_only``, nothing is
unpickled, and a config found beside them is never trusted to name code.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ipo_lightning.errors import InputError
from ipo_lightning.policy import LORA_FILE, Policy, put_weights, trained_weights
from ipo_lightning.rounds import RunDir

TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"

Kind = Literal["lightning", "lora", "pipeline", "transformer"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found.

    Attributes:
        kind: ``lightning`` (trained parameters of this project), ``lora`` (a file of anybody's),
            ``transformer`` (a diffusers transformer folder), ``pipeline`` (a whole diffusers folder
            or hub id, its own base).
        path: of the file or folder, or the hub id.
        config: config.yaml of the run it came from, where there is one.
    """

    kind: Kind
    path: str
    config: Path | None = None


def find_checkpoint(ckpt: str) -> Checkpoint:
    """What ``ckpt`` is: a run, a round, a file, a diffusers folder or a hub id."""
    path = Path(ckpt)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    parts = ckpt.split("/")
    if len(parts) == 2 and all(parts) and not ckpt.startswith((".", "~")) and not path.suffix:
        if path.parent.is_dir():
            raise InputError(f"ckpt={ckpt}: there is no such file or folder in {path.parent}")
        return Checkpoint("pipeline", ckpt)
    raise InputError(f"ckpt={ckpt}: there is no such file or folder")


def _folder(path: Path) -> Checkpoint:
    if (path / "rounds.jsonl").exists() or (path / "round_0").is_dir():
        return _run(path)
    if (path / "policy").is_dir() or path.name.startswith("round_"):
        return _round(path)
    if (path / "model_index.json").is_file():
        return Checkpoint("pipeline", str(path))
    if (path / LORA_FILE).is_file():
        return Checkpoint("lora", str(path / LORA_FILE), _config(path))
    if (path / "config.json").is_file() and list(path.glob("*.safetensors")):
        return Checkpoint("transformer", str(path), _config(path))
    raise InputError(f"ckpt={path}: neither a run, a round, nor a diffusers folder")


def _run(path: Path) -> Checkpoint:
    """The last round of a run that has a policy; the base model's where none has."""
    trained = [int(line["round"]) for line in RunDir(path).lines() if line["round"]]
    if not trained:
        raise InputError(f"ckpt={path}: this run has no finished round yet; give a round's folder")
    return _round(path / f"round_{max(trained)}")


def _round(path: Path) -> Checkpoint:
    policy = path / "policy"
    if not policy.is_dir():
        raise InputError(f"ckpt={path}: this round has no policy; it is not trained to its end")
    return _folder(policy)


def _file(path: Path) -> Checkpoint:
    if path.suffix == ".ckpt":
        return Checkpoint("lightning", str(path), _config(path))
    if path.suffix == ".safetensors":
        if path.name == TRANSFORMER_FILE and (path.parent / "config.json").exists():
            return _folder(path.parent)
        return Checkpoint("lora", str(path), _config(path))
    raise InputError(f"ckpt={path}: give a .ckpt of this project or .safetensors; others may hold "
                     "code and are not opened")  # fmt: skip


def _config(path: Path) -> Path | None:
    """config.yaml of the run that a file lies in."""
    for folder in list(path.parents)[:3]:
        if (folder / "config.yaml").is_file() and (folder / "round_0").is_dir():
            return folder / "config.yaml"
    return None


def load_into(checkpoint: Checkpoint, policy: Policy) -> nn.Module:
    """A new network of ``policy`` with the checkpoint's weights, in evaluation mode."""
    network = policy.build()
    if checkpoint.kind == "lora":
        policy.load_lora(network, Path(checkpoint.path))
    elif checkpoint.kind == "transformer":
        put_weights(network, policy.load_export(Path(checkpoint.path)))
    elif checkpoint.kind == "lightning":
        _load_lightning(network, Path(checkpoint.path), policy)
    return network.eval()


def _load_lightning(network: nn.Module, path: Path, policy: Policy) -> None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state, base = content["state_dict"], content["ipo_lightning"]["base"]
    except Exception as error:
        raise InputError(f"ckpt={path}: not a checkpoint of this project ({error})") from error
    if base != policy.identity:
        raise InputError(f"ckpt={path} was trained on another base model; give its backbone=")
    weights = {name.removeprefix("network."): tensor for name, tensor in state.items()}
    put_weights(network, {name: weights[name] for name in trained_weights(network)})
