"""A dimension of VBench as a torchmetrics metric: its mean over many videos, over all ranks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ipo_lightning.vbench.critics import Dimension, Unmeasured
from ipo_lightning.video import Clip


class DimensionMean(Metric):
    """A dimension's value over videos, averaged as VBench does in one process.

    Consistencies are averaged over the frames of all videos, the others over videos. Videos without
    a value are left out and counted in ``unmeasured``.

    Args:
        dimension: as of `ipo_lightning.vbench.critics`. Its network is no part of this metric's
            state: load it to a device of your choice, and release it.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    total: Tensor
    count: Tensor
    unmeasured: Tensor

    def __init__(self, dimension: Dimension, **settings: Any) -> None:
        super().__init__(**settings)
        self.dimension = dimension
        for state in ("total", "count", "unmeasured"):
            zero = torch.zeros((), dtype=torch.float64)
            self.add_state(state, zero, dist_reduce_fx="sum")

    def update(self, clips: Sequence[Clip]) -> None:
        """Add videos."""
        for clip in clips:
            try:
                values = self.dimension.measure(clip).double()
            except Unmeasured:
                self.unmeasured += 1
                continue
            values = values if self.dimension.by_frame else values.mean()[None]
            self.total += values.sum().to(self.total.device)
            self.count += len(values)

    def compute(self) -> Tensor:
        """The mean, float64; NaN where no video has a value."""
        return self.total / self.count
