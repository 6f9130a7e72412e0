"""Labels that come from elsewhere in place of a round's rollout, critique and labelling."""

from typing import NamedTuple, Protocol

import torch

from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Policy
from ipo_lightning.storage.records import Candidate, Pair, Point, Verdict
from ipo_lightning.storage.store import Store


class ImportedLabels(NamedTuple):
    """What a round's files are written from."""

    candidates: list[Candidate]
    """The videos; their latents are the VAE's encodings."""
    verdicts: list[Verdict]
    """How each video fared, a row a candidate."""
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
        """The labels for a ``pairwise`` or a ``pointwise`` loss; videos are encoded once into the
        store, and all ranks get the same."""
        ...
