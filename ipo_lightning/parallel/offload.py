"""Frozen blocks that lie in CPU memory and visit the device one at a time."""

from itertools import chain

import torch
from torch import Tensor, nn

from ipo_lightning.parallel.sharding import blocks


def keep_on_cpu(network: nn.Module, device: torch.device) -> None:
    """Leave a network's blocks in CPU memory; each is on ``device`` for its forwards alone.

    What lies outside of the blocks (embeddings, the last layers) moves to the device and stays. The
    answers are the same bits. For forwards without gradients: a graph would hold what visits.

    Args:
        network: built on the CPU; on the way to a GPU its blocks are put in pinned memory.
    """
    visiting = list(blocks(network))
    tensors = [_tensors(block) for block in visiting]
    at_home = {id(tensor) for some in tensors for tensor in some}
    for tensor in _tensors(network):
        if id(tensor) not in at_home:
            tensor.data = tensor.data.to(device)
        elif device.type == "cuda":
            tensor.data = tensor.data.pin_memory()
    for block, some in zip(visiting, tensors, strict=True):
        _let_visit(block, some, device)


def _tensors(module: nn.Module) -> list[Tensor]:
    return list(chain(module.parameters(), module.buffers()))


def _let_visit(block: nn.Module, tensors: list[Tensor], device: torch.device) -> None:
    """Bring a block's tensors before each of its forwards, and put its own back after it."""
    homes = [tensor.data for tensor in tensors]

    def come(*_: object) -> None:
        for tensor, home in zip(tensors, homes, strict=True):
            # Not non_blocking: a moving average may write to the home while a copy is under way.
            tensor.data = home.to(device, copy=True)

    def leave(*_: object) -> None:
        for tensor, home in zip(tensors, homes, strict=True):
            tensor.data = home
        torch.clear_autocast_cache()  # its casts would stay on the device

    block.register_forward_pre_hook(come)
    block.register_forward_hook(leave, always_call=True)
