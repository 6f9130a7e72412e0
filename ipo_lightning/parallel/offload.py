"""CPU offload of a frozen network: its blocks are copied to the device one at a time."""

from itertools import chain

import torch
from torch import Tensor, nn

from ipo_lightning.parallel.sharding import blocks


def keep_on_cpu(network: nn.Module, device: torch.device) -> None:
    """Keep a network's blocks in CPU memory; each is on ``device`` only during its forwards.

    All outside of the blocks (embeddings, the last layers) moves to the device and stays there. The
    outputs are the same bits. For forwards without gradients: a graph would keep the copies.

    Args:
        network: built on the CPU; its blocks are put in pinned memory where the device is a GPU.
    """
    offloaded = list(blocks(network))
    tensors = [_tensors(block) for block in offloaded]
    on_cpu = {id(tensor) for some in tensors for tensor in some}
    for tensor in _tensors(network):
        if id(tensor) not in on_cpu:
            tensor.data = tensor.data.to(device)
        elif device.type == "cuda":
            tensor.data = tensor.data.pin_memory()
    for block, some in zip(offloaded, tensors, strict=True):
        _copy_for_forwards(block, some, device)


def _tensors(module: nn.Module) -> list[Tensor]:
    return list(chain(module.parameters(), module.buffers()))


def _copy_for_forwards(block: nn.Module, tensors: list[Tensor], device: torch.device) -> None:
    """Copy a block's tensors to the device before each of its forwards, and drop them after it."""
    originals = [tensor.data for tensor in tensors]

    def copy(*_: object) -> None:
        for tensor, original in zip(tensors, originals, strict=True):
            # Not non_blocking: a moving average may write to the original during the copy.
            tensor.data = original.to(device, copy=True)

    def drop(*_: object) -> None:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original
        torch.clear_autocast_cache()  # its casts would stay on the device

    block.register_forward_pre_hook(copy)
    block.register_forward_hook(drop, always_call=True)
