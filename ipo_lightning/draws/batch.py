"""The tensor records that cross from the data to the module.

A *draw* is a pair or a point with noise and with ``u``, a uniform random number in [0, 1) of which
the timestep is the quantile (see `ipo_lightning.objectives.quantile`). Winner and loser share both.
A batch has B draws.
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
    """(N,) float64 in [0, 1), uniform draws of the timesteps."""


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
    """(B,) float64 in [0, 1), uniform draws of the timesteps."""
    weight: Tensor
    """(B,) float32 weight of the pair in the loss."""
    row: Tensor
    """(B,) int64 row of the pair in the round's pairs.jsonl."""
    ref_win: Tensor
    """(B,) float32 errors of the reference, NaN where they are not precomputed."""
    ref_lose: Tensor
    """(B,) as ``ref_win``."""
    real: Videos | None = None
    """Real clips that come with the pairs, where lambda_2 is above 0."""

    def videos(self) -> Videos:
        """2B videos: the winners, then the losers, each with its pair's noise and timestep."""
        return Videos(
            torch.cat([self.win, self.lose]),
            torch.cat([self.text, self.text]),
            torch.cat([self.noise, self.noise]),
            torch.cat([self.u, self.u]),
        )

    def reference(self) -> Tensor:
        """(2B,) the precomputed errors of the reference on `videos`."""
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
    """(B,) float64 in [0, 1), uniform draws of the timesteps."""
    weight: Tensor
    """(B,) float32."""
    desirable: Tensor
    """(B,) bool."""
    reward: Tensor
    """(B,) float32 in [0, 1], how good the critic finds it among the prompt's candidates."""
    row: Tensor
    """(B,) int64 row of the point in the round's points.jsonl."""
    ref: Tensor
    """(B,) float32 error of the reference, NaN where it is not precomputed."""
    real: Videos | None = None
    """Real clips that come with the points, where lambda_2 is above 0."""

    def videos(self) -> Videos:
        """The B videos."""
        return Videos(self.latents, self.text, self.noise, self.u)

    def reference(self) -> Tensor:
        """(B,) the precomputed errors of the reference on `videos`."""
        return self.ref
