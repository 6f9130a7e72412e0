"""Image scorers on the frames of a video: what they share, and CLIP, PickScore, LAION's head.

They see frames one by one and know nothing of their order: how well the words are shown, and how
good a picture is. A still video, a shuffled one and one that jerks score like a sound one. They are
for guards on content, for ensembles, and beside gauges of motion, not for labels on their own.
"""

import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer

from ipo_lightning.critics.pretrained.checkpoint import (
    check_source,
    check_weights,
    free,
    named,
    origin,
)
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.scorers.reward import DTYPES, Dtype
from ipo_lightning.errors import InputError
from ipo_lightning.settings import Count, Text, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip, spread

UNREADABLE = (OSError, SafetensorError, UnpicklingError, RuntimeError, ValueError, AttributeError,
              EOFError)  # fmt: skip
"""What reading a file of weights raises, which may be any file at all."""
Over = Literal["mean", "min"]
SIGMA = "sigma"
"""Name of a judge's own standard deviation, in units of its score: no dimension."""


@checked
class FrameCritic(ABC):
    """Rates a video by its frames: evenly spaced ones, first and last among them.

    A video's frames are computed together and without any other video's, so that batch, order and
    rank do not change a bit of a score.

    Args:
        frames: how many are looked at, as far as a video has them.
        over: what a dimension's value is: the ``mean`` over the frames, or the ``min``, by which
            one bad frame spoils a video.
        dtype: of the weights. What is read out of them is computed in float32.
    """

    def __init__(self, frames: Count, over: Over, dtype: Dtype) -> None:
        self.frames, self.over, self.dtype = frames, over, dtype
        self.device = "cpu"

    @abstractmethod
    def judge(self, frames: Tensor, prompt: str) -> Mapping[str, Tensor]:
        """Values of uint8 (K, H, W, 3) frames by dimension, each (K,) float32 on the CPU.

        One named `SIGMA` is how unsure the judge is.
        """

    @abstractmethod
    def load(self, device: str) -> None:
        """Read the weights onto a device."""

    @abstractmethod
    def release(self) -> None:
        """Give the memory back."""

    @property
    @abstractmethod
    def loaded(self) -> bool:
        """Whether the weights are there."""

    @torch.inference_mode()
    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip; a value that is not finite is a fault of its clip alone."""
        if not self.loaded:
            self.load(self.device)
        ratings = []
        for clip, prompt in zip(clips, prompts, strict=True):
            seen = clip.frames[spread(len(clip.frames), self.frames)]
            ratings.append(self.rating(self.judge(seen, prompt)))
        return ratings

    def rating(self, values: Mapping[str, Tensor]) -> Rating:
        """A rating from its frames' values; the values themselves are kept as ``raw``.

        Certainty is ``1 / (1 + deviation)``, with the mean of the frames' deviations, and 1 where
        a judge tells none.
        """
        raw = json.dumps({name: [round(x, 6) for x in v.tolist()] for name, v in values.items()})
        if not all(bool(value.isfinite().all()) for value in values.values()):
            return Rating(None, raw=raw, fault="not a number")
        dims = {name: self.pooled(value) for name, value in values.items() if name != SIGMA}
        deviation = float(values[SIGMA].double().mean()) if SIGMA in values else 0.0
        return Rating(self.total(dims), dims, 1 / (1 + deviation), raw)

    def pooled(self, values: Tensor) -> float:
        """(K,) to one number, as ``over`` says."""
        return float(values.double().mean() if self.over == "mean" else values.min())

    @abstractmethod
    def total(self, dims: Mapping[str, float]) -> float:
        """The score from its dimensions."""


@checked
class ClipCritic(FrameCritic):
    """Similarity of frames and prompt by a CLIP model, and how aesthetic the frames are.

    ``text`` is the cosine of the two embeddings (Radford et al., arXiv 2103.00020), or with
    ``scaled`` that times ``exp(logit_scale)``, transformers' ``logits_per_image``: PickScore
    (Kirstain et al., arXiv 2305.01569) is the latter with weights of its own. ``aesthetic`` is
    LAION's linear head on the image's embedding of length 1, over 10 as in VBench: about 0.1 to 1.

    CLIP reads 77 tokens, start and end among them; of a longer prompt it sees the beginning only.
    How many were cut is told in a warning, once.

    Args:
        path: a CLIP model: a folder, or a hub id. Weights are read from safetensors only.
        revision: of a hub id: branch, tag or commit; None is its main branch as it is now.
        processor: where tokenizer and image processor come from; None: from ``path``.
        aesthetic: file of the head (``sa_0_4_vit_l_14_linear.pth``, or safetensors of the same two
            tensors); it belongs to ``openai/clip-vit-large-patch14``. None: no such dimension.
        weights: dimension -> its weight in the score. Scales differ by far: see the dimensions.
        scaled: see above.
        frames, over, dtype: see `FrameCritic`.
    """

    def __init__(
        self,
        path: Text,
        revision: Text | None = None,
        processor: Text | None = None,
        aesthetic: Text | None = None,
        weights: Mapping[str, float] | None = None,
        scaled: bool = False,
        frames: Count = 8,
        over: Over = "mean",
        dtype: Dtype = "float32",
    ) -> None:
        super().__init__(frames, over, dtype)
        check_source("path", path)
        if processor is not None:
            check_source("processor", processor)
        if aesthetic is not None and not Path(aesthetic).is_file():
            nowhere = "there is no such file"
            raise InputError(setting="aesthetic", value=aesthetic, expected=nowhere)
        self.path, self.revision, self.scaled = path, revision, scaled
        self.words_path = path if processor is None else processor
        self.aesthetic = aesthetic
        self.weights = {"text": 1.0} if weights is None else dict(weights)
        known = {"text", "aesthetic"} if aesthetic else {"text"}
        if not self.weights or not set(self.weights) <= known:
            names = (
                "text or aesthetic" if aesthetic else "text (aesthetic wants the file of its head)"
            )
            each = f"give a weight to {names}"
            raise InputError(setting="weights", value=self.weights, expected=each)
        self._model: Any = None
        self._head: dict[str, Tensor] = {}
        self._texts: dict[str, Tensor] = {}
        self._cut: set[str] = set()
        self._warned = False

    @cached_property
    def identity(self) -> str:
        """See `Critic`; a folder counts by its contents, a hub id by its commit."""
        head = fingerprint_of(self.aesthetic)
        settings = [self.weights, self.scaled, self.frames, self.over, self.dtype, head]
        if self.words_path != self.path:
            settings.append(origin("processor", self.words_path, None))
        return f"{origin('path', self.path, self.revision)}#frames-1#{fingerprint(settings)[:8]}"

    @property
    def loaded(self) -> bool:
        """See `FrameCritic`."""
        return self._model is not None

    @cached_property
    def processors(self) -> tuple[Any, Any]:
        """Tokenizer and image processor; pictures are prepared by PIL wherever it runs."""
        revision = self.revision if self.words_path == self.path else None
        with named("path", self.words_path):
            tokenizer = AutoTokenizer.from_pretrained(self.words_path, revision=revision)
            images = AutoImageProcessor.from_pretrained(
                self.words_path, revision=revision, backend="pil"
            )
        return tokenizer, images

    def ready(self) -> None:
        """The checkpoint may be out of reach, or the head another model's."""
        _ = self.processors
        check_weights("path", self.path, self.revision)
        if self.aesthetic is not None:
            with named("path", self.path):
                config = AutoConfig.from_pretrained(self.path, revision=self.revision)
            read_head(self.aesthetic, int(getattr(config, "projection_dim", 0)))

    def load(self, device: str) -> None:
        """Read the weights onto a device.

        Raises:
            InputError: they cannot be read, or the model is no CLIP.
        """
        _ = self.processors
        with named("path", self.path):
            model = AutoModel.from_pretrained(
                self.path, revision=self.revision, dtype=DTYPES[self.dtype], use_safetensors=True
            )
        if not hasattr(model, "logit_scale") or not hasattr(model, "get_text_features"):
            other = f"it is a {type(model).__name__}; give a CLIP model"
            raise InputError(setting="path", value=self.path, expected=other)
        self._model, self.device = model.eval().to(device), device
        if self.aesthetic is not None:
            head = read_head(self.aesthetic, int(model.config.projection_dim))
            self._head = {name: value.to(device) for name, value in head.items()}

    def release(self) -> None:
        """Give the memory back, and tell of prompts that were too long, once."""
        self._model, self._head, self._texts = None, {}, {}
        free()
        if self._cut and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(self._cut)} prompts are longer than the {self.longest} tokens that "
                f"{self.path} reads: it saw their beginnings only", stacklevel=2,
            )  # fmt: skip

    @property
    def longest(self) -> int:
        """Tokens that the model reads, start and end among them."""
        tokenizer = self.processors[0]
        if self._model is None:
            return int(tokenizer.model_max_length)
        places = int(self._model.config.text_config.max_position_embeddings)
        return min(int(tokenizer.model_max_length), places)

    def judge(self, frames: Tensor, prompt: str) -> dict[str, Tensor]:
        """See `FrameCritic`: ``text``, and ``aesthetic`` where there is a head."""
        images = self.processors[1](images=list(frames.numpy()), return_tensors="pt")
        pixels = images["pixel_values"].to(self.device, DTYPES[self.dtype])
        seen = unit(self._model.get_image_features(pixel_values=pixels))
        values = {"text": seen @ self._text(prompt)}
        if self.scaled:
            values["text"] = values["text"] * self._model.logit_scale.float().exp()
        if self._head:
            values["aesthetic"] = (
                F.linear(seen, self._head["weight"], self._head["bias"])[:, 0] / 10
            )
        return {name: value.cpu() for name, value in values.items()}

    def total(self, dims: Mapping[str, float]) -> float:
        """The weighted sum."""
        return math.fsum(weight * dims[name] for name, weight in sorted(self.weights.items()))

    def _text(self, prompt: str) -> Tensor:
        """The prompt's embedding, (D,), computed alone and once while the weights are loaded."""
        if prompt not in self._texts:
            tokenizer = self.processors[0]
            if len(tokenizer(prompt, verbose=False)["input_ids"]) > self.longest:
                self._cut.add(prompt)
            words = tokenizer(
                prompt, truncation=True, max_length=self.longest, return_tensors="pt"
            ).to(self.device)
            self._texts[prompt] = unit(self._model.get_text_features(**words))[0]
        return self._texts[prompt]


def unit(features: Any) -> Tensor:
    """Embeddings of length 1, float32 (B, D), of what CLIP's ``get_*_features`` gives.

    transformers 5 returns an object, whose ``pooler_output`` is the projected embedding.
    """
    plain = features if isinstance(features, Tensor) else features.pooler_output
    return F.normalize(plain.float(), dim=-1)


def read_head(file: str, width: int) -> dict[str, Tensor]:
    """A linear head, ``weight`` (1, width) and ``bias`` (1,), float32.

    Raises:
        InputError: the file holds something else.
    """
    try:
        tensors = (
            load_file(file)
            if file.endswith(".safetensors")
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        unread = f"it cannot be read: {reason}"
        raise InputError(setting="aesthetic", value=file, expected=unread) from error
    wanted = {"weight": (1, width), "bias": (1,)}
    if shapes != wanted:
        other = f"it holds {shapes}; this model's head has {wanted}"
        raise InputError(setting="aesthetic", value=file, expected=other)
    return {name: value.float() for name, value in tensors.items()}


def fingerprint_of(file: str | None) -> str | None:
    """sha256 (hex) of a small file's bytes."""
    return None if file is None else fingerprint(Path(file).read_bytes().hex())
