"""Context parallelism through diffusers: all that is used of its experimental API is here.

diffusers divides the tokens of a network by hooks, and its attention exchanges heads (Ulysses) or
keys and values (ring) between the ranks. Wan has a plan of its own there. CogVideoX has none: its
attention sees text and video as one sequence, which `JointSequence` divides evenly, and its
attention does not go through diffusers' dispatch, which `JointAttention` mends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from diffusers import CogVideoXTransformer3DModel, ContextParallelConfig
from diffusers.hooks.context_parallel import EquipartitionSharder
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    dispatch_attention_fn,
)
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.utils import logging
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from ipo_lightning.errors import InputError

RING = {
    None: AttentionBackendName._NATIVE_FLASH,
    "flash": AttentionBackendName._NATIVE_FLASH,
    "cudnn": AttentionBackendName._NATIVE_CUDNN,
}
"""`NetworkSettings.attention` -> a backend of diffusers that can merge attention over parts of the
keys, as torch's own dispatch cannot."""


def divide_tokens(network: Any, mesh: DeviceMesh, attention: str | None) -> None:
    """Divide a network's tokens over a mesh of (ring, ulysses).

    Args:
        attention: the kernel that the settings name.

    Raises:
        InputError: diffusers has no plan for the network, or the kernel knows no ring.
    """
    ring, ulysses = (int(mesh[name].size()) for name in ("ring", "ulysses"))
    joint = isinstance(network, CogVideoXTransformer3DModel)
    if joint:
        network.set_attn_processor(JointAttention())
    if ring > 1:
        _use_ring(network, attention)
    config = ContextParallelConfig(ring_degree=ring, ulysses_degree=ulysses, mesh=mesh)
    with _quiet():
        network.enable_parallelism(config=config, cp_plan={} if joint else _plan(network))
    if joint:
        JointSequence(config._flattened_mesh).register(network)


def _plan(network: Any) -> dict[str, Any]:
    """The family's own plan, but for what it says of the network's inputs: Wan's is of timesteps by
    token, and warns of ours, which are by video.

    Raises:
        InputError: it has none.
    """
    plan = network._cp_plan
    if plan is None:
        raise InputError(
            f"trainer.strategy: diffusers has no context parallelism for {type(network).__name__}; "
            "give ulysses=1 and ring=1"
        )
    return {name: parts for name, parts in plan.items() if name}


def _use_ring(network: Any, attention: str | None) -> None:
    """Let attention use a kernel that can be merged over parts of the keys."""
    if attention not in RING:
        raise InputError(
            f"trainer.strategy.ring: backbone.attention={attention} knows no ring; give flash, "
            "cudnn or null, or trainer.strategy.ulysses alone"
        )
    if next(network.parameters()).device.type == "cpu":
        raise InputError(
            "trainer.strategy.ring: torch has no attention on the CPU that ring attention can "
            "merge; give trainer.strategy.ulysses alone"
        )
    for part in network.modules():
        processor: Any = getattr(part, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = RING[attention]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warning that the API is experimental, which users here cannot act on."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class JointAttention:
    """CogVideoX's attention over text and video, as diffusers' `CogVideoXAttnProcessor2_0` has it,
    but through its dispatch of attention, which knows backends and groups of ranks."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, V, D) of the video and (B, T, D) of the text, after attention over both."""
        text = encoder_hidden_states.size(1)
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            layer(both).unflatten(2, (attn.heads, -1))
            for layer in (attn.to_q, attn.to_k, attn.to_v)
        )
        if attn.norm_q is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (_rotated(one, text, image_rotary_emb) for one in (query, key))
        found = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        out = attn.to_out[1](attn.to_out[0](found.flatten(2, 3).type_as(query)))
        return out[:, text:], out[:, :text]


def _rotated(x: Tensor, text: int, positions: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, T + V, H, D) with the positions (V, D) of the video."""
    video: Any = apply_rotary_emb(x[:, text:], positions, sequence_dim=1)
    return torch.cat([x[:, :text], video], dim=1)


class JointSequence:
    """Divides text and video, as one sequence, evenly among the ranks of a group.

    The first ranks have the text, and fewer tokens of the video; the others have video alone. So
    one length has to be divisible, not two: CogVideoX's 226 tokens of text would go into two parts
    only. The hooks divide what enters the first block and the rotary positions, and gather what
    leaves the last layer.

    Args:
        mesh: of the group, of one dimension.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh
        self.rank, self.size = dist.get_rank(mesh.get_group()), int(mesh.size())
        self._text = (0, 0)  # tokens of text in all, and here, of the forward at hand

    def register(self, network: Any) -> None:
        """Put the hooks on a network."""
        network.register_forward_pre_hook(self._positions, with_kwargs=True)
        first = network.transformer_blocks[0]
        first.register_forward_pre_hook(self._divide, with_kwargs=True)
        network.proj_out.register_forward_hook(self._gather)

    def _places(self, text: int, video: int) -> tuple[slice, slice]:
        """This rank's tokens of the text and of the video."""
        here = (text + video) // self.size
        start, end = self.rank * here, (self.rank + 1) * here
        return (
            slice(min(start, text), min(end, text)),
            slice(max(start - text, 0), max(end - text, 0)),
        )

    def _positions(
        self, network: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        rotary = given.get("image_rotary_emb")
        if rotary is None:
            return args, given
        _, ours = self._places(given["encoder_hidden_states"].size(1), len(rotary[0]))
        return args, {**given, "image_rotary_emb": tuple(table[ours] for table in rotary)}

    def _divide(
        self, block: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        video, text = given["hidden_states"], given["encoder_hidden_states"]
        of_text, of_video = self._places(text.size(1), video.size(1))
        self._text = (text.size(1), of_text.stop - of_text.start)
        # Copies: a view would keep the whole sequence in memory for the backward.
        ours = {"hidden_states": video[:, of_video], "encoder_hidden_states": text[:, of_text]}
        return args, {**given, **{name: part.clone() for name, part in ours.items()}}

    def _gather(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """(B, V, D) of the whole video; the text's places hold zeros on the way."""
        whole, here = self._text
        gathered: Tensor = EquipartitionSharder.unshard(
            F.pad(output, (0, 0, here, 0)), 1, self.mesh
        )
        return gathered[:, whole:]
