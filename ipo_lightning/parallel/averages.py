"""Exponential moving averages (EMA) of weights, of a moving reference or of the policy."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ipo_lightning.parallel.sharding import placed_like, whole


class MovingAverage:
    """``average = decay * average + (1 - decay) * weights`` after each optimizer step, in float32.

    Args:
        weights: its first value, by name; shards where weights are sharded. Tensors of float32
            become the average's own, and change with it; others are copied to float32, since the
            share of one step is lost in bfloat16.
        decay: in [0, 1); the average forgets half in ``log(0.5) / log(decay)`` steps.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights = {name: weight.float() for name, weight in weights.items()}
        self.decay = decay

    @torch.no_grad()
    def follow(self, weights: Mapping[str, Tensor]) -> None:
        """Average in the weights after an optimizer step."""
        for name, average in self.weights.items():
            current = weights[name].to(device=average.device, dtype=average.dtype)
            average.lerp_(current, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """Copies for a checkpoint, not sharded; every rank must call it."""
        return {name: whole(average).clone() for name, average in self.weights.items()}

    @torch.no_grad()
    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave."""
        for name, average in self.weights.items():
            average.copy_(placed_like(state[name], average))
