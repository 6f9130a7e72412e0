"""Tiny networks of the classes that VBench's dimensions use, and videos for them.

Weights are drawn for each name of the authors' own code, so that they are the same whatever
transformers calls them, and saved in the layout of the models on the hub.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ipo_lightning.video import Clip

WIDTH = 64  # of the networks, of CLIP's embedding, and of a head of OpenAI's attention
LAYERS = 2
Shapes = dict[str, tuple[int, ...]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int, size: float) -> dict[str, Tensor]:
    """Random weights by name: norms scale by about 1, all else has the deviation ``size``."""
    weights = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        tensor = torch.randn(shape, generator=generator(seed * 1000 + number))
        if name.endswith("running_var"):
            weights[name] = 1 + 0.2 * tensor.abs()
        elif len(shape) == 1 and name.endswith("weight"):
            weights[name] = 1 + 0.1 * tensor
        else:
            weights[name] = size * tensor
    return weights


def layer(prefix: str, parts: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Any]]:
    """Weight and bias of each part."""
    for name, shape in parts.items():
        yield f"{prefix}{name}.weight", shape
        yield f"{prefix}{name}.bias", shape[:1]


@cache
def dino() -> dict[str, Tensor]:
    """A ViT for 224 x 224 pixels in patches of 16, by DINO's names."""
    shapes: Shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, 197, WIDTH)}
    shapes |= layer("", {"patch_embed.proj": (WIDTH, 3, 16, 16), "norm": (WIDTH,)})
    block: Shapes = {
        "norm1": (WIDTH,), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH),
        "norm2": (WIDTH,), "mlp.fc1": (2 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 2 * WIDTH),
    }  # fmt: skip
    for number in range(LAYERS):
        shapes |= layer(f"blocks.{number}.", block)
    return drawn(shapes, 1, 0.3)


@cache
def clip() -> dict[str, Tensor]:
    """The image half of a CLIP for 224 x 224 pixels in patches of 32, by OpenAI's names."""
    shapes: Shapes = {
        "visual.class_embedding": (WIDTH,), "visual.positional_embedding": (50, WIDTH),
        "visual.conv1.weight": (WIDTH, 3, 32, 32), "visual.proj": (WIDTH, WIDTH),
    }  # fmt: skip
    shapes |= layer("visual.", {"ln_pre": (WIDTH,), "ln_post": (WIDTH,)})
    block: Shapes = {
        "ln_1": (WIDTH,), "attn.out_proj": (WIDTH, WIDTH), "ln_2": (WIDTH,),
        "mlp.c_fc": (4 * WIDTH, WIDTH), "mlp.c_proj": (WIDTH, 4 * WIDTH),
    }  # fmt: skip
    for number in range(LAYERS):
        prefix = f"visual.transformer.resblocks.{number}."
        shapes |= layer(prefix, block)
        shapes[f"{prefix}attn.in_proj_weight"] = (3 * WIDTH, WIDTH)
        shapes[f"{prefix}attn.in_proj_bias"] = (3 * WIDTH,)
    return drawn(shapes, 2, 0.2)


@cache
def head() -> dict[str, Tensor]:
    """An aesthetic head for `clip`, with scores of about 5."""
    weight = 4 * torch.randn(1, WIDTH, generator=generator(3))
    return {"weight": weight, "bias": torch.tensor([5.0])}


@cache
def raft() -> dict[str, Tensor]:
    """RAFT by torchvision's names; it is small enough as it is."""
    from torchvision.models.optical_flow import raft_large

    own = raft_large(weights=None, progress=False).state_dict()
    floats = {name: tuple(one.shape) for name, one in own.items() if one.is_floating_point()}
    return own | drawn(floats, 4, 0.022)


def musiq(frame: Tensor) -> Tensor:
    """Stands for MUSIQ, whose package is for noncommercial use: frame (1, 3, H, W), 0 to 1.

    It depends on the frame's size and on each of its pixels.
    """
    height, width = frame.shape[-2:]
    places = torch.linspace(0, 1, height)[:, None] * torch.linspace(1, 3, width)
    return 40 * (frame * places).mean() + height / 32


# -------------------------------------------------------------------- as on the hub

DINO_CONFIG = {
    "model_type": "vit", "architectures": ["ViTModel"], "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6, "qkv_bias": True,
}  # fmt: skip
CLIP_CONFIG = {
    "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": WIDTH,
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": 1, "image_size": 224, "patch_size": 32,
        "projection_dim": WIDTH, "hidden_act": "quick_gelu",
    },
}  # fmt: skip
DINO_NAMES = {
    "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection", "blocks.": "encoder.layer.",
    "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense", "norm.": "layernorm.",
}  # fmt: skip
CLIP_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers", "ln_1": "layer_norm1",
    "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "c_fc": "fc1", "c_proj": "fc2",
}  # fmt: skip


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights under the names of another implementation; the names are replaced in order."""
    found = {}
    for name, tensor in weights.items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = tensor.contiguous()
    return found


def split(weights: dict[str, Tensor], whole: str, parts: tuple[str, str, str]) -> None:
    """Queries, keys and values apart, which others keep as one matrix."""
    for name in [name for name in weights if whole in name]:
        for part, rows in zip(parts, weights.pop(name).chunk(3), strict=True):
            weights[name.replace(whole, part)] = rows.contiguous()


def save_dino(folder: Path) -> Path:
    """As facebook/dino-vitb16: weights in a file that torch wrote, without safetensors."""
    weights = renamed(dino(), DINO_NAMES)
    at = "attention.attention."
    split(weights, "attn.qkv", (f"{at}query", f"{at}key", f"{at}value"))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(DINO_CONFIG))
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def save_clip(folder: Path) -> Path:
    """As openai/clip-vit-base-patch32, without the half that reads."""
    weights = renamed(clip(), CLIP_NAMES)
    weights["visual_projection.weight"] = weights.pop("visual.proj").T.contiguous()
    for kind in ("weight", "bias"):
        q, k, v = (f"self_attn.{name}_proj.{kind}" for name in "qkv")
        split(weights, f"attn.in_proj_{kind}", (q, k, v))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CLIP_CONFIG))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


# -------------------------------------------------------------------- videos


def video(seed: int, frames: int, height: int, width: int, fps: float = 8.0) -> Clip:
    """Blurred noise that drifts, with grain: frames resemble each other, more or less."""
    noise = torch.rand(1, 3, 12, 16, generator=generator(seed))
    canvas = nn.functional.interpolate(noise, (2 * height, 2 * width), mode="bilinear")[0]
    grain = torch.randn(frames, 3, height, width, generator=generator(seed + 100))
    shown = torch.stack([
        canvas[:, step * height // frames :, step * width // frames :][:, :height, :width]
        for step in range(frames)
    ])  # fmt: skip
    pixels = (255 * shown + 6 * grain).clamp(0, 255).round().to(torch.uint8)
    return Clip(pixels.permute(0, 2, 3, 1).contiguous(), fps)


SMALL = (video(1, 5, 40, 64), video(2, 3, 96, 64), video(3, 2, 64, 64))
"""Wide, high and square, of different lengths; decord fails on exact pixels of other widths."""
LARGE = (video(4, 2, 36, 640), video(5, 2, 40, 64))
"""Above and below the size that imaging quality shrinks."""
MOVING = (video(6, 3, 130, 140), video(7, 3, 136, 128, fps=16.0))
"""Large enough for RAFT; one needs padding, of the other every second frame is used."""
SPEEDS = [
    (height, 320, (8 * torch.rand(pairs, generator=generator(pairs))).tolist())
    for pairs in range(1, 41)
    for height in (224, 256)
]
"""Height and width in pixels, and speeds in pixels of the pairs of frames, of made-up videos."""
