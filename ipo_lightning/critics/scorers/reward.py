"""Reward models as critics: a score a video, and one for each dimension."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor

from ipo_lightning.critics.pretrained.checkpoint import (
    Processor,
    check_source,
    check_vision,
    check_weights,
    collate,
    free,
    origin,
)
from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.scorers.reward_model import (
    SPEC,
    WEIGHTS,
    RewardInputs,
    RewardModel,
    RewardSpec,
    load_reward,
    read_spec,
)
from ipo_lightning.errors import InputError
from ipo_lightning.settings import Count, Null, Positive, Text, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip

VERSION = "reward-2"
"""Of the reading; to be raised whenever the same settings give other scores."""
Dtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TrainedFps = Annotated[Positive | None, Null("as it was trained")]


@checked
class RewardCritic:
    """A `PointCritic` from a reward folder (see `ipo_lightning.critics.scorers.reward_model`).

    Args:
        model: the folder.
        fps: frames a second that are shown; None is what the model was trained with. More show the
            motion of short videos, which the model has not seen so: audit it before you trust it.
        weights: dimension -> its weight in the score, a sum of normalised rewards; one that is not
            named does not count. None: 1 each.
        dtype: of the network: bfloat16, or float32 (twice the memory). The head is in float32.
        attention: transformers' name of the kernels (sdpa, eager, flash_attention_2); None is its
            own choice.
        batch_size: videos at a time. One by default: then a score does not depend on its company
            to the last bit.

    Raises:
        InputError: a setting that cannot work.
    """

    def __init__(
        self,
        model: Text,
        fps: TrainedFps = None,
        weights: Mapping[str, float] | None = None,
        dtype: Dtype = "bfloat16",
        attention: Text | None = None,
        batch_size: Count = 1,
    ) -> None:
        self.model, self.fps, self.dtype, self.attention = model, fps, dtype, attention
        self.weights = None if weights is None else dict(weights)
        self.batch_size = batch_size
        self._network: RewardModel | None = None
        self._inputs: RewardInputs | None = None
        self._warned = False
        check_source("model", model)
        if self.weights is not None and not any(self.weights.values()):
            some = "give one dimension or more a weight"
            raise InputError(setting="weights", value=self.weights, expected=some)

    @cached_property
    def identity(self) -> str:
        """See `Critic`."""
        settings = {"fps": self.fps, "weights": self.weights, "dtype": self.dtype,
                    "attention": self.attention, "batch_size": self.batch_size}  # fmt: skip
        return f"{self._origin()}#{VERSION}#{fingerprint(settings)[:8]}"

    def ready(self) -> None:
        """torchvision may be missing, a file of the folder, or a dimension that is to count."""
        check_vision()
        self._check_weights(self._check_files())

    def load(self, device: str) -> None:
        """See `Critic`."""
        network, inputs = self._open()
        if self.fps is not None:
            inputs.spec = replace(inputs.spec, viewing=replace(inputs.spec.viewing, fps=self.fps))
        self._check_weights(inputs.spec.dims)
        self._network, self._inputs = network.to(device), inputs

    def release(self) -> None:
        """See `Critic`."""
        self._network = self._inputs = None
        free()

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """See `PointCritic`."""
        ratings: list[Rating] = []
        for start in range(0, len(clips), self.batch_size):
            batch = slice(start, start + self.batch_size)
            rows = [self._row(*one) for one in zip(clips[batch], prompts[batch], strict=True)]
            rewards = iter(self._rewards([row for row in rows if not isinstance(row, Rating)]))
            ratings += [
                row if isinstance(row, Rating) else self._rating(next(rewards)) for row in rows
            ]
        return ratings

    # ---------------------------------------------------------------- where it comes from

    def _origin(self) -> str:
        """What the weights and the words are: ``name@revision``."""
        return origin("model", self.model, None)

    def _check_files(self) -> tuple[str, ...]:
        """Refuse what could not be opened, without its weights; the dimensions.

        Raises:
            InputError: a file is missing, or another.
        """
        spec = self._spec()
        Processor(self.model)
        check_weights("model", self.model, file=WEIGHTS)
        return spec.dims

    def _check_weights(self, dims: Sequence[str]) -> None:
        if self.weights is not None and not self.weights.keys() <= set(dims):
            known = f"{self.model} has {', '.join(sorted(dims))}"
            raise InputError(setting="weights", value=self.weights, expected=known)

    def _spec(self) -> RewardSpec:
        if not (Path(self.model) / SPEC).is_file():
            bare = f"no {SPEC} there; give a reward folder"
            raise InputError(setting="model", value=self.model, expected=bare)
        return read_spec(Path(self.model))

    def _open(self) -> tuple[RewardModel, RewardInputs]:
        """The network, on the CPU, and what makes its inputs."""
        self._spec()
        return load_reward(Path(self.model), DTYPES[self.dtype], self.attention)

    # ---------------------------------------------------------------- a batch

    def _loaded(self) -> tuple[RewardModel, RewardInputs]:
        if self._network is None or self._inputs is None:
            raise RuntimeError(f"{self.model} is not loaded")
        return self._network, self._inputs

    def _row(self, clip: Clip, prompt: str) -> dict[str, Tensor] | Rating:
        """A video as the network takes it, or why it cannot."""
        network, inputs = self._loaded()
        try:
            row = inputs.one(clip, prompt)
        except InputError as error:
            return Rating(None, raw=str(error), fault="cannot be shown")
        if row["input_ids"].shape[1] > network.context:
            return Rating(None, fault="longer than the model's context")
        self._warn_of_gaps(clip, inputs.spec.viewing)
        return row

    def _warn_of_gaps(self, clip: Clip, viewing: Viewing) -> None:
        """Say once that short videos are shown as a few stills."""
        total = len(clip.frames)
        shown = viewing.count(total, clip.fps)
        if not self._warned and shown < total and total / clip.fps * viewing.fps < 8:
            self._warned = True
            warnings.warn(
                f"{self.model} sees {shown} of {total} frames ({total / clip.fps:.3g} s at "
                f"fps={viewing.fps:g}): flicker and fast motion lie between them; give the critic "
                "a larger fps, or a critic of motion beside it", stacklevel=4,
            )  # fmt: skip

    @torch.inference_mode()
    def _rewards(self, rows: Sequence[dict[str, Tensor]]) -> list[list[float]]:
        """(B, D) the rewards as the network gives them."""
        if not rows:
            return []
        network, inputs = self._loaded()
        batch = collate(rows, inputs.processor.padding, left=False)
        device = network.head.weight.device
        rewards: Tensor = network(**{name: value.to(device) for name, value in batch.items()})
        values: list[list[float]] = rewards.double().tolist()
        return values

    def _rating(self, rewards: Sequence[float]) -> Rating:
        spec = self._loaded()[1].spec
        dims = {
            name: (reward - mean) / std
            for name, reward, mean, std in zip(spec.dims, rewards, spec.mean, spec.std, strict=True)
        }
        raw = json.dumps(dict(zip(spec.dims, rewards, strict=True)))
        if any(value != value for value in rewards):
            return Rating(None, raw=raw, fault="not a number")
        weights = dict.fromkeys(dims, 1.0) if self.weights is None else self.weights
        score = sum(weight * dims[name] for name, weight in weights.items())
        return Rating(score, dims, raw=raw)
