"""Weights that a policy begins with in place of its base model's: ``start=PATH``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ipo_lightning.backbones.lora import load_adapter, merge_adapters
from ipo_lightning.backbones.weights import StoredWeights, stand_in, weight_files
from ipo_lightning.errors import InputError, readable
from ipo_lightning.settings import Text, checked
from ipo_lightning.storage.store import file_sha256, folder_fingerprint
from ipo_lightning.storage.transformer_folder import check_transformer


@checked
@dataclass(frozen=True)
class Start:
    """A LoRA file or a transformer's folder, as diffusers writes them.

    The policy that begins with it is round 0 of its run, the one that references and gains go back
    to. A LoRA that is merged, and a transformer, take the place of base weights: adapters are
    trained over them, and fit them alone. A LoRA that is not merged is the adapter's own beginning:
    what is trained fits the plain base model.

    Args:
        path: of a ``.safetensors`` file with a LoRA, or of a folder with config.json and weights.
        merge: add a LoRA to the base weights.
        before: what the base weights were when the LoRA was trained.
    """

    path: Text
    merge: bool = True
    before: Start | None = None

    def __post_init__(self) -> None:
        if self.before is not None and not self.is_lora:
            raise InputError(setting="before", expected="give null: a transformer replaces it all")
        if not self.merge and not self.is_lora:
            raise InputError(setting="merge", value="false", expected="true: it is no LoRA")
        if self.before is not None and not self.before.merge:
            raise InputError(
                setting="before.merge", value="false", expected="true: it is of others"
            )

    @property
    def is_lora(self) -> bool:
        """Whether it is a LoRA's file."""
        return Path(self.path).suffix == ".safetensors"

    @property
    def changes_base(self) -> Iterator[Start]:
        """What takes the place of base weights, the earliest first."""
        if self.before is not None:
            yield from self.before.changes_base
        if self.merge:
            yield self

    @property
    def identity(self) -> list[Any]:
        """Plain JSON: what its weights depend on.

        Raises:
            InputError: there is no such file or folder.
        """
        path = Path(self.path)
        if not path.exists():
            raise InputError(setting="path", value=path, expected="it is gone: put it back")
        content = [file_sha256(path), _settings_beside(path)] if self.is_lora else [
            folder_fingerprint(path)
        ]  # fmt: skip
        before = [] if self.before is None else self.before.identity
        return [*before, *content, self.merge]


def _settings_beside(file: Path) -> str:
    """Hash of peft's settings of a LoRA, which lie beside its file; empty where there are none."""
    settings = file.with_name("adapter_config.json")
    return file_sha256(settings) if settings.is_file() else ""


def changed_base(
    network: nn.Module,
    weights: StoredWeights | None,
    start: Start,
    original: Callable[[str], str],
    model: str,
) -> StoredWeights | None:
    """Put a start in place of base weights.

    A transformer's weights are read from its own files later. A LoRA is merged at once, into whole
    weights on the CPU.

    Args:
        network: without an adapter. weights: what it must yet be filled with; None: it is filled.
        original: see `lora.load_adapter`. model: its name in messages.

    Returns:
        What it must be filled with now.

    Raises:
        InputError: they do not fit the network.
    """
    path = Path(start.path)
    with readable(path):
        if not start.is_lora:
            check_transformer(network, path, f"start={path}", model)
            return StoredWeights(weight_files(str(path), None, ""), network)
        if weights is not None:
            stand_in(network)
            weights.put(network, network)
        trained = [parameter.requires_grad for parameter in network.parameters()]
        load_adapter(network, path, original)
        merge_adapters(network)
        for parameter, one in zip(network.parameters(), trained, strict=True):
            parameter.requires_grad_(one)
    return None
