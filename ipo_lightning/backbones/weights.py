"""A diffusers model's weights, mapped from its files and put into a network block by block.

A mapped tensor takes no memory of the process until it is changed: all ranks of a node share the
file's pages. Only what is stored in another precision is copied, so that a rank that gives each
block away (to its GPU, or as a shard) holds one block at a time.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor, nn

from ipo_lightning.backbones.outline import default_dtype
from ipo_lightning.backbones.quantised import QuantisedLinear

CPU = torch.device("cpu")
WRAPPED = ".base_layer"
"""What peft puts into the name of a layer that gets an adapter."""


def empty_network(kind: Any, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """A network of diffusers on the meta device, but for its buffers; in evaluation mode.

    Args:
        dtype: of its weights, but for those that the class always keeps in float32.
    """
    with default_dtype(dtype), init_empty_weights():
        network = kind.from_config(config)
    kept = set(kind._keep_in_fp32_modules or ())
    for name, parameter in network.named_parameters():
        whole = kept.intersection(name.split("."))
        parameter.data = parameter.data.to(torch.float32 if whole else dtype)
    return network.eval()


def stand_in(network: nn.Module) -> None:
    """Give each weight on the meta device one on the CPU that repeats a single value.

    It takes no memory either, and peft finds a device where it can draw an adapter.
    """
    for module in network.modules():
        for name, meta in module.named_parameters(recurse=False):
            if meta.is_meta:
                value = torch.zeros((), dtype=meta.dtype, device="cpu").expand(meta.shape)
                setattr(module, name, nn.Parameter(value, requires_grad=meta.requires_grad))


class StoredWeights:
    """The tensors of a model's files, by the names of its parameters and buffers.

    Args:
        files: see `weight_files`.
        network: of `empty_network`, as yet without an adapter or quantised layers.

    Raises:
        ValueError: the files lack a weight, or have one of another shape.
    """

    def __init__(self, files: Iterable[Path], network: nn.Module) -> None:
        self._tensors: dict[str, Tensor] = {}
        for file in files:
            self._tensors.update(load_file(file))
        own = dict(network.named_parameters())
        self._dtypes = {name: tensor.dtype for name, tensor in network.state_dict().items()}
        if lost := sorted(own.keys() - self._tensors.keys()):
            raise ValueError(
                f"{len(lost)} of the weights of its transformer are missing, as {lost[0]}"
            )
        for name, parameter in own.items():
            if (found := self._tensors[name].shape) != parameter.shape:
                shapes = f"{tuple(found)} in its file, {tuple(parameter.shape)} by its config"
                raise ValueError(f"{name} is {shapes}")

    def read(self, name: str, device: torch.device = CPU) -> Tensor:
        """A weight on a device, in the network's precision."""
        return self._tensors[name].to(device).to(self._dtypes[name])

    def of(self, names: Iterable[str]) -> Mapping[str, Tensor]:
        """The weights of these names, each read when it is asked for."""
        return _Some(self, tuple(names))

    @torch.no_grad()
    def put(self, network: nn.Module, part: nn.Module, device: torch.device = CPU) -> None:
        """Fill a part of a network, each tensor once; those of an adapter stay as they are.

        Args:
            device: where tensors go as they are stored, to be cast there: the CPU then needs no
                memory for them. What is quantised is cast and rounded on the CPU.
        """
        places = {module: name.replace(WRAPPED, "") for name, module in network.named_modules()}
        for module in part.modules():
            for name, own in chain(
                module.named_parameters(recurse=False), module.named_buffers(recurse=False)
            ):
                stored = f"{places[module]}.{name}".removeprefix(".")
                if stored in self._tensors:
                    rounded = isinstance(module, QuantisedLinear) and name == "weight"
                    _set(module, name, own, self.read(stored, CPU if rounded else device))
                    del self._tensors[stored]


class _Some(Mapping[str, Tensor]):
    """Some of the stored weights."""

    def __init__(self, stored: StoredWeights, names: tuple[str, ...]) -> None:
        self._stored, self._names = stored, names

    def __getitem__(self, name: str) -> Tensor:
        return self._stored.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _set(module: nn.Module, name: str, own: Tensor, stored: Tensor) -> None:
    if isinstance(module, QuantisedLinear) and name == "weight":
        module.quantise(stored)
    elif isinstance(own, nn.Parameter):
        setattr(module, name, nn.Parameter(stored.contiguous(), requires_grad=own.requires_grad))
    else:
        setattr(module, name, stored.contiguous())


def weight_files(path: str, revision: str | None, part: str) -> list[Path]:
    """The safetensors files of a part of a pipeline; none where its weights are of another kind.

    Args:
        path: a folder, or a hub id, whose files are downloaded if need be.
    """
    index = _file(path, revision, part, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        single = _file(path, revision, part, SAFETENSORS_WEIGHTS_NAME)
        return [] if single is None else [single]
    names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    files = [_file(path, revision, part, name) for name in names]
    return [found or index.with_name(name) for found, name in zip(files, names, strict=True)]


def _file(path: str, revision: str | None, part: str, name: str) -> Path | None:
    if Path(path).is_dir():
        file = Path(path, part, name)
        return file if file.is_file() else None
    try:
        return Path(hf_hub_download(path, f"{part}/{name}", revision=revision))
    except EntryNotFoundError:
        return None
