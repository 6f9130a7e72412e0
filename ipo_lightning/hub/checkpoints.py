"""What a checkpoint path can be, and how its weights get into a network.

Files come from others: tensors are read by safetensors or with ``weights_only``, nothing is
unpickled but records of known classes, and a config found beside them is never trusted to name
code.
"""

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from torch import Tensor, nn
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as records

from ipo_lightning.errors import InputError, cause_of, readable
from ipo_lightning.guards import best_of
from ipo_lightning.hub.upload import one_sentence
from ipo_lightning.policy import LORA_FILE, Policy, put_weights, trained_weights
from ipo_lightning.storage.layout import RoundDir, RunDir
from ipo_lightning.storage.torch_files import read_plain
from ipo_lightning.storage.transformer_folder import check_transformer, refuse_unlike

ALONE: dict[str, Any] = {"no_dist": True} if "no_dist" in signature(dcp.load).parameters else {}
"""For a process by itself; torch 2.6 has no such argument, and looks whether there are others."""
TRANSFORMER_FILE = "diffusion_pytorch_model.safetensors"
PEFT_FILE = "adapter_model.safetensors"
"""What peft itself calls a LoRA; its alpha lies beside it, in adapter_config.json."""
SHARDS = ".metadata"
"""The index of a checkpoint that several ranks wrote into a folder."""
HUB = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w./-]+\.safetensors))?"
)
"""``owner/name``, ``owner/name@revision``, ``owner/name/file.safetensors``."""

Kind = Literal["base", "lightning", "lora", "pipeline", "transformer"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found.

    Attributes:
        kind: ``base`` (round 0 of a run: its base model), ``lightning`` (trained parameters of
            this project), ``lora`` (a file of anybody's),
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
    with readable(path):
        if path.is_dir():
            return _folder(path)
        if path.is_file():
            return _file(path)
        if path.is_symlink():
            raise InputError(f"ckpt={ckpt} is a link to {path.readlink()}, where nothing is")
        if path.exists():
            raise InputError(f"ckpt={ckpt} is neither a file nor a folder")
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
    index = path / "model_index.json"
    if index.is_file():
        return Checkpoint("pipeline", str(path))
    if index.exists() or index.is_symlink():
        raise InputError(f"ckpt={path}: its model_index.json is no file, or a link to none")
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
    if lacking := _lacking(path):
        raise InputError(f"ckpt={path}: {lacking}; copy or export it again")
    raise InputError(
        f"ckpt={path}: neither a run, a round, a sharded checkpoint, a diffusers folder, nor a "
        "folder with a LoRA"
    )


def _lacking(path: Path) -> str | None:
    """What a folder lacks that was meant to hold a policy; None where nothing says that it was."""
    if not any(path.iterdir()):
        return "the folder is empty"
    for folder in (path, path / "transformer"):
        if (folder / "config.json").exists():
            return f"{folder} has a config.json and no weights (*.safetensors)"
    odd = [name for name in (LORA_FILE, PEFT_FILE, TRANSFORMER_FILE, "model_index.json", SHARDS)
           if (path / name).is_symlink() or (path / name).exists()]  # fmt: skip
    if odd:
        return f"its {odd[0]} is no file, or a link to none"
    return "a policy without its weights" if path.name == "policy" else None


def _run(path: Path) -> Checkpoint:
    """The best round of a run by its held-out judge, see `best_round`, told where it is not the
    last one."""
    with readable(path / "rounds.jsonl"):
        lines = RunDir(path).lines()
    last = lines[-1]["round"] if lines else 0
    if not last:
        raise InputError(f"ckpt={path}: this run has no finished round yet; give a round's folder")
    best = best_of(lines)
    if best["round"] != last:
        name = f"round {best['round']}" if best["round"] else "round 0, the base model,"
        warnings.warn(
            f"{path}: {name} is taken, the best one by {best['by']}; for the last one give "
            f"ckpt={path}/round_{last}", stacklevel=2,
        )  # fmt: skip
    return _round(path / f"round_{best['round']}")


def _round(path: Path) -> Checkpoint:
    if path.name == "round_0":
        return Checkpoint("base", str(path), _config(path / "evaluation.jsonl"))
    policy = path / "policy"
    if policy.is_symlink() and not policy.exists():
        raise InputError(f"ckpt={policy} is a link to {policy.readlink()}, where nothing is")
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
        config = folder / "config.yaml"  # a folder or a dead link in its place is refused later
        if not (folder / "round_0").is_dir():
            continue
        if config.exists() or config.is_symlink():
            return config
        warnings.warn(
            f"{folder} has no {config.name}: backbone and sampling are not the run's, but those "
            "given here", stacklevel=2,
        )  # fmt: skip
    return None


# -------------------------------------------------------------------- hubs


def _hub(repo: str, revision: str | None, file: str | None) -> Checkpoint:
    """What a repository holds, told by its files: a pipeline, a transformer or a LoRA."""
    names = _names(repo, revision)
    if file is None and "model_index.json" in names:
        return Checkpoint("pipeline", repo, revision=revision)
    for place in ("transformer", "."):
        within = [name for name in names if str(PurePosixPath(name).parent) == place]
        weights = [name for name in within if name.endswith(".safetensors")]
        config = str(PurePosixPath(place, "config.json"))
        if file is None and config in within and weights:
            more = [name for name in within if name.endswith(".json")]
            return Checkpoint("transformer", str(_fetch(repo, revision, [*weights, *more]) / place))
    for name in (LORA_FILE, PEFT_FILE) if file is None else (file,):
        if name in names:
            beside = str(PurePosixPath(name).with_name("adapter_config.json"))
            return Checkpoint("lora", str(_fetch(repo, revision, [name, beside]) / name))
    raise InputError(
        f"ckpt={repo} has no {file or f'diffusers pipeline, transformer or {LORA_FILE}'}; it has "
        f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}. A LoRA by another name is "
        f"ckpt={repo}/NAME.safetensors"
    )


def _names(repo: str, revision: str | None) -> list[str]:
    """A repository's files: as the hub lists them, without network those of the local cache."""
    try:
        return sorted(HfApi().list_repo_files(repo, revision=revision))
    except (HfHubHTTPError, HFValidationError) as error:  # no such repository, or not allowed
        raise _unreadable(repo, error) from error
    except OSError:  # no network
        folder = _fetch(repo, revision, None, local_files_only=True)
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


def _fetch(repo: str, revision: str | None, names: list[str] | None, **more: Any) -> Path:
    """The folder with a repository's files, from the cache where they are there."""
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=names, **more))
    except (OSError, HFValidationError, EntryNotFoundError) as error:
        raise _unreadable(repo, error) from error


def _unreadable(repo: str, error: Exception) -> InputError:
    absent = isinstance(error, LocalEntryNotFoundError)
    reason = "no network, and no copy in the local cache" if absent else one_sentence(error)
    return InputError(f"ckpt={repo} cannot be read: {reason}")


# -------------------------------------------------------------------- weights


def load_into(checkpoint: Checkpoint, policy: Policy) -> nn.Module:
    """A new network of ``policy`` with the checkpoint's weights, in evaluation mode."""
    path = Path(checkpoint.path)
    with readable(path):
        _refuse_altered(path)
        network = policy.build()
        if checkpoint.kind == "lora":
            policy.load_lora(network, path)
        elif checkpoint.kind == "transformer":
            _load_transformer(network, path, policy)
        elif checkpoint.kind == "lightning":
            _load_lightning(network, path, policy)
    if checkpoint.kind != "pipeline":
        _refuse_infinite(network, path)
    return network.eval()


def _refuse_altered(path: Path) -> None:
    """Refuse the policy of a round that is not as its training wrote it, where that is known.

    Raises:
        DamagedFile: names the file.
    """
    folder = path if path.is_dir() else path.parent
    number = folder.parent.name.removeprefix("round_")
    if folder.name == "policy" and number.isdecimal():
        RoundDir(folder.parent, int(number)).check_policy()


def _refuse_infinite(network: nn.Module, path: Path) -> None:
    """Refuse weights that make every video noise: those of a run that diverged, or damaged ones."""
    for name, weight in trained_weights(network).items():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise InputError(f"ckpt={path}: its {name} holds values that are not finite: it is "
                             "damaged, or of a training that diverged; take another")  # fmt: skip


def halve(network: nn.Module) -> None:
    """Put a network's weights into bfloat16, but for those that its family keeps in float32."""
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ())
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and not kept & set(name.split(".")):
            parameter.data = parameter.data.to(torch.bfloat16)


def _load_transformer(network: nn.Module, path: Path, policy: Policy) -> None:
    check_transformer(network, path, f"ckpt={path}", policy.name)
    put_weights(network, policy.load_export(path))


def _load_lightning(network: nn.Module, path: Path, policy: Policy) -> None:
    try:
        content = read_plain(path / "meta.pt" if path.is_dir() else path)
        base = content["ipo_lightning"]["base"]
        state = {} if path.is_dir() else content["state_dict"]
        odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
        if odd:
            raise TypeError(f"its {odd[0]} is no tensor")
    except Exception as error:
        raise InputError(
            f"ckpt={path}: not a checkpoint of this project, or a damaged one "
            f"({_unopened(error)}); take another of the run's checkpoints or its policy folder"
        ) from error
    if base != policy.identity:
        raise InputError(f"ckpt={path} was trained on another base model; give its backbone=")
    own = trained_weights(network)
    named = {name.removeprefix("network."): tensor for name, tensor in state.items()}
    weights = _gather(path, own) if path.is_dir() else {k: w for k, w in named.items() if k in own}
    refuse_unlike(network, {k: weight.shape for k, weight in weights.items()}, f"ckpt={path}")
    put_weights(network, weights)


def _unopened(error: Exception) -> str:
    """Why a checkpoint was not opened."""
    said = cause_of(error)
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if "weights_only" in said or "zip" in said.lower() or isinstance(error, EOFError):
        return "it is cut short or altered"
    return said


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
            dcp.load({"state_dict": state}, storage_reader=reader, **ALONE)
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, dcp.CheckpointException,
            AttributeError, LookupError, TypeError, EOFError) as error:  # fmt: skip
        said = cause_of(error)
        raise InputError(f"ckpt={path}: its shards cannot be read ({said})") from error
    return {name.removeprefix("network."): tensor for name, tensor in state.items()}
