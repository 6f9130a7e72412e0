"""HPSv3 on the frames of a video: Qwen2-VL-7B with a ranking head (Ma et al., arXiv 2508.03789).

A port of MizzenAI/HPSv3 (MIT) to current transformers: frames of about 200704 pixels resized by
PIL, sequential positions as in its training, the head in float32. It needs no torchvision. The
rubric belongs to upstream and is not shipped, see `PublishedText`.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
from transformers.initialization import no_init_weights

from ipo_lightning.critics.pretrained.checkpoint import (
    check_source,
    check_weights,
    find_file,
    free,
    harmless,
    named,
    origin,
)
from ipo_lightning.critics.pretrained.published_texts import PublishedText
from ipo_lightning.critics.pretrained.sizes import Network, cost, network_of, sight
from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.scorers.frames import SIGMA, FrameCritic, Over
from ipo_lightning.critics.scorers.reward import DTYPES
from ipo_lightning.critics.scorers.reward_model import PROMPT, RewardModel, fill
from ipo_lightning.critics.scorers.videoreward import EMBEDDINGS, PLACES
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.errors import InputError
from ipo_lightning.settings import Count, Text, checked
from ipo_lightning.storage.store import fingerprint

FILE = "HPSv3.safetensors"
TOKEN = "<|Reward|>"
IMAGE = "<|image_pad|>"
RUBRIC = PublishedText(
    "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c",
    "https://raw.githubusercontent.com/MizzenAI/HPSv3/d232ff8669a0b00759766067c6c3a26e2e717fac/"
    "hpsv3/dataset/data_collator_qwen.py",
    parts=("INSTRUCTION", "prompt_with_special_token"),
)
"""The hash was taken from the authors' package, hpsv3 1.0.0."""
NAMES = {
    "model.visual.": "backbone.visual.",
    "model.language_model.": "backbone.language_model.",
    **PLACES,
    "rm_head.": "ranks.",
}
"""Prefixes of weights, the longer first: upstream's -> ours."""
PIXELS = 256 * 28 * 28
"""About the pixels of a frame as the model sees it."""


class RankNet(RewardModel):
    """A backbone with a head that reads a mean and a log deviation at one special token.

    Args:
        backbone: transformers' Qwen2VLModel. token: id of the special token.
    """

    def __init__(self, backbone: nn.Module, token: int) -> None:
        super().__init__(backbone, [token], positions="sequential")
        width = self.head.in_features
        del self.head
        self.ranks = nn.Sequential(
            nn.Linear(width, 1024),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(1024, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        ).float()

    def forward(self, **inputs: Tensor) -> Tensor:
        """(B, 2) float32: mean, log of the deviation. See `RewardModel.states` for the inputs."""
        answer: Tensor = self.ranks(self.states(**inputs)[:, 0])
        return answer


@checked
class HPSv3(FrameCritic):
    """People's predicted preference for a frame as a picture of its prompt.

    ``preference`` is the head's mean, unbounded. Certainty is ``1 / (1 + deviation)``, with the
    head's deviation.

    Args:
        path: folder or hub id with ``HPSv3.safetensors``.
        revision: of a hub id.
        base: folder or hub id of Qwen2-VL-7B-Instruct, for its config, tokenizer and image
            processor; its weights are not read.
        base_revision: of a hub id.
        prompt_text: upstream's file with the rubric, or a file with the rubric alone; None:
            upstream's, downloaded once, when the weights are loaded. Other texts are refused.
        frames, over, dtype: see `FrameCritic`. The weights were trained in bfloat16.
    """

    def __init__(
        self,
        path: Text = "MizzenAI/HPSv3",
        revision: Text | None = None,
        base: Text = "Qwen/Qwen2-VL-7B-Instruct",
        base_revision: Text | None = None,
        prompt_text: Text | None = None,
        frames: Count = 4,
        over: Over = "mean",
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
    ) -> None:
        super().__init__(frames, over, dtype)
        check_source("path", path)
        check_source("base", base)
        self.path, self.revision = path, revision
        self.base, self.base_revision = base, base_revision
        self.viewing = Viewing(min_pixels=PIXELS, max_pixels=PIXELS)
        if prompt_text is not None:
            RUBRIC.read(prompt_text)  # refused now, not after a rollout
        self.prompt_text, self._rubric = prompt_text, ""
        self._model: RankNet | None = None

    @cached_property
    def identity(self) -> str:
        """Of the model, the rubric and all settings: folders by their content, hub ids by their
        commits."""
        base = origin("base", self.base, self.base_revision)
        settings = [base, RUBRIC.sha256, self.frames, self.over, self.dtype]
        name = origin("path", self.path, self.revision, "README.md")  # it has no config.json
        return f"{name}#hpsv3-1#{fingerprint(settings)[:8]}"

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @cached_property
    def processors(self) -> tuple[Any, Any]:
        """Tokenizer, with the special token, and image processor, which uses PIL."""
        with named("base", self.base):
            tokenizer = AutoTokenizer.from_pretrained(self.base, revision=self.base_revision)
            images = AutoImageProcessor.from_pretrained(
                self.base, revision=self.base_revision, backend="pil"
            )
        tokenizer.add_tokens([TOKEN], special_tokens=True)
        return tokenizer, images

    def cost(self, video: Watched) -> Cost:
        """What a rating costs, see `cost_of`: the frames are read together."""
        network = network_of(self.base, self.base_revision, speaks=False)
        if not isinstance(network, Network):
            return replace(network, name=self.path)
        picture = video._replace(frames=1, fps=1.0)
        seen, frames = sight(network, self.viewing, picture), min(self.frames, video.frames)
        found = cost(network, seen, self.dtype, batch=frames)
        return replace(found.several(frames), name=self.path)

    def ready(self) -> None:
        """Check the rubric, if it is a file, and that the weights can be read.

        Raises:
            InputError: a file is missing.
        """
        RUBRIC.read(self.prompt_text)
        _ = self.processors
        check_weights("path", self.path, self.revision, FILE)

    def load(self, device: str) -> None:
        """Load the weights, 16.6 GB, onto a device.

        Raises:
            InputError: the weights or the rubric cannot be read, or the weights do not fit
                ``base``.
        """
        self._rubric = RUBRIC.read(self.prompt_text)  # before the weights, which take longer
        token = self.processors[0].convert_tokens_to_ids(TOKEN)
        with named("base", self.base):
            config = AutoConfig.from_pretrained(self.base, revision=self.base_revision)
        weights = renamed(self._read())
        rows, words = len(weights.get(EMBEDDINGS, ())), len(self.processors[0])
        if rows != words:
            raise InputError(
                f"{self.path} has embeddings for {rows} tokens, base={self.base} and the special "
                f"token make {words}: it was tuned from another model"
            )
        config.get_text_config().vocab_size = rows  # upstream cut off unused rows
        with no_init_weights():
            backbone = AutoModel.from_config(config, dtype=DTYPES[self.dtype])
        model = RankNet(backbone, token).eval()
        fill(model, weights)
        self._model, self.device = model.to(device), device

    def release(self) -> None:
        """Free the memory of the weights."""
        self._model = None
        free()

    def values(self, frames: Tensor, prompt: str) -> Mapping[str, Tensor]:
        """``preference`` and the deviation (`SIGMA`), each (K,) float32 on the CPU."""
        assert self._model is not None
        tokenizer, images = self.processors
        height, width = self.viewing.fitted(
            frames.shape[1], frames.shape[2], images.patch_size * images.merge_size
        )
        pictures = [
            Image.fromarray(frame.numpy()).resize((width, height), Image.Resampling.BICUBIC)
            for frame in frames
        ]
        shown = images(images=pictures, do_resize=False, return_tensors="pt")
        places = int(shown["image_grid_thw"][0].prod()) // images.merge_size**2
        text = self.turn(prompt).replace(IMAGE, IMAGE * places)
        ids = tokenizer(text, return_tensors="pt")["input_ids"].expand(len(frames), -1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shown}
        inputs["pixel_values"] = inputs["pixel_values"].to(DTYPES[self.dtype])
        answer = self._model(**{name: value.to(self.device) for name, value in inputs.items()})
        mean, log_deviation = answer.cpu().unbind(1)
        return {"preference": mean, SIGMA: log_deviation.exp()}

    def total(self, dims: Mapping[str, float]) -> float:
        """The preference."""
        return dims["preference"]

    def turn(self, prompt: str) -> str:
        """A user's turn with one picture in the base's chat format, up to the answer."""
        tokenizer = self.processors[0]
        words = self._rubric.replace(PROMPT, harmless(tokenizer, prompt))
        content = [{"type": "image"}, {"type": "text", "text": words}]
        with named("base", self.base):
            text: str = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        if text.count(IMAGE) != 1:
            shows = "its chat template has no place for pictures; give Qwen2-VL"
            raise InputError(setting="base", value=self.base, expected=shows)
        return text

    def _read(self) -> dict[str, Tensor]:
        file = find_file("path", self.path, FILE, self.revision)
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Upstream's weights under `RankNet`'s names.

    Upstream saved with transformers 4.45, where the vision tower was called ``visual`` and the
    language model ``model``; in later releases they are ``model.visual`` and
    ``model.language_model``. Both are read. The language model's own head is left out.
    """
    ours = {}
    for name, value in weights.items():
        if name.startswith("lm_head."):
            continue
        old = next((prefix for prefix in NAMES if name.startswith(prefix)), "")
        ours[NAMES.get(old, "") + name.removeprefix(old)] = value
    return ours
