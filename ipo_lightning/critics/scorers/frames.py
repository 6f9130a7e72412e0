"""Image scorers on the frames of a video: what they share, and CLIP, PickScore, LAION's head.

They see single frames, not their order: how well a frame fits the prompt, and how good a picture it
is. A still, a shuffled or a jerky video scores as well as a sound one. Use them in ensembles, or
together with gauges of motion, not alone for labels.
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
from ipo_lightning.critics.pretrained.sizes import Network, cost, network_of, pictures
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.scorers.reward import DTYPES, Dtype
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.errors import InputError, cause_of
from ipo_lightning.settings import Count, Text, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.storage.torch_files import read_plain
from ipo_lightning.video import Clip, spread

UNREADABLE = (OSError, SafetensorError, UnpicklingError, RuntimeError, ValueError, AttributeError,
              EOFError)  # fmt: skip
"""What reading a file of weights raises if it is another file."""
Over = Literal["mean", "min"]
SIGMA = "sigma"
"""Name of the model's own standard deviation, in units of the score; not a dimension."""


@checked
class FrameCritic(ABC):
    """Rates a video by some of its frames: evenly spaced, with the first and the last.

    The frames of a video are computed together, without those of other videos, so that batch, order
    and rank do not change a score.

    Args:
        frames: how many frames are used, or all of a shorter video.
        over: a dimension's value: the ``mean`` over the frames, or the ``min`` (the worst frame).
        dtype: of the weights. Scores are computed from their outputs in float32.
    """

    def __init__(self, frames: Count, over: Over, dtype: Dtype) -> None:
        self.frames, self.over, self.dtype = frames, over, dtype
        self.device = "cpu"

    @abstractmethod
    def values(self, frames: Tensor, prompt: str) -> Mapping[str, Tensor]:
        """Values of uint8 (K, H, W, 3) frames by dimension, each (K,) float32 on the CPU.

        The one named `SIGMA` is the model's own standard deviation.
        """

    @abstractmethod
    def load(self, device: str) -> None:
        """Load the weights onto a device."""

    @abstractmethod
    def release(self) -> None:
        """Free the memory of the weights."""

    @property
    @abstractmethod
    def loaded(self) -> bool:
        """Whether the weights are loaded."""

    @torch.inference_mode()
    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip; it has a fault where a value of its frames is not finite."""
        if not self.loaded:
            self.load(self.device)
        ratings = []
        for clip, prompt in zip(clips, prompts, strict=True):
            seen = clip.frames[spread(len(clip.frames), self.frames)]
            ratings.append(self.rating(self.values(seen, prompt)))
        return ratings

    def rating(self, values: Mapping[str, Tensor]) -> Rating:
        """The rating of a video from its frames' values, which are kept as ``raw``.

        Certainty is ``1 / (1 + deviation)``, with the mean of the frames' deviations; 1 where the
        model has none.
        """
        raw = json.dumps({name: [round(x, 6) for x in v.tolist()] for name, v in values.items()})
        if not all(bool(value.isfinite().all()) for value in values.values()):
            return Rating(None, raw=raw, fault="not a number")
        dims = {name: self.pooled(value) for name, value in values.items() if name != SIGMA}
        deviation = float(values[SIGMA].double().mean()) if SIGMA in values else 0.0
        return Rating(self.total(dims), dims, 1 / (1 + deviation), raw)

    def pooled(self, values: Tensor) -> float:
        """The mean or the minimum of (K,) values, by ``over``."""
        return float(values.double().mean() if self.over == "mean" else values.min())

    @abstractmethod
    def total(self, dims: Mapping[str, float]) -> float:
        """The score, from the dimensions."""


@checked
class ClipCritic(FrameCritic):
    """Similarity of frames and prompt by a CLIP model, and the frames' aesthetic score.

    ``text`` is the cosine of the two embeddings (Radford et al., arXiv 2103.00020); with ``scaled``
    it is multiplied by ``exp(logit_scale)``, as transformers' ``logits_per_image``. PickScore
    (Kirstain et al., arXiv 2305.01569) is the latter, with other weights. ``aesthetic`` is LAION's
    linear head on the normalised image embedding, divided by 10 as in VBench: about 0.1 to 1.

    CLIP reads 77 tokens, with start and end; longer prompts are cut. A warning says once how many
    prompts were cut.

    Args:
        path: a CLIP model: a folder, or a hub id. Weights are read from safetensors only.
        revision: of a hub id: branch, tag or commit; None: its main branch.
        processor: folder or hub id of the tokenizer and the image processor; None: ``path``.
        aesthetic: file of the head (``sa_0_4_vit_l_14_linear.pth``, or safetensors of the same two
            tensors); it is for ``openai/clip-vit-large-patch14``. None: no such dimension.
        weights: dimension -> its weight in the score. The dimensions' scales differ, see above.
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
                "text or aesthetic" if aesthetic else "text (aesthetic needs the file of its head)"
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
        """Of the model and all settings: a folder by its content, a hub id by its commit."""
        head = fingerprint_of(self.aesthetic)
        settings = [self.weights, self.scaled, self.frames, self.over, self.dtype, head]
        if self.words_path != self.path:
            settings.append(origin("processor", self.words_path, None))
        return f"{origin('path', self.path, self.revision)}#frames-1#{fingerprint(settings)[:8]}"

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @cached_property
    def processors(self) -> tuple[Any, Any]:
        """Tokenizer and image processor; PIL resizes the pictures on every device."""
        revision = self.revision if self.words_path == self.path else None
        with named("path", self.words_path):
            tokenizer = AutoTokenizer.from_pretrained(self.words_path, revision=revision)
            images = AutoImageProcessor.from_pretrained(
                self.words_path, revision=revision, backend="pil"
            )
        return tokenizer, images

    def cost(self, video: Watched) -> Cost:
        """What a rating costs, see `cost_of`."""
        network = network_of(self.path, self.revision, speaks=False)
        if not isinstance(network, Network):
            return network
        return cost(network, pictures(network, min(self.frames, video.frames)), self.dtype)

    def ready(self) -> None:
        """Check the checkpoint, and that the head fits it.

        Raises:
            InputError: a file is missing, or the head is of another model.
        """
        _ = self.processors
        check_weights("path", self.path, self.revision)
        if self.aesthetic is not None:
            with named("path", self.path):
                config = AutoConfig.from_pretrained(self.path, revision=self.revision)
            read_head(self.aesthetic, int(getattr(config, "projection_dim", 0)))

    def load(self, device: str) -> None:
        """Load the weights onto a device.

        Raises:
            InputError: they cannot be read, or the model is not a CLIP model.
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
        """Free the memory, and warn once of prompts that were too long."""
        self._model, self._head, self._texts = None, {}, {}
        free()
        if self._cut and not self._warned:
            self._warned = True
            warnings.warn(
                f"{len(self._cut)} prompts are longer than the {self.longest} tokens that "
                f"{self.path} reads: it saw only their beginnings", stacklevel=2,
            )  # fmt: skip

    @property
    def longest(self) -> int:
        """Tokens that the model reads, with start and end."""
        tokenizer = self.processors[0]
        if self._model is None:
            return int(tokenizer.model_max_length)
        places = int(self._model.config.text_config.max_position_embeddings)
        return min(int(tokenizer.model_max_length), places)

    def values(self, frames: Tensor, prompt: str) -> dict[str, Tensor]:
        """``text``, and with a head ``aesthetic``, each (K,) float32 on the CPU."""
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
    """Normalised embeddings, float32 (B, D), of the result of CLIP's ``get_*_features``.

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
        tensors = load_file(file) if file.endswith(".safetensors") else read_plain(file)
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    except UNREADABLE as error:
        unread = f"it cannot be read: {cause_of(error)}"
        raise InputError(setting="aesthetic", value=file, expected=unread) from error
    wanted = {"weight": (1, width), "bias": (1,)}
    if shapes != wanted:
        other = f"it holds {shapes}; this model's head has {wanted}"
        raise InputError(setting="aesthetic", value=file, expected=other)
    return {name: value.float() for name, value in tensors.items()}


def fingerprint_of(file: str | None) -> str | None:
    """sha256 (hex) of a small file's bytes."""
    return None if file is None else fingerprint(Path(file).read_bytes().hex())
