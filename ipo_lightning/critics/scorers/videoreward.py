"""VideoReward, of VideoAlign (Liu et al., arXiv 2501.13918), on current transformers.

Qwen2-VL-2B, tuned on 182,000 human comparisons, with a reward for visual quality (VQ), motion
quality (MQ) and text alignment (TA). Weights: Apache-2.0, ``KlingTeam/VideoReward``. Upstream needs
transformers 4.45; this is a port:

- the checkpoint is peft's, with the weight names of transformers 4.45; its LoRA is merged here;
- the backbone is called with sequential positions, not Qwen2-VL's own in time, height and width:
  upstream hands embeddings to the language model, which then counts tokens;
- frames are sampled and resized as its fork of qwen-vl-utils does (see `Viewing`);
- the head computes in float32 here, in bfloat16 upstream: scores agree to about three digits.

The rubric belongs to upstream (MIT) and is not shipped, see `PublishedText`.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from ipo_lightning.critics.pretrained.checkpoint import (
    Processor,
    check_source,
    check_weights,
    find_file,
    named,
    origin,
)
from ipo_lightning.critics.pretrained.published_texts import PublishedText
from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.scorers.reward import DTYPES, Dtype, RewardCritic, TrainedFps
from ipo_lightning.critics.scorers.reward_model import (
    RewardInputs,
    RewardModel,
    RewardSpec,
    empty_model,
    fill,
)
from ipo_lightning.errors import InputError, cause_of
from ipo_lightning.settings import Count, Text, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.storage.torch_files import read_plain

RUBRIC = PublishedText(
    "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700",
    "https://raw.githubusercontent.com/KwaiVGI/VideoAlign/"
    "219ab9db64c045e5181a2202d11f686439351292/prompt_template.py",
)
"""The constant DETAILED_PROMPT_WITH_SPECIAL_TOKEN in that file."""
SETTINGS = "model_config.json"
EMBEDDINGS = "backbone.language_model.embed_tokens.weight"
HEAD = "head.weight"


@checked
class VideoReward(RewardCritic):
    """VideoReward's three scores, and their sum.

    Args:
        model: a folder with `SETTINGS` and the checkpoint, or a hub id.
        revision: of a hub id: branch, tag or commit.
        checkpoint: the weights' file within it. Only tensors are read from it; no code is run.
        base: folder or hub id of the model that it was tuned from, for its config, processor and
            tokenizer; its weights are not read.
        base_revision: of a hub id.
        prompt_text: upstream's file with the rubric, or a file with the rubric alone; None:
            upstream's, downloaded once, when the weights are loaded. Other texts are refused.
        others: see `RewardCritic`.

    Raises:
        InputError: the file of the rubric is missing or has another text, or a setting is wrong.
    """

    def __init__(
        self,
        model: Text = "KlingTeam/VideoReward",
        revision: Text | None = None,
        checkpoint: Text = "checkpoint-11352/model.pth",
        base: Text = "Qwen/Qwen2-VL-2B-Instruct",
        base_revision: Text | None = None,
        prompt_text: Text | None = None,
        fps: TrainedFps = None,
        weights: Mapping[str, float] | None = None,
        dtype: Dtype = "bfloat16",
        attention: Text | None = None,
        batch_size: Count = 1,
    ) -> None:
        super().__init__(model, fps, weights, dtype, attention, batch_size)
        check_source("base", base)
        self.revision, self.checkpoint = revision, checkpoint
        self.base, self.base_revision = base, base_revision
        if prompt_text is not None:
            RUBRIC.read(prompt_text)  # refused now, not after a rollout
        self.prompt_text = prompt_text

    def _backbone(self) -> tuple[str, str | None]:
        return self.base, self.base_revision

    def _viewing(self) -> Viewing:
        return Viewing()  # whose defaults are upstream's: its own settings may not be here yet

    def _origin(self) -> str:
        name = origin("model", self.model, self.revision, SETTINGS)
        base = origin("base", self.base, self.base_revision)
        return f"{name}.{fingerprint([self.checkpoint, base, RUBRIC.sha256])[:8]}"

    def _check_files(self) -> tuple[str, ...]:
        rubric = RUBRIC.read(self.prompt_text)
        dims = spec_of(self._settings(), rubric, outputs=1).dims
        Processor(self.base, self.base_revision, setting="base")
        check_weights("model", self.model, self.revision, self.checkpoint)
        return dims

    def _open(self) -> tuple[RewardModel, RewardInputs]:
        rubric = RUBRIC.read(self.prompt_text)  # before the weights, which take longer
        settings = self._settings()
        scale = lora_scale(settings.get("peft_lora_config") or {})
        state = read_state(self._file(self.checkpoint))
        weights = current(state, scale, DTYPES[self.dtype])
        if EMBEDDINGS not in weights or HEAD not in weights:
            raise InputError(f"{self.model}/{self.checkpoint} is not a checkpoint of VideoReward")
        spec = spec_of(settings, rubric, len(weights[HEAD]))
        inputs = RewardInputs(Processor(self.base, self.base_revision, setting="base"), spec)
        with named("base", self.base):
            config = AutoConfig.from_pretrained(self.base, revision=self.base_revision)
        rows, words = len(weights[EMBEDDINGS]), len(inputs.processor.tokenizer)
        if rows != words:
            raise InputError(
                f"{self.model} has embeddings for {rows} tokens, base={self.base} and the special "
                f"tokens make {words}: it was tuned from another model"
            )
        config.get_text_config().vocab_size = rows  # upstream cut off unused rows
        network = empty_model(config, inputs, DTYPES[self.dtype], self.attention)
        fill(network, weights)
        return network, inputs

    def _file(self, name: str) -> Path:
        """A file of the checkpoint, from its folder or from the hub."""
        return find_file("model", self.model, name, self.revision)

    def _settings(self) -> dict[str, Any]:
        """Upstream's settings."""
        with named("model", self.model):
            settings = json.loads(self._file(SETTINGS).read_text())
            if not isinstance(settings, dict):
                raise ValueError(f"{SETTINGS} has no settings")
            return settings


def spec_of(settings: Mapping[str, Any], rubric: str, outputs: int) -> RewardSpec:
    """The specification of the reward model, from upstream's settings.

    Args:
        settings: upstream's model_config.json: how videos are sampled, which dimensions, and under
            ``inference_config`` each dimension's mean and standard deviation (none: not scaled).
        outputs: rows of the head.

    Raises:
        InputError: the model was trained in a way that is not ported.
    """
    try:
        data, model = settings["data_config"], settings["model_config"]
        wanted = {
            "use_special_tokens": (model["use_special_tokens"], True),
            "reward_token": (model["reward_token"], "special"),
            "prompt_template_type": (data["prompt_template_type"], "detailed_special"),
            "sample_type": (data.get("sample_type", "uniform"), "uniform"),
            "num_frames": (data.get("num_frames"), None),
        }
        dims = tuple(data["eval_dim"])
        viewing = Viewing(fps=float(data["fps"]), max_pixels=int(data["max_frame_pixels"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{SETTINGS} is not VideoReward's: {error}") from error
    for name, (value, ported) in wanted.items():
        if value != ported:
            raise InputError(f"{SETTINGS}: {name}={value}; only {ported} is ported")
    norms = settings.get("inference_config") or {}
    return RewardSpec(
        rubric=rubric,
        dims=dims,
        tokens=tuple(f"<|{name}_reward|>" for name in dims),
        mean=tuple(float(norms.get(f"{name}_mean", 0)) for name in dims),
        std=tuple(float(norms.get(f"{name}_std", 1)) for name in dims),
        viewing=viewing,
        outputs=outputs,
    )


def lora_scale(settings: Mapping[str, Any]) -> float:
    """The LoRA's scale, alpha over rank (or its root), from upstream's ``peft_lora_config``."""
    if not settings.get("lora_enable"):
        return 0.0
    rank, alpha = float(settings["lora_r"]), float(settings["lora_alpha"])
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a file that torch wrote. No code in it is run.

    Raises:
        InputError: it is another kind of file, or holds other things than tensors.
    """
    try:
        state = read_plain(file, mmap=True)
    except Exception as error:  # torch has many
        raise InputError(f"{file} cannot be read as weights: {cause_of(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(one, Tensor) for one in state.values()):
        raise InputError(f"{file} holds other things than weights")
    return state


def current(state: Mapping[str, Tensor], scale: float, dtype: torch.dtype) -> dict[str, Tensor]:
    """A checkpoint of peft and transformers 4.45 as `RewardModel`'s weights.

    Args:
        state: the weights, and those of the LoRA.
        scale: of the LoRA. dtype: of the result; the LoRA is merged in float32.
    """
    plain: dict[str, Tensor] = {}
    factors: dict[str, Tensor] = {}
    for name, value in state.items():
        name = name.removeprefix("base_model.model.")
        if ".lora_" in name:
            factors[name.replace(".default.", ".")] = value
        elif not name.startswith("lm_head."):  # a reward model has no language head
            plain[name.replace(".base_layer.", ".")] = value
    for name in [one for one in factors if one.endswith(".lora_A.weight")]:
        layer, down = name.removesuffix(".lora_A.weight"), factors.pop(name)
        up, weight = factors.pop(f"{layer}.lora_B.weight", None), plain.get(f"{layer}.weight")
        if up is None or weight is None:
            raise InputError(f"the checkpoint has only half of the LoRA of {layer}")
        merged = weight.float() + scale * (up.float() @ down.float())
        plain[f"{layer}.weight"] = merged.to(dtype)
    if factors:
        raise InputError(f"the checkpoint has half of a LoRA without its layer: {min(factors)}")
    return {renamed(name): value.to(dtype) for name, value in plain.items()}


PLACES = {
    "visual.": "backbone.visual.",
    "model.": "backbone.language_model.",
    "rm_head.": "head.",
}
"""Prefixes of weights: transformers 4.45's -> ours."""


def renamed(name: str) -> str:
    """A weight's name in `RewardModel`; an unknown name stays as it is, and `fill` refuses it."""
    for old, new in PLACES.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
