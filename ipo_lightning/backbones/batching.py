"""A prompt's videos in batches of a given size, or as large as the GPU's memory allows."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ipo_lightning.errors import InputError

_log = logging.getLogger(__name__)

Work = Callable[[slice], Tensor]
"""Rows of N videos to the results (B, ...) of these rows."""


def in_batches(work: Work, count: int, size: int) -> Tensor:
    """The results of ``count`` videos, (N, ...), at most ``size`` of them at once."""
    return torch.cat([work(slice(start, start + size)) for start in range(0, count, size)])


class LargestBatch:
    """Batches of all videos, halved whenever the GPU runs out of memory."""

    def __init__(self) -> None:
        self.size: int | None = None
        """Videos that fit into memory together; None: no batch has been too large yet."""

    def run(self, work: Work, count: int) -> Tensor:
        """The results of ``count`` videos, (N, ...).

        Raises:
            InputError: one video alone does not fit.
        """
        size = min(self.size or count, count)
        while True:
            try:
                return in_batches(work, count, size)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise InputError(f"one video alone does not fit the memory: {error}") from error
            # Out here the error, and the tensors of its frames, are gone.
            torch.cuda.empty_cache()
            size = self.size = -(-size // 2)
            _log.warning("out of memory: from now on %d videos are denoised at once", size)
