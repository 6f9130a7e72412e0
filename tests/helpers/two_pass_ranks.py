"""Gradients of one step on two ranks, plain and in two passes; used by test_two_pass."""

from functools import partial
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ipo_lightning.draws.batch import PairBatch
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.references import CachedReference
from tests.helpers import tiny


class Step(nn.Module):
    """What DistributedDataParallel wraps in Lightning: the module, its forward a training step."""

    def __init__(self, module: PreferenceModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: PairBatch) -> Tensor:
        """The loss of a batch."""
        total: Tensor = self.module.pair_step(batch)[0]
        return total


def gradients(folder: Path, kind: str, two_pass: bool, checkpointing: bool) -> dict[str, Tensor]:
    """Whole gradients of a step, the mean over the ranks."""
    module = PreferenceModule(
        tiny.policy(folder, checkpointing=checkpointing), partial(dpo_loss, beta=20.0),
        CachedReference(), torch.optim.SGD, winner_weight=0.5, two_pass=two_pass,
    )  # fmt: skip
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.configure_model()
    if kind == "fsdp2":
        for block in module.network.transformer_blocks:
            fully_shard(block)
        fully_shard(module.network)
    step = Step(module)
    call: nn.Module = DistributedDataParallel(step) if kind == "ddp" else step
    known = torch.tensor([0.9, 1.1])
    batch = tiny.pair_batch(2, seed=dist.get_rank())._replace(ref_win=known, ref_lose=known)
    for _ in range(2):  # the second is accumulated on the first
        call(batch).backward()
    found = {}
    for name, parameter in module.network.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad
        found[name] = grad.full_tensor() if isinstance(grad, DTensor) else grad.clone()
    return found


def write(folder: Path, kind: str, out: Path) -> None:
    """Write the gradients of the plain step and of both others, from the first rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {
        name: gradients(folder, kind, two_pass, checkpointing)
        for name, two_pass, checkpointing in (
            ("plain", False, False), ("two_pass", True, False), ("checkpointing", True, True),
        )
    }  # fmt: skip
    if dist.get_rank() == 0:
        torch.save(found, out)
    dist.destroy_process_group()
