"""Reward models like VideoReward's: a multimodal network with a head at special tokens.

The rubric has one special token for each dimension; a linear head makes the reward of the hidden
state at that token (Liu et al., arXiv 2501.13918). VideoReward is such a model, and so are critics
that are trained here; they differ in weights, rubric and scale.

A **reward folder** holds one that was trained here::

    reward.json          the `RewardSpec` without its rubric
    rubric.txt           the rubric, UTF-8
    config.json          of the backbone, with the files of its processor and tokenizer
    model.safetensors    `RewardModel.state_dict()`: backbone.*, head.weight; LoRA merged
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel
from transformers.initialization import no_init_weights

from ipo_lightning.critics.pretrained.checkpoint import Processor, collate, named
from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.errors import InputError
from ipo_lightning.video import Clip

PROMPT = "{text_prompt}"
"""The place of the video's prompt in a rubric."""
SPEC, RUBRIC, WEIGHTS = "reward.json", "rubric.txt", "model.safetensors"

Positions = Literal["sequential", "native"]


@dataclass(frozen=True)
class RewardSpec:
    """All of a reward model but its weights: the rubric, and how rewards become scores."""

    rubric: str
    """The text after the video, with `PROMPT` once, and each of ``tokens`` once, in order."""
    dims: tuple[str, ...]
    """Names of the dimensions."""
    tokens: tuple[str, ...]
    """The special token at which each dimension is read."""
    mean: tuple[float, ...]
    """Of each dimension's rewards over a set of videos; a score is ``(reward - mean) / std``."""
    std: tuple[float, ...]
    viewing: Viewing = Viewing()
    """How videos are shown, as in the model's training."""
    outputs: int = 1
    """Rows of the head: 1 for all dimensions, or one for each."""
    positions: Positions = "sequential"
    """Rotary positions: the token's index in the sequence (as in VideoReward's training), or the
    backbone's own in time, height and width."""

    def __post_init__(self) -> None:
        lengths = {len(self.dims), len(self.tokens), len(self.mean), len(self.std)}
        if len(lengths) != 1 or not self.dims:
            raise InputError(
                "a reward model has as many dims as tokens, means and stds: "
                f"{self.dims}, {self.tokens}, {self.mean}, {self.std}"
            )
        if self.outputs not in (1, len(self.dims)):
            raise InputError(
                f"a head of {self.outputs} outputs; {len(self.dims)} dimensions have 1 or "
                f"{len(self.dims)}"
            )
        if self.positions not in get_args(Positions) or min(self.std) <= 0:
            raise InputError(
                f"positions={self.positions}, std={self.std}: choose one of "
                f"{', '.join(get_args(Positions))}, and give stds above 0"
            )
        for mark in (PROMPT, *self.tokens):
            if self.rubric.count(mark) != 1:
                raise InputError(f"the rubric has {mark} {self.rubric.count(mark)} times, not once")


class RewardModel(nn.Module):
    """A multimodal backbone with a head that is read at special tokens.

    Args:
        backbone: transformers' base model (``AutoModel``, such as Qwen2VLModel), in any precision;
            its embeddings have rows for the special tokens.
        tokens: ids of the special tokens, one a dimension.
        outputs, positions: see `RewardSpec`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        tokens: Sequence[int],
        outputs: int = 1,
        positions: Positions = "sequential",
    ) -> None:
        super().__init__()
        self.backbone, self.tokens, self.positions = backbone, tuple(tokens), positions
        config: Any = backbone.config
        self.head = nn.Linear(config.get_text_config().hidden_size, outputs, bias=False)

    @property
    def context(self) -> int:
        """Tokens that the backbone can read."""
        config: Any = self.backbone.config
        return int(config.get_text_config().max_position_embeddings)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Rewards (B, D), float32, not normalised.

        The head computes in float32 whatever the backbone's precision: in bfloat16 two rewards
        that differ by a hundredth would be equal.

        Args:
            inputs: as of `states`.
        """
        weight = self.head.weight.float()
        rewards = F.linear(self.states(**inputs), weight)  # (B, D, outputs)
        return rewards.squeeze(2) if len(weight) == 1 else rewards.diagonal(dim1=1, dim2=2)

    def states(self, **inputs: Tensor) -> Tensor:
        """The hidden states at the special tokens, (B, D, hidden) float32.

        Args:
            inputs: of the backbone: ``input_ids`` (B, L), padded at the right, ``attention_mask``,
                pixels.

        Raises:
            ValueError: a row does not have each special token exactly once.
        """
        ids = inputs["input_ids"]
        if self.positions == "sequential":
            inputs.pop("mm_token_type_ids", None)  # with it, a backbone computes its own
            places = torch.arange(ids.shape[1], device=ids.device)
            inputs["position_ids"] = places.expand(3, len(ids), -1)
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state
        return torch.stack([self._at(token, ids, hidden) for token in self.tokens], 1).float()

    def _at(self, token: int, ids: Tensor, hidden: Tensor) -> Tensor:
        """(B, hidden) the hidden state at a token."""
        here = ids == token
        if not bool((here.sum(1) == 1).all()):
            raise ValueError(f"token {token} must be in each row exactly once")
        return hidden[here]


class RewardInputs:
    """Makes a reward model's inputs of videos and prompts.

    Args:
        processor: the backbone's; the special tokens are added to its tokenizer.
        spec: the rubric, its tokens, and how videos are shown.
    """

    def __init__(self, processor: Processor, spec: RewardSpec) -> None:
        self.processor, self.spec = processor, spec
        processor.tokenizer.add_tokens(list(spec.tokens), special_tokens=True)
        self.tokens: list[int] = processor.tokenizer.convert_tokens_to_ids(list(spec.tokens))

    def one(self, clip: Clip, prompt: str) -> dict[str, Tensor]:
        """The inputs (1, L) for one video."""
        shown = self.spec.viewing.show(clip, self.processor.grid)
        words = self.spec.rubric.replace(PROMPT, self.processor.harmless(prompt))
        return self.processor.encode(self.processor.rendered([None, words]), [shown])

    def __call__(self, clips: Sequence[Clip], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The inputs (B, L), padded at the right, for several."""
        rows = [self.one(clip, prompt) for clip, prompt in zip(clips, prompts, strict=True)]
        return collate(rows, self.processor.padding, left=False)


def save_reward(folder: Path, model: RewardModel, spec: RewardSpec, processor: Processor) -> None:
    """Write a reward folder.

    Args:
        model: without LoRA layers: they are merged.
        processor: with the special tokens (see `RewardInputs`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    plain = asdict(spec)
    (folder / RUBRIC).write_text(plain.pop("rubric"), encoding="utf-8", newline="")
    (folder / SPEC).write_text(json.dumps(plain, indent=2) + "\n")
    backbone: Any = model.backbone
    backbone.config.save_pretrained(folder)
    processor.whole.save_pretrained(folder)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def read_spec(folder: Path) -> RewardSpec:
    """The specification in a reward folder.

    Raises:
        InputError: a file is missing or malformed.
    """
    try:
        plain: dict[str, Any] = json.loads((folder / SPEC).read_text())
        plain["rubric"] = (folder / RUBRIC).read_bytes().decode("utf-8")
        known = {field.name for field in fields(RewardSpec)}
        lists = {name: tuple(plain[name]) for name in ("dims", "tokens", "mean", "std")}
        settings = {name: value for name, value in plain.items() if name in known}
        return RewardSpec(**settings | lists | {"viewing": Viewing(**plain["viewing"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder} is not a reward folder: {error}") from error


def load_reward(
    folder: Path, dtype: torch.dtype = torch.bfloat16, attention: str | None = None
) -> tuple[RewardModel, RewardInputs]:
    """A reward model from its folder, on the CPU, and the maker of its inputs.

    Args:
        dtype: of the backbone; the head stays in float32.
        attention: transformers' name of the kernels; None: transformers' default.
    """
    spec = read_spec(folder)
    inputs = RewardInputs(Processor(str(folder)), spec)
    with named("model", str(folder)):
        config = AutoConfig.from_pretrained(folder)
    model = empty_model(config, inputs, dtype, attention)
    try:
        fill(model, load_file(folder / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    return model, inputs


def empty_model(
    config: Any, inputs: RewardInputs, dtype: torch.dtype, attention: str | None = None
) -> RewardModel:
    """The network of a config, with undefined weights: `fill` loads them."""
    spec = inputs.spec
    with no_init_weights():  # on the CPU, not on meta: buffers outside of state dicts are right
        backbone = AutoModel.from_config(config, dtype=dtype, attn_implementation=attention)
    return RewardModel(backbone, inputs.tokens, spec.outputs, spec.positions).eval()


def fill(model: RewardModel, weights: Mapping[str, Tensor]) -> None:
    """Load weights into an empty model, in its precision.

    Raises:
        InputError: weights are missing, unknown, or of another shape.
    """
    own = model.state_dict()
    wrong = sorted(own.keys() ^ weights.keys())
    wrong += [
        name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape
    ]
    if wrong:
        raise InputError(
            f"a reward model's weights do not fit: {len(wrong)} are missing, unknown or of "
            f"another shape, such as {wrong[0]}"
        )
    cast = {name: value.to(own[name].dtype) for name, value in weights.items()}
    model.load_state_dict(cast, assign=True)
