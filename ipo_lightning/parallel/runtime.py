"""Where and how the work of a round is computed: device, precision, processes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ipo_lightning.parallel.workers import Workers

Autocast = Callable[[], AbstractContextManager[None]]
"""Opens the context that sets the precision of a forward."""


def arithmetic(precision: str) -> str:
    """A precision in Lightning's words, with torch's precision of float32's matrix products where
    that is not its default: both decide about the bits of what is computed."""
    matmul = torch.get_float32_matmul_precision()
    return precision if matmul == "highest" else f"{precision}, matmul {matmul}"


@dataclass(frozen=True)
class Runtime:
    """What a stage needs to know of the machine; by default one process on the CPU in float32."""

    device: torch.device = torch.device("cpu")
    """Where the network of this process lies."""
    precision: str = "32-true"
    """See `arithmetic`; part of the fingerprint of all that is computed."""
    autocast: Autocast = nullcontext
    """Entered around forwards: the policy must sample with the numerics that it trains with."""
    workers: Workers = Workers()
    """The processes that share the work."""
