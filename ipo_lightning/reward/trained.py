"""A critic that was trained here, from its folder with a reward network and its scale.

`python train.py task=critic` writes such folders; multimodal networks have another kind of folder,
see `ipo_lightning.critics.scorers.reward_model`.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ipo_lightning.critics.people.annotations import OVERALL
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.errors import InputError
from ipo_lightning.reward.losses import RewardScale
from ipo_lightning.settings import Text, checked
from ipo_lightning.storage.store import fingerprint, folder_fingerprint
from ipo_lightning.video import Clip


class Restored(NamedTuple):
    """The content of a folder."""

    network: nn.Module
    dims: tuple[str, ...]
    scale: RewardScale


class Restorable(Protocol):
    """A family of reward networks that can be loaded from a folder."""

    def restore(self, folder: Path) -> Restored:
        """The network of a folder, on the CPU."""
        ...

    def inputs(self, clips: Sequence[Clip], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The network's inputs for videos and their prompts."""
        ...


@checked
class TrainedCritic:
    """A critic that rates by a trained reward network.

    Args:
        path: the folder.
        network: the family of the folder's network.
        weights: of the dimensions in the score; None: only the dimension `OVERALL`, or, without it,
            the mean of all. Rewards are normalised over the training videos.

    Raises:
        InputError: there is no such folder, or it is of another family.
    """

    def __init__(
        self, path: Text, network: Restorable, weights: Mapping[str, float] | None = None
    ) -> None:
        self.path, self.family = Path(path), network
        if not self.path.is_dir():
            raise InputError(setting="path", value=path, expected="there is no such folder")
        found = network.restore(self.path)
        self.dims, self.scale = found.dims, found.scale
        self.bytes = float(sum(one.nbytes for one in found.network.parameters()))
        self.weights = self._weights(weights)
        self.network: nn.Module | None = None
        self.device = "cpu"

    def _weights(self, given: Mapping[str, float] | None) -> dict[str, float]:
        if given is None:
            if OVERALL in self.dims:
                return {OVERALL: 1.0}
            return {dim: 1 / len(self.dims) for dim in self.dims}
        unknown = sorted(set(given) - set(self.dims))
        if unknown or not given:
            raise InputError(
                setting="weights",
                value=dict(given),
                expected=f"give weights of {', '.join(self.dims)}, the dimensions of the folder, "
                "or null",
            )
        return {name: float(weight) for name, weight in given.items()}

    @cached_property
    def identity(self) -> str:
        """The folder's content and the weights."""
        return f"trained@{folder_fingerprint(self.path)[:16]}#{fingerprint(self.weights)[:8]}"

    def cost(self, video: Watched) -> Cost:
        """The weights, see `cost_of`; activations depend on the family, and are not known."""
        return Cost(str(self.path), weights=self.bytes, activations=None, flops=None,
                    source="by its file", unknown="its activations are not computed")  # fmt: skip

    def load(self, device: str) -> None:
        """Load the weights."""
        self.network, self.device = self.family.restore(self.path).network.to(device).eval(), device

    def release(self) -> None:
        """Free the weights."""
        self.network = None

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip; each is computed alone, so that others do not change its score."""
        if self.network is None:
            raise RuntimeError("load the trained critic before it rates")
        return [
            self._rate(self.network, clip, prompt)
            for clip, prompt in zip(clips, prompts, strict=True)
        ]

    @torch.no_grad()
    def _rate(self, network: nn.Module, clip: Clip, prompt: str) -> Rating:
        inputs = self.family.inputs([clip], [prompt])
        rewards = network(**{name: value.to(self.device) for name, value in inputs.items()})
        scores = dict(zip(self.dims, self.scale.scores(rewards)[0].tolist(), strict=True))
        score = sum(weight * scores[name] for name, weight in self.weights.items())
        return Rating(score, scores, raw=f"rewards {[round(r, 6) for r in rewards[0].tolist()]}")
