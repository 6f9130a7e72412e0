"""The network of a diffusers folder: built with the weights that a run starts from, exported,
loaded again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ipo_lightning.backbones.context import divide_tokens
from ipo_lightning.backbones.lora import (
    Lora,
    add_adapter,
    continue_adapter,
    load_adapter,
    merge_adapters,
    save_adapter,
    saved_adapter,
)
from ipo_lightning.backbones.lora_overlay import Overlay, read_overlay
from ipo_lightning.backbones.network_settings import NetworkSettings
from ipo_lightning.backbones.parts import PipelineParts
from ipo_lightning.backbones.start import Start, changed_base
from ipo_lightning.backbones.weights import StoredWeights, empty_network, stand_in
from ipo_lightning.parallel.sharding import move, shard
from ipo_lightning.policy import file_content, trained_weights

CPU = torch.device("cpu")


class BuildsNetwork:
    """The part of a `Policy` that makes, writes and reads its network."""

    transformer_class: ClassVar[Any]
    pipeline_class: ClassVar[Any]
    name: str
    parts: PipelineParts
    network_settings: NetworkSettings
    lora: Lora | None
    start: Start | None

    @property
    def config(self) -> dict[str, Any]:
        """The transformer's config."""
        raise NotImplementedError

    def original_layer(self, layer: str) -> str:
        """The name of one of the network's layers in the family's original code."""
        return layer

    def build(self, device: torch.device = CPU, mesh: DeviceMesh | None = None) -> Any:
        """A new network with the base weights; see `Policy.build`."""
        network, weights = self._unfilled()

        def fill(part: nn.Module) -> None:
            if weights is not None:
                weights.put(network, part, device)

        if mesh is None:
            move(network, device, fill)
        else:
            shard(network, mesh, fill)
        return network

    def divide_tokens(self, network: nn.Module, mesh: DeviceMesh) -> None:
        """Let a group of ranks make the network's forwards together; see `Policy`."""
        divide_tokens(network, mesh, self.network_settings.attention)

    @property
    def tokens(self) -> int:
        """Tokens of one video in the network's attention, with those of its prompt where it sees
        both together."""
        raise NotImplementedError

    @property
    def heads(self) -> int:
        """Heads of the network's attention."""
        return int(self.config["num_attention_heads"])

    @property
    def width(self) -> int:
        """Numbers of a token, over all heads."""
        return self.heads * int(self.config["attention_head_dim"])

    def small_network(self) -> Any:
        """Two blocks of the network, without weights."""
        config = {**self.config, "num_layers": 2}
        kind = getattr(self.transformer_class, "kind", self.transformer_class)
        with torch.device("meta"):
            return kind.from_config(config)

    def overlay(self, file: str) -> Overlay:
        """The content of a LoRA's file, to lay over the network; read once."""
        key = tuple(file_content(file))
        if key not in self._overlays:
            kind = getattr(self.transformer_class, "kind", self.transformer_class)
            network = empty_network(kind, self.config, torch.float32)
            stand_in(network)
            self._overlays[key] = read_overlay(Path(file), network, self.original_layer)
        return self._overlays[key]

    @cached_property
    def _overlays(self) -> dict[tuple[str, ...], Overlay]:
        return {}

    def frame(self) -> Any:
        """A network whose frozen weights are not there; see `Policy.frame`."""
        return self._unfilled()[0]

    def base_weights(self) -> Mapping[str, Tensor]:
        """The weights that training starts from; see `Policy.base_weights`."""
        network, weights = self._unfilled()
        own = trained_weights(network)
        return own if weights is None or self.lora is not None else weights.of(own)

    def _unfilled(self) -> tuple[Any, StoredWeights | None]:
        """A network on the CPU with its adapter, if any, and what it must yet be filled with."""
        _ = self.config  # refuses what is not the family's before it is loaded
        dtype = self.network_settings.dtype
        with CPU:  # whichever device is entered: an adapter would start elsewhere on each
            network, weights = self.parts.network(self.transformer_class, "transformer", dtype)
            for start in self.start.changes_base if self.start else ():
                weights = changed_base(network, weights, start, self.original_layer, self.name)
            self.network_settings.quantise(network)
            stand_in(network)
            if self.lora is not None and self.start is not None and not self.start.merge:
                continue_adapter(network, self.lora, Path(self.start.path), self.original_layer)
            elif self.lora is not None:
                add_adapter(network, self.lora)
        self.network_settings.configure(network)
        return network, weights

    # ---------------------------------------------------------------- export

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write a transformer folder, or a LoRA file, in the weights' own precision: no copy."""
        if self.lora is not None:
            save_adapter(network, self.pipeline_class, folder)
        else:
            self.export_merged(network, folder)

    def export_merged(self, network: nn.Module, folder: Path) -> None:
        """Write a transformer's folder, adapters merged into the weights; see `Policy`."""
        merge_adapters(network)
        # Else its config.json would name the folder of this machine that the base lay in.
        cast(Any, network).register_to_config(_name_or_path=self.name)
        cast(Any, network).save_pretrained(folder)

    def load_export(self, folder: Path) -> dict[str, Tensor]:
        """The weights of an `export`, by the names of the network's parameters."""
        return self._saved_weights(folder) if self.lora is None else saved_adapter(folder)

    def _saved_weights(self, folder: Path) -> dict[str, Tensor]:
        """All weights of a transformer's folder, by name."""
        dtype = self.network_settings.dtype
        network = self.transformer_class.from_pretrained(folder, torch_dtype=dtype)
        return {name: parameter.detach() for name, parameter in network.named_parameters()}

    def load_lora(self, network: nn.Module, file: Path) -> None:
        """Put a LoRA, with its own rank and alpha, on a base network."""
        load_adapter(network, file, self.original_layer)
