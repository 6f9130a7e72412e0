"""Reward models as critics: a score for each video and dimension."""

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
from ipo_lightning.critics.pretrained.sizes import Network, cost, network_of, sight
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
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.errors import InputError
from ipo_lightning.settings import Count, Null, Positive, Text, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip

VERSION = "reward-2"
"""Part of the identity; to be raised whenever the same settings give other scores."""
Dtype = Literal["float32", "bfloat16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TrainedFps = Annotated[Positive | None, Null("as it was trained")]


@checked
class RewardCritic:
    """A `PointCritic` from a reward folder (see `ipo_lightning.critics.scorers.reward_model`).

    Args:
        model: the folder.
        fps: frames a second that are shown; None: as in the model's training. More frames show the
            motion of short videos, but the model was not trained with them: audit it first.
        weights: dimension -> its weight in the score, a sum of normalised rewards; a dimension that
            is not named does not count. None: 1 each.
        dtype: of the network: bfloat16, or float32 (twice the memory). The head is in float32.
        attention: transformers' name of the kernels (sdpa, eager, flash_attention_2); None:
            transformers' default.
        batch_size: videos in a forward pass. With 1 a score does not depend on other videos; with
            more its last bits may.

    Raises:
        InputError: a setting is wrong.
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
            some = "give at least one dimension a weight"
            raise InputError(setting="weights", value=self.weights, expected=some)

    @cached_property
    def identity(self) -> str:
        """Of the model's content and all settings."""
        settings = {"fps": self.fps, "weights": self.weights, "dtype": self.dtype,
                    "attention": self.attention, "batch_size": self.batch_size}  # fmt: skip
        return f"{self._origin()}#{VERSION}#{fingerprint(settings)[:8]}"

    def cost(self, video: Watched) -> Cost:
        """What a rating costs, see `cost_of`."""
        network = network_of(*self._backbone(), speaks=False)
        if not isinstance(network, Network):
            return replace(network, name=self.model)
        viewing = self._viewing()
        if self.fps is not None:
            viewing = replace(viewing, fps=self.fps)
        seen, eager = sight(network, viewing, video), self.attention == "eager"
        found = cost(network, seen, self.dtype, batch=self.batch_size, eager=eager)
        return replace(found, name=self.model)

    def ready(self) -> None:
        """Check torchvision, the folder's files and the dimensions of ``weights``.

        Raises:
            InputError: one of them is missing.
        """
        check_vision()
        self._check_weights(self._check_files())

    def load(self, device: str) -> None:
        """Load the network onto a device."""
        network, inputs = self._open()
        if self.fps is not None:
            inputs.spec = replace(inputs.spec, viewing=replace(inputs.spec.viewing, fps=self.fps))
        self._check_weights(inputs.spec.dims)
        self._network, self._inputs = network.to(device), inputs

    def release(self) -> None:
        """Free the memory of the network."""
        self._network = self._inputs = None
        free()

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip; a clip that the model cannot be shown has a fault."""
        ratings: list[Rating] = []
        for start in range(0, len(clips), self.batch_size):
            batch = slice(start, start + self.batch_size)
            rows = [self._row(*one) for one in zip(clips[batch], prompts[batch], strict=True)]
            rewards = iter(self._rewards([row for row in rows if not isinstance(row, Rating)]))
            ratings += [
                row if isinstance(row, Rating) else self._rating(next(rewards)) for row in rows
            ]
        return ratings

    # ---------------------------------------------------------------- files

    def _backbone(self) -> tuple[str, str | None]:
        """Where the config of the network is: a folder or hub id, and its revision."""
        return self.model, None

    def _viewing(self) -> Viewing:
        """How videos were shown in the training."""
        return self._spec().viewing

    def _origin(self) -> str:
        """``name@revision`` of the weights and the rubric."""
        return origin("model", self.model, None)

    def _check_files(self) -> tuple[str, ...]:
        """Check the files without reading the weights.

        Returns:
            The names of the dimensions.

        Raises:
            InputError: a file is missing or wrong.
        """
        spec = self._spec()
        Processor(self.model)
        check_weights("model", self.model, file=WEIGHTS)
        return spec.dims

    def _check_weights(self, dims: Sequence[str]) -> None:
        if self.weights is not None and not self.weights.keys() <= set(dims):
            known = f"the dimensions of {self.model} are {', '.join(sorted(dims))}"
            raise InputError(setting="weights", value=self.weights, expected=known)

    def _spec(self) -> RewardSpec:
        if not (Path(self.model) / SPEC).is_file():
            bare = f"there is no {SPEC}; give a reward folder"
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
        """The network's inputs for a video, or a rating that says why there are none."""
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
        """Warn once that few frames of short videos are shown."""
        total = len(clip.frames)
        shown = viewing.count(total, clip.fps)
        if not self._warned and shown < total and total / clip.fps * viewing.fps < 8:
            self._warned = True
            warnings.warn(
                f"{self.model} sees {shown} of {total} frames ({total / clip.fps:.3g} s at "
                f"fps={viewing.fps:g}): it does not see flicker and fast motion between them; give "
                "a larger fps, or combine it with a critic of motion", stacklevel=4,
            )  # fmt: skip

    @torch.inference_mode()
    def _rewards(self, rows: Sequence[dict[str, Tensor]]) -> list[list[float]]:
        """(B, D) the network's rewards, not normalised."""
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
