"""What a checkpoint path can be, and how its weights get into a network.

Files come from others: tensors are read by safetensors or with ``weights_only``, nothing is
unpickled but records of known classes, and a config found beside them is never trusted to name
code.
"""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from torch import Tensor, nn
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as records

from ipo_lightning.errors import InputError
from ipo_lightning.policy import LORA_FILE, Policy, put_weights, trained_weights
from ipo_lightning.rounds import RunDir

TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"
PEFT_FILE = "adapter_model.safetensors"
"""What peft itself calls a LoRA; its alpha lies beside it, in adapter_config.json."""
SHARDS = ".metadata"
"""The index of a checkpoint that several ranks wrote into a folder."""
HUB = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w./-]+\.safetensors))?"
)
"""``owner/name``, ``owner/name@revision``, ``owner/name/file.safetensors``."""

Kind = Literal["lightning", "lora", "pipeline", "transformer"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found.

    Attributes:
        kind: ``lightning`` (trained parameters of this project), ``lora`` (a file of anybody's),
            ``transformer`` (a diffusers transformer folder), ``pipeline`` (a whole diffusers folder
            or hub id, its own base).
        path: of the file or folder, or the hub id of a pipeline.
        config: config.yaml of the run it came from, where there is one.
        revision: of a hub id.
    """

    kind: Kind
    path: str
    config: Path | None = None
    revision: str | None = None


def find_checkpoint(ckpt: str) -> Checkpoint:
    """What ``ckpt`` is: a run, a round, a file, a diffusers folder, a hub id or a file of one.

    Raises:
        InputError: there is no such thing, or it is none of these.
    """
    path = Path(ckpt)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    found = HUB.fullmatch(ckpt)
    if found is None or (found["file"] is None and path.suffix in (".ckpt", ".safetensors")):
        raise InputError(f"ckpt={ckpt}: there is no such file or folder")
    if path.parent.is_dir():
        raise InputError(f"ckpt={ckpt}: there is no such file or folder in {path.parent}")
    return _hub(found["repo"], found["revision"], found["file"])


def _folder(path: Path) -> Checkpoint:
    if (path / "rounds.jsonl").exists() or (path / "round_0").is_dir():
        return _run(path)
    if (path / "policy").is_dir() or path.name.startswith("round_"):
        return _round(path)
    if (path / "model_index.json").is_file():
        return Checkpoint("pipeline", str(path))
    if (path / SHARDS).is_file():
        return Checkpoint("lightning", str(path), _config(path))
    for name in (LORA_FILE, PEFT_FILE):
        if (path / name).is_file():
            return Checkpoint("lora", str(path / name), _config(path))
    for folder in (path, path / "transformer"):
        if (folder / "config.json").is_file() and list(folder.glob("*.safetensors")):
            return Checkpoint("transformer", str(folder), _config(path))
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return Checkpoint("lora", str(files[0]))
    if files:
        raise InputError(f"ckpt={path}: give one of its files, as {files[0]}")
    raise InputError(
        f"ckpt={path}: neither a run, a round, a sharded checkpoint, a diffusers folder, nor a "
        "folder with a LoRA"
    )


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


# -------------------------------------------------------------------- hubs


def _hub(repo: str, revision: str | None, file: str | None) -> Checkpoint:
    """What a repository holds, told by its files: a pipeline, a transformer or a LoRA."""
    if file is not None:
        found = _download(repo, revision, file)
        if found is not None:
            return Checkpoint("lora", str(found))
        raise InputError(f"ckpt={repo}/{file}: no such file there, or no network")
    if _download(repo, revision, "model_index.json") is not None:
        return Checkpoint("pipeline", repo, revision=revision)
    for place in ("transformer/", ""):
        config = _download(repo, revision, f"{place}config.json")
        if config is not None:
            return _hub_transformer(repo, config, place)
    for name in (LORA_FILE, PEFT_FILE):
        found = _download(repo, revision, name)
        if found is not None:
            if name == PEFT_FILE:
                _download(repo, revision, "adapter_config.json")
            return Checkpoint("lora", str(found))
    raise InputError(
        f"ckpt={repo} cannot be read: no network and no copy in the local cache, or it holds "
        f"neither a diffusers pipeline, a transformer nor {LORA_FILE}; of a LoRA by another name "
        f"give the file, as ckpt={repo}/NAME.safetensors"
    )


def _hub_transformer(repo: str, config: Path, place: str) -> Checkpoint:
    folder = config.parent
    commit = (folder.parent if place else folder).name  # the weights of the config that was read
    with_hub(repo, snapshot_download, revision=commit,
             allow_patterns=[f"{place}*.safetensors", f"{place}*.json"])  # fmt: skip
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"ckpt={repo}: {place}config.json stands alone, without .safetensors")
    return Checkpoint("transformer", str(folder))


def _download(repo: str, revision: str | None, name: str) -> Path | None:
    """A file of a repository, from the cache where it is there; None where there is no such."""
    try:
        return Path(with_hub(repo, hf_hub_download, filename=name, revision=revision))
    except EntryNotFoundError:
        return None


def with_hub(repo: str, ask: Any, **more: Any) -> str:
    """Ask a hub; what it has against the question ends in a sentence."""
    try:
        return str(ask(repo, **more))
    except EntryNotFoundError:
        raise
    except (OSError, HFValidationError) as error:  # no such repository, not allowed, no network
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"ckpt={repo} cannot be read: {reason}") from error


# -------------------------------------------------------------------- weights


def load_into(checkpoint: Checkpoint, policy: Policy) -> nn.Module:
    """A new network of ``policy`` with the checkpoint's weights, in evaluation mode."""
    network = policy.build()
    if checkpoint.kind == "lora":
        policy.load_lora(network, Path(checkpoint.path))
    elif checkpoint.kind == "transformer":
        _load_transformer(network, Path(checkpoint.path), policy)
    elif checkpoint.kind == "lightning":
        _load_lightning(network, Path(checkpoint.path), policy)
    return network.eval()


def halve(network: nn.Module) -> None:
    """Put a network's weights into bfloat16, but for those that its family keeps in float32."""
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and not kept & set(name.split(".")):
            parameter.data = parameter.data.to(torch.bfloat16)


def _load_transformer(network: nn.Module, path: Path, policy: Policy) -> None:
    wanted = type(network).__name__
    found = json.loads((path / "config.json").read_text()).get("_class_name")
    if found != wanted:
        raise InputError(f"ckpt={path} is a {found}; {policy.name} has a {wanted}: give the "
                         "backbone= that it was trained from")  # fmt: skip
    _put(network, policy.load_export(path), path)


def _put(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """`put_weights`, with names and shapes that do not fit told of the checkpoint."""
    own = trained_weights(network)
    odd = sorted(
        own.keys() ^ weights.keys()
        | {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape}
    )
    if odd:
        raise InputError(
            f"ckpt={path} does not fit its base model: {len(odd)} weights have other names or "
            f"shapes, as {odd[0]}; give the backbone= that it was trained from"
        )
    put_weights(network, weights)


def _load_lightning(network: nn.Module, path: Path, policy: Policy) -> None:
    try:
        plain = path / "meta.pt" if path.is_dir() else path
        content = torch.load(plain, map_location="cpu", weights_only=True)
        base = content["ipo_lightning"]["base"]
        state = {} if path.is_dir() else content["state_dict"]
    except Exception as error:
        raise InputError(f"ckpt={path}: not a checkpoint of this project ({error})") from error
    if base != policy.identity:
        raise InputError(f"ckpt={path} was trained on another base model; give its backbone=")
    own = trained_weights(network)
    if path.is_dir():
        _put(network, _gather(path, own), path)
    else:
        weights = {name.removeprefix("network."): tensor for name, tensor in state.items()}
        _put(network, {name: weights[name] for name in own if name in weights}, path)


# -------------------------------------------------------------------- shards


class _Records(pickle.Unpickler):
    """Reads the index of a sharded checkpoint, which is a pickle, and refuses to call anything."""

    def find_class(self, module: str, name: str) -> Any:
        """Classes that hold what an index says, and the types of tensors; nothing else."""
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.partition(".")[0] == "pathlib" and name == "PosixPath":
            return PurePosixPath  # where the folder lay when it was written
        if (module, name) in INDEX:
            return INDEX[module, name]
        raise pickle.UnpicklingError(f"its index names {module}.{name}, which is not opened")


INDEX: dict[tuple[str, str], Any] = {
    (kind.__module__, kind.__name__): kind
    for kind in (
        torch.Size,
        torch.serialization._get_layout,
        records.Metadata,
        records.MetadataIndex,
        records.TensorStorageMetadata,
        records.BytesStorageMetadata,
        records.ChunkStorageMetadata,
        records.TensorProperties,
        records.StorageMeta,
        records._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
    )
}
"""What the index of a sharded checkpoint may be made of."""


class _ShardReader(filesystem.FileSystemReader):
    """Torch's reader, but for the index; the tensors it reads with ``weights_only``."""

    def read_metadata(self, *_args: Any, **_more: Any) -> records.Metadata:
        """The index; see `_Records`."""
        with open(Path(self.path) / SHARDS, "rb") as file:
            index: records.Metadata = _Records(file).load()
        index.storage_meta = records.StorageMeta(load_id=self.load_id)
        return index


def _gather(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the named weights that a sharded checkpoint holds, whole, on the CPU.

    Raises:
        InputError: the folder is damaged, or its index names code.
    """
    reader = _ShardReader(path)
    try:
        index = reader.read_metadata().state_dict_metadata
        found = {name: index.get(f"state_dict.network.{name}") for name in like}
        # Whatever is no tensor there would be unpickled: it is not asked for.
        state = {
            f"network.{name}": torch.empty(one.size, dtype=one.properties.dtype)
            for name, one in found.items()
            if isinstance(one, records.TensorStorageMetadata)
        }
        with warnings.catch_warnings():  # one process reads what several wrote: as it should be
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load({"state_dict": state}, storage_reader=reader, no_dist=True)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, dcp.CheckpointException,
            AttributeError, EOFError) as error:  # fmt: skip
        raise InputError(f"ckpt={path}: its shards cannot be read ({error})") from error
    return {name.removeprefix("network."): tensor for name, tensor in state.items()}
