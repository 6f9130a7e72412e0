"""What starts anew with each round: moments, and a learning rate that warms up to a plateau."""

from typing import Any

import torch
from torch import Tensor

PLATEAU = "plateau_lr"
"""Key of a parameter group that holds its learning rate after the warm-up."""


def set_plateau(optimizer: torch.optim.Optimizer) -> None:
    """Take the optimizer's learning rates for those of the plateau."""
    for group in optimizer.param_groups:
        group[PLATEAU] = float(group["lr"])  # torchao keeps its rate in a tensor


def warm_up(
    optimizer: torch.optim.Optimizer, step: int, warmup_steps: int, scale: float = 1.0
) -> None:
    """Set the learning rates of a round's optimizer step, 0 the first.

    ``lr = scale * plateau * min(1, (step + 1) / (warmup_steps + 1))``
    """
    share = scale * min(1.0, (step + 1) / (warmup_steps + 1))
    for group in optimizer.param_groups:
        _set_learning_rate(group, share * group[PLATEAU])


def drop_moments(optimizer: torch.optim.Optimizer) -> None:
    """Forget gradients and moments, and free their memory."""
    optimizer.zero_grad()
    optimizer.state.clear()


def _set_learning_rate(group: dict[str, Any], rate: float) -> None:
    """In place where the optimizer keeps its rate in a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
