"""Tiny random Wan pipelines of the real classes, built on the spot; no training, no network.

Videos are 9 frames of 16 x 32 pixels, latents (5, 3, 4, 8): no two axes alike, so that a swapped
axis shows.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from ipo_lightning.backbones.wan import Wan
from ipo_lightning.draws.batch import PairBatch
from tests.helpers import tiny
from tests.helpers.tiny import normal

FRAMES, HEIGHT, WIDTH = 9, 16, 32
LATENT_SHAPE = (5, 3, 4, 8)
TEXT_SHAPE = tiny.TEXT_SHAPE
SHIFT = 3.0
MEAN = (-0.8, 0.5, 0.1, -0.3, 0.9)
STD = (2.8, 0.4, 1.5, 2.0, 0.7)
"""Far from 0 and 1, as the real ones: normalising twice, backwards or not at all shows."""


def scheduler(kind: str = "unipc", shift: float = SHIFT) -> Any:
    """Wan's own sampler, or the other one that its pipeline knows."""
    if kind == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def text_encoder(num_tokens: int, width: int = TEXT_SHAPE[1]) -> UMT5EncoderModel:
    """One layer of UMT5."""
    config = UMT5Config(
        vocab_size=num_tokens,
        d_model=width,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return UMT5EncoderModel(config)


def transformer(**changes: Any) -> WanTransformer3DModel:
    """Two blocks."""
    settings = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": LATENT_SHAPE[0],
        "out_channels": LATENT_SHAPE[0],
        "text_dim": TEXT_SHAPE[1],
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**{**settings, **changes})


def autoencoder(**changes: Any) -> AutoencoderKLWan:
    """4 times smaller in height, width and time."""
    settings = {
        "base_dim": 4,
        "z_dim": LATENT_SHAPE[0],
        "dim_mult": [1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "latents_mean": list(MEAN),
        "latents_std": list(STD),
        "scale_factor_temporal": 4,
        "scale_factor_spatial": 4,
    }
    return AutoencoderKLWan(**{**settings, **changes})


def vae() -> AutoencoderKLWan:
    """Random weights whose contrast is raised to be visible."""
    model = autoencoder()
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(2)
    return model


def pipeline(kind: str = "unipc", seed: int = 0, **changes: Any) -> WanPipeline:
    """A whole pipeline with random weights; ``changes`` are of the transformer's config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = tiny.tokenizer()
        pipe = WanPipeline(
            tokenizer=words,
            text_encoder=text_encoder(len(words)),
            vae=vae(),
            transformer=transformer(**changes),
            scheduler=scheduler(kind),
        )
    for part in (pipe.text_encoder, pipe.vae, pipe.transformer):
        part.eval()
    return pipe


def save_pipeline(folder: Path, kind: str = "unipc", seed: int = 0, **changes: Any) -> Path:
    """An ordinary diffusers folder."""
    pipeline(kind, seed, **changes).save_pretrained(folder)
    return folder


def policy(folder: Path, **settings: Any) -> Wan:
    """The folder as a policy."""
    sizes = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH}
    return Wan(str(folder), **{**sizes, "text_length": tiny.NUM_TOKENS, **settings})


def pair_batch(count: int = 3, seed: int = 0) -> PairBatch:
    """Random latents with everything a pairwise step needs."""
    win, lose, noise = (normal(seed + k, count, *LATENT_SHAPE) for k in (1, 2, 4))
    return tiny.pair_batch(count, seed)._replace(win=win, lose=lose, noise=noise)
