"""What networks of transformers take of a device, from their configs, without their weights.

Parameters are counted on the network itself, made on the meta device. Activations and operations
are closed formulas of its widths and of the tokens that it sees: networks that read the grid of
their pixels cannot be run without contents. Attention is taken to need no matrix of all tokens, as
in torch's fused kernels; ``eager`` does.
"""

import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.initialization import no_init_weights

from ipo_lightning.critics.pretrained.published import MODELS
from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.stage.costs import Cost, Watched, unknown_cost

READ = "its config cannot be read here: download it, or give a folder"
OTHER = "its config is not of a kind that is computed here (Qwen-VL, LLaVA-OneVision, CLIP, ViT)"
WORDS = 1024
"""Tokens of a question's text, at most about: prompt, rubric, chat format."""
ROWS = 16384
"""Rows of a language head that are in float32 at a time, see `LocalVLM`."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Tower(NamedTuple):
    """A stack of transformer layers."""

    layers: int
    width: int
    mlp: int
    heads: int
    keys: int
    """Width of the keys of all heads together."""
    gated: bool
    weights: int
    """Parameters of its layers."""

    def flops(self, tokens: int, seen: int) -> float:
        """Operations of a forward in which each token attends to ``seen`` of them."""
        return 2.0 * self.weights * tokens + 4.0 * self.layers * tokens * seen * self.width

    def bytes(self, tokens: int, size: int, eager: int = 0) -> float:
        """At the fullest moment of a layer, without gradients.

        Args:
            size: bytes of a number. eager: tokens that attend to each other, where the attention
                makes their whole matrix.
        """
        attention = 2 * self.width + 2 * self.keys + 2 * self.width  # q, k, v, rotated, output
        attention += 3 * self.heads * eager
        fullest = max(attention, (3 if self.gated else 2) * self.mlp)
        return float(size * tokens * (2 * self.width + fullest))


@dataclass(frozen=True)
class Network:
    """What a plan needs to know of a network that sees pictures and reads words."""

    name: str
    parameters: int
    vision: Tower
    language: Tower | None
    """None: of a network that only sees."""
    patch: int
    """Pixels of a patch's side. Patches of ``frames`` frames are one."""
    frames: int
    merged: int
    """Patches of a side of the square that becomes one token; 0: a picture has ``exact`` tokens."""
    exact: int
    image: int
    """Pixels of a side of all pictures; 0: of any size."""
    words: int
    """Of its vocabulary."""
    source: str


class Sight(NamedTuple):
    """What a network sees of a video."""

    patches: int
    """Of all frames."""
    together: int
    """Patches of a frame, which attend to each other."""
    tokens: int
    """For the language model."""
    bytes: float
    """Of the pixels, in float32."""


def network_of(path: str, revision: str | None, *, speaks: bool) -> Network | Cost:
    """The network of a folder or a hub id; where it cannot be known, a cost that says so.

    Args:
        speaks: whether it has a language head.
    """
    config, source = config_of(path, revision)
    if config is None:
        return unknown_cost(path, READ)
    try:
        found = _network(json.dumps(config, sort_keys=True), speaks)
    except (AttributeError, KeyError, TypeError, ValueError):
        return unknown_cost(path, OTHER)
    return replace(found, name=path, source=source)


def config_of(path: str, revision: str | None) -> tuple[dict[str, Any] | None, str]:
    """The config, and where it is from: the folder, the local cache, or `MODELS`; no network."""
    try:
        found = AutoConfig.from_pretrained(path, revision=revision, local_files_only=True)
    except (OSError, ValueError, KeyError):
        published = MODELS.get(path)
        return published, "as published" if published else ""
    return found.to_dict(), "by its config"


@lru_cache(maxsize=32)
def _network(text: str, speaks: bool) -> Network:
    """The network of a config, as JSON."""
    config = AutoConfig.for_model(**json.loads(text))
    family = AutoModelForImageTextToText if speaks else AutoModel
    with torch.device("meta"), no_init_weights():
        model = family.from_config(config)
    sees = getattr(config, "vision_config", config)
    count = sum(one.numel() for one in model.parameters())
    if speaks and _tied(config):
        count -= model.get_output_embeddings().weight.numel()
    language = _tower(model, config.get_text_config()) if _reads(config) else None
    image = 0 if hasattr(sees, "spatial_merge_size") else int(sees.image_size)
    patch, merged = int(sees.patch_size), int(getattr(sees, "spatial_merge_size", 0))
    return Network(
        "",
        count,
        _tower(model, sees),
        language,
        patch,
        int(getattr(sees, "temporal_patch_size", 1)),
        merged,
        math.ceil(image // patch / 2) ** 2,  # LLaVA-OneVision's, of a video's frame
        image,
        int(getattr(config.get_text_config(), "vocab_size", 0)),
        "",
    )


def _tied(config: Any) -> bool:
    parts = (config, config.get_text_config())
    return any(getattr(one, "tie_word_embeddings", False) for one in parts)


def _reads(config: Any) -> bool:
    return hasattr(config, "vision_config") and config.get_text_config() is not config


def _tower(model: Any, config: Any) -> Tower:
    """The layers of a network that a config describes: by their number and their width."""
    layers = int(getattr(config, "depth", 0) or config.num_hidden_layers)
    width = int(getattr(config, "embed_dim", 0) or config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 0) or config.num_heads)
    keys = int(getattr(config, "num_key_value_heads", 0) or heads)
    each = int(getattr(config, "head_dim", 0) or width // heads)
    mlp = int(getattr(config, "intermediate_size", 0) or width * getattr(config, "mlp_ratio", 4))
    gated = str(getattr(config, "hidden_act", "gelu")) == "silu"
    stacks = [
        one for one in model.modules()
        if isinstance(one, torch.nn.ModuleList) and len(one) == layers
        and any(p.shape[-1] == width for p in one[0].parameters())
    ]  # fmt: skip
    weights = sum(p.numel() for p in stacks[0].parameters()) if stacks else 0
    if not weights:
        raise ValueError(f"no stack of {layers} layers")
    return Tower(layers, width, mlp, heads, keys * each, gated, weights)


# -------------------------------------------------------------------- what it sees


def sight(network: Network, viewing: Viewing, video: Watched) -> Sight:
    """A video as `Viewing` shows it."""
    shown = viewing.count(video.frames, video.fps, network.frames)
    pieces = math.ceil(shown / network.frames)
    height = width = network.image
    if not network.image:
        side = network.patch * network.merged
        height, width = viewing.fitted(video.height, video.width, side)
    each = (height // network.patch) * (width // network.patch)
    tokens = each // network.merged**2 if network.merged else network.exact
    pixels = 4.0 * 3 * pieces * network.frames * height * width
    return Sight(pieces * each, each, pieces * tokens, pixels)


def pictures(network: Network, count: int) -> Sight:
    """So many pictures of a network that sees one size."""
    each = (network.image // network.patch) ** 2 + 1  # with the class token
    return Sight(count * each, each, 0, 4.0 * 3 * count * network.image**2)


# -------------------------------------------------------------------- costs


def cost(
    network: Network,
    seen: Sight,
    dtype: str,
    *,
    videos: int = 1,
    batch: int = 1,
    written: int = 0,
    eager: bool = False,
) -> Cost:
    """What a network costs that sees videos together and reads a question about them.

    Args:
        seen: of each video. videos: in a question. batch: questions in a forward. written: tokens
            of an answer, at most. eager: whether the attention makes matrices of all tokens.
    """
    size, vision = BYTES[dtype], network.vision
    patches = videos * batch * seen.patches
    looking = vision.bytes(patches, size, seen.together if eager else 0)
    flops = vision.flops(videos * seen.patches, seen.together)
    reading = 0.0
    if (language := network.language) is not None and seen.tokens:
        tokens = videos * seen.tokens + WORDS
        cached = 2 * size * language.layers * language.keys * (tokens + written)
        head = 4.0 * ROWS * language.width + (size + 4 + 8) * network.words
        looked = 2 * size * videos * seen.tokens * language.width
        row = language.bytes(tokens, size, tokens if eager else 0)
        mask = 2.0 * size * tokens**2  # of causal attention, as torch makes it
        reading = batch * cached + max(batch * (looked + row + mask), head)
        flops += language.flops(tokens, tokens)
    pixels = videos * batch * seen.bytes * 2
    return Cost(
        network.name,
        weights=float(size * network.parameters),
        activations=pixels + max(looking, reading),
        flops=flops,
        written=written,
        source=network.source,
    )
