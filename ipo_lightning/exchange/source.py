"""Imported labels, which replace a round's rollout, critique and labelling."""

from typing import NamedTuple, Protocol

import torch

from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Policy
from ipo_lightning.storage.records import Candidate, Pair, Point, Verdict
from ipo_lightning.storage.store import Store


class ImportedLabels(NamedTuple):
    """The content of a round's files."""

    candidates: list[Candidate]
    """The videos; their latents are the VAE's encodings."""
    verdicts: list[Verdict]
    """The mean chance or rating of each candidate."""
    rows: list[Pair] | list[Point]
    dropped: dict[str, int]
    """Reason -> how many pairs, points or videos gave no label."""


class LabelSource(Protocol):
    """A source of labels."""

    rounds: int | None
    """How many rounds, from the first, train on them; None: all."""

    def prepare(
        self, label_kind: str, policy: Policy, store: Store, workers: Workers, device: torch.device
    ) -> ImportedLabels:
        """The labels for a ``pairwise`` or ``pointwise`` loss, the same on all ranks. Videos are
        encoded once, into the store."""
        ...
