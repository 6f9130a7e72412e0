"""Moving averages of weights, for a reference that follows and for a policy that is smoothed."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ipo_lightning.parallel.sharding import placed_like, whole


class MovingAverage:
    """``average = decay * average + (1 - decay) * weights`` after each update, in float32.

    Args:
        weights: where it starts, by name, shards where they are sharded. Tensors of float32 become
            the average's own and move with it; of others it makes float32 copies, since one
            update's share is lost in bfloat16.
        decay: in [0, 1); the average forgets half in ``log(0.5) / log(decay)`` updates.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights = {name: weight.float() for name, weight in weights.items()}
        self.decay = decay

    @torch.no_grad()
    def follow(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights after an update in."""
        for name, average in self.weights.items():
            current = weights[name].to(device=average.device, dtype=average.dtype)
            average.lerp_(current, 1 - self.decay)

    def state(self) -> dict[str, Tensor]:
        """Copies, whole on every rank, for a checkpoint; every rank must ask."""
        return {name: whole(average).clone() for name, average in self.weights.items()}

    @torch.no_grad()
    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, average in self.weights.items():
            average.copy_(placed_like(state[name], average))
