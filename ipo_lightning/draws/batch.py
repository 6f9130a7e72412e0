"""The tensor records that cross from the data to the module.

A *draw* is a pair or a point with a timestep, which ``u`` stands for, and with ``noise``;
winner and loser share both. A batch holds B draws.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Videos(NamedTuple):
    """N videos to be noised and predicted."""

    latents: Tensor
    """(N, ...) float32."""
    text: Tensor
    """(N, L, D) prompt embeddings."""
    noise: Tensor
    """(N, ...) float32."""
    u: Tensor
    """(N,) float64 in [0, 1), the place of the timestep in its distribution."""


class PairBatch(NamedTuple):
    """B draws to pairs."""

    win: Tensor
    """(B, ...) float32 latents of the winners."""
    lose: Tensor
    """(B, ...) float32 latents of the losers."""
    text: Tensor
    """(B, L, D) prompt embeddings."""
    noise: Tensor
    """(B, ...) float32, shared by winner and loser."""
    u: Tensor
    """(B,) float64 in [0, 1), the place of the timestep in its distribution."""
    weight: Tensor
    """(B,) float32 weight of the pair in the loss."""
    row: Tensor
    """(B,) int64 row of the pair in the round's pairs.jsonl."""
    ref_win: Tensor
    """(B,) float32 errors of the reference, NaN where they were not computed in advance."""
    ref_lose: Tensor
    """(B,) as ``ref_win``."""
    real: Videos | None = None
    """Real clips beside the pairs, where lambda_2 is above 0."""

    def videos(self) -> Videos:
        """2B videos: the winners, then the losers, each with its pair's noise and timestep."""
        return Videos(
            torch.cat([self.win, self.lose]),
            torch.cat([self.text, self.text]),
            torch.cat([self.noise, self.noise]),
            torch.cat([self.u, self.u]),
        )

    def reference(self) -> Tensor:
        """(2B,) the errors of `videos` that were computed in advance."""
        return torch.cat([self.ref_win, self.ref_lose])


class PointBatch(NamedTuple):
    """B draws to single videos labelled desirable or not."""

    latents: Tensor
    """(B, ...) float32."""
    text: Tensor
    """(B, L, D) prompt embeddings."""
    noise: Tensor
    """(B, ...) float32."""
    u: Tensor
    """(B,) float64 in [0, 1)."""
    weight: Tensor
    """(B,) float32."""
    desirable: Tensor
    """(B,) bool."""
    reward: Tensor
    """(B,) float32 in [0, 1], how good the critic finds it beside its siblings."""
    row: Tensor
    """(B,) int64 row of the point in the round's points.jsonl."""
    ref: Tensor
    """(B,) float32 error of the reference, NaN where it was not computed in advance."""
    real: Videos | None = None
    """Real clips beside the points, where lambda_2 is above 0."""

    def videos(self) -> Videos:
        """The B videos."""
        return Videos(self.latents, self.text, self.noise, self.u)

    def reference(self) -> Tensor:
        """(B,) the errors of `videos` that were computed in advance."""
        return self.ref
