"""A diffusers pipeline on disk or on a hub, read part by part."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import ModelMixin
from huggingface_hub import hf_hub_download
from torch import nn
from transformers import PreTrainedModel

from ipo_lightning.backbones.weights import StoredWeights, empty_network, weight_files
from ipo_lightning.errors import InputError, cause_of
from ipo_lightning.storage.store import folder_fingerprint


class PipelineParts:
    """Reads parts of a pipeline when they are asked for, and model_index.json before the first.

    Args:
        path: a diffusers folder, or a hub id, which is read from the local cache or the network.
        revision: of the hub id; None for a folder.
        pipeline_class: the class of diffusers that the pipeline should be.
        check_index: refuses the model_index.json of another pipeline with `InputError`.

    Raises:
        InputError: ``path`` is neither; and from each method: the part cannot be read.
    """

    def __init__(
        self,
        path: str,
        revision: str | None,
        pipeline_class: Any,
        check_index: Callable[[dict[str, Any]], None],
    ) -> None:
        check_path(path)
        self.path, self.revision = path, revision
        self._pipeline_class, self._check_index = pipeline_class, check_index

    @cached_property
    def index(self) -> dict[str, Any]:
        """The content of model_index.json."""
        with named(self.path):
            content = self._pipeline_class.load_config(self.path, revision=self.revision)
            index = _Config(f"backbone.path={self.path}: model_index.json", content)
        self._check_index(index)
        return index

    @cached_property
    def content(self) -> list[str]:
        """What the pipeline is known by: a hash of the folder, or the hub id and its commit."""
        if Path(self.path).is_dir():
            return [folder_fingerprint(self.path)]
        with named(self.path):
            index = hf_hub_download(self.path, "model_index.json", revision=self.revision)
        return [self.path, Path(index).parent.name]

    def class_of(self, part: str) -> str:
        """The name of a part's class in model_index.json."""
        with named(self.path):
            return str(self.index[part][1])

    def config(self, kind: Any, part: str) -> dict[str, Any]:
        """The config of a part, such as ``transformer``, of a class of diffusers."""
        where = self._where(part)
        with named(self.path):
            return _Config(
                f"backbone.path={self.path}: {part}/config.json", kind.load_config(**where)
            )

    def load(self, kind: Any, part: str, **settings: Any) -> Any:
        """A part, of a class of diffusers or transformers; settings go to ``from_pretrained``."""
        where = self._where(part)
        with named(self.path):
            if isinstance(kind, type) and issubclass(cast(Any, kind), ModelMixin | PreTrainedModel):
                more = {**settings, "output_loading_info": True}
                return _whole(part, *cast(Any, kind).from_pretrained(**where, **more))
            return kind.from_pretrained(**where, **settings)

    def network(
        self, kind: Any, part: str, dtype: torch.dtype
    ) -> tuple[nn.Module, StoredWeights | None]:
        """A network of a class of diffusers, and the weights that it must yet be filled with.

        Weights in other files than safetensors are filled in here, then None is left to fill in.
        """
        if isinstance(kind, type) and issubclass(cast(Any, kind), ModelMixin):
            config = self.config(kind, part)
            with named(self.path):
                if files := weight_files(self.path, self.revision, part):
                    network = empty_network(kind, config, dtype)
                    return network, StoredWeights(files, network)
        return self.load(kind, part, torch_dtype=dtype), None

    def _where(self, part: str) -> dict[str, Any]:
        _ = self.index  # refuses other pipelines before any of their parts is read
        return {
            "pretrained_model_name_or_path": self.path,
            "subfolder": part,
            "revision": self.revision,
        }


class _Config(dict[str, Any]):
    """A config that says whose it is where it lacks a key."""

    def __init__(self, owner: str, content: dict[str, Any]) -> None:
        super().__init__(content)
        self._owner = owner

    def __missing__(self, key: str) -> Any:
        raise InputError(f"{self._owner} has no {key}; download the folder again")


def _whole(part: str, model: Any, found: dict[str, Any]) -> Any:
    """A model all of whose weights were there; diffusers would go on with random ones."""
    own = {name for name, _ in model.named_parameters()}
    if lost := sorted(own & set(found["missing_keys"])):
        raise ValueError(f"{len(lost)} of the weights of its {part} are missing, as {lost[0]}")
    return model


@contextmanager
def named(path: str) -> Iterator[None]:
    """Name the pipeline in the message where its files cannot be read, as by a wrong hub id."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError | MemoryError) or "OutOfMemory" in type(error).__name__:
            raise
        if Path(path).is_dir():
            raise InputError(
                f"backbone.path={path} cannot be read: {_local(error)}; a file in it is missing or "
                "damaged: copy or download the folder again"
            ) from error
        if not isinstance(error, OSError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"backbone.path={path} cannot be read: {reason} (a folder is read from disk; a hub id "
            "needs the network, or a copy in the local cache)"
        ) from error


def _local(error: Exception) -> str:
    """The cause in a folder, without others' advice on hubs and networks."""
    said = cause_of(error)
    return re.split(r"(?i)(?:\.|,|;)\s[^.]*(?:internet|huggingface\.co|hub)", said)[0]


def check_path(path: str) -> None:
    """Refuse what is neither a diffusers folder nor looks like ``owner/name`` on a hub."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"backbone.path={path}: no model_index.json there; give the folder of a diffusers "
                "pipeline or a hub id"
            )
    elif path.count("/") != 1 or path.startswith((".", "~", "/")) or folder.parent.is_dir():
        raise InputError(f"backbone.path={path}: there is no such folder, nor is it a hub id")
