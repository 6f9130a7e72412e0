"""The draws of a round: which label is seen when, at which timestep, with which noise.

A draw is a pure function of (run seed, round, index in the round): so the reference's errors can be
computed before the training, on any rank.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ipo_lightning.draws.batch import PairBatch, PointBatch, Videos
from ipo_lightning.seeds import derive_seed, gaussian, generator
from ipo_lightning.storage.layout import RoundData
from ipo_lightning.storage.records import Pair
from ipo_lightning.storage.store import Store

T = TypeVar("T")


class Draw(NamedTuple):
    """One draw of a row."""

    times: int
    """How often the row was drawn before in this round."""
    row: int
    """Row of the round's labels (or real clips)."""


def plan(seed: int, number: int, rows: int, count: int, purpose: str = "order") -> list[Draw]:
    """``count`` draws of ``rows`` rows, one random permutation after another.

    A longer plan begins with a shorter one: with more optimizer steps the first draws stay, and so
    do their reference errors.
    """
    draws: list[Draw] = []
    for times in range(-(-count // rows)):
        order = generator(derive_seed(seed, purpose, number, times))
        shuffled = torch.randperm(rows, generator=order)[: count - len(draws)].tolist()
        draws += [Draw(times, row) for row in shuffled]
    return draws


class Draws(Dataset[PairBatch | PointBatch]):
    """The planned draws of a round, each with its latents, text, noise and timestep.

    Args:
        data: the round's labels.
        store: holds latents and embeddings.
        seed: the run's.
        count: draws of the round, on all ranks together.
    """

    def __init__(self, data: RoundData, store: Store, seed: int, count: int) -> None:
        self.data, self.store, self.seed = data, store, seed
        self.plan = plan(seed, data.number, len(data.rows), count)
        self.real_plan = (
            plan(seed, data.number, len(data.real), count, "real order") if data.real else []
        )

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> PairBatch | PointBatch:
        """One draw, without a batch dimension."""
        draw = self.plan[index]
        row = self.data.rows[draw.row]
        seed = self.draw_seed(index)
        common: dict[str, Any] = {
            "text": self._text(row.prompt),
            "u": self.u(index),
            "weight": torch.tensor(row.weight),
            "row": torch.tensor(draw.row),
            "real": self._real(index),
        }
        if isinstance(row, Pair):
            win, lose = self._latents(row.winner_latents), self._latents(row.loser_latents)
            ref_win, ref_lose = self._errors(index, 2)
            noise = _noise(seed, win)
            return PairBatch(
                win=win, lose=lose, noise=noise, ref_win=ref_win, ref_lose=ref_lose, **common
            )
        latents = self._latents(row.latents)
        return PointBatch(
            latents=latents,
            noise=_noise(seed, latents),
            desirable=torch.tensor(row.desirable),
            reward=torch.tensor(row.reward),
            ref=self._errors(index, 1)[0],
            **common,
        )

    def draw_seed(self, index: int) -> int:
        """The seed of a draw's noise and timestep."""
        times, row = self.plan[index]
        return derive_seed(self.seed, "visit", self.data.number, times, row)

    def u(self, index: int) -> Tensor:
        """() float64, the uniform draw in [0, 1) of a draw's timestep."""
        return _uniform(self.draw_seed(index))

    def key(self, index: int) -> list[str | int]:
        """All that a frozen network's errors at a draw depend on, but the network."""
        row = self.data.rows[self.plan[index].row]
        names = [row.winner_latents, row.loser_latents] if isinstance(row, Pair) else [row.latents]
        return [*names, self.data.texts[row.prompt], self.draw_seed(index)]

    def _real(self, index: int) -> Videos | None:
        if not self.real_plan:
            return None
        draw = self.real_plan[index]
        clip = self.data.real[draw.row]
        seed = derive_seed(self.seed, "real visit", self.data.number, draw.times, draw.row)
        latents = self._latents(clip.latents)
        return Videos(
            latents=latents,
            text=self._text(clip.caption),
            noise=_noise(seed, latents),
            u=_uniform(seed),
        )

    def _errors(self, index: int, videos: int) -> Tensor:
        if self.data.errors is None:
            return torch.full((videos,), torch.nan)
        return self.data.errors[index]

    def _latents(self, blob: str) -> Tensor:
        return self.store.get_tensors("latents", blob)["latents"].float()

    def _text(self, prompt: str) -> Tensor:
        return self.store.get_tensors("text", self.data.texts[prompt])["text"].float()


def collate(samples: Sequence[PairBatch | PointBatch]) -> PairBatch | PointBatch:
    """A batch of draws; without real clips it has none."""
    real = [sample.real for sample in samples if sample.real is not None]
    batch = _stack([sample._replace(real=None) for sample in samples])
    return batch._replace(real=_stack(real) if real else None)


def _stack(samples: Sequence[T]) -> T:
    """Records of tensors (or None) as one record of batches."""
    columns: Any = zip(*samples, strict=True)
    return type(samples[0])(*(None if c[0] is None else torch.stack(c) for c in columns))


def _uniform(seed: int) -> Tensor:
    return torch.rand((), generator=generator(seed), dtype=torch.float64)


def _noise(seed: int, latents: Tensor) -> Tensor:
    return gaussian(derive_seed(seed, "noise"), tuple(latents.shape))
