"""Tiny random CogVideoX pipelines of the real classes, built on the spot; no training, no network.

Videos are 9 frames of 16 x 24 pixels, latents (3, 4, 4, 6): no two axes alike but F and patches, so
that a swapped axis shows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.draws.batch import PairBatch, PointBatch, Videos

WORDS = ("a", "red", "blue", "ring", "cross", "moving", "left", "right")
NUM_TOKENS = 6
FRAMES, HEIGHT, WIDTH = 9, 16, 24
LATENT_SHAPE = (3, 4, 4, 6)
TEXT_SHAPE = (NUM_TOKENS, 16)
TIMESTEPS = 1000


def scheduler(kind: str = "ddim", snr_shift_scale: float = 3.0) -> Any:
    """CogVideoX's own schedule: v prediction, zero terminal signal, trailing steps."""
    make = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}[kind]
    return make(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=snr_shift_scale,
    )


def tokenizer() -> T5Tokenizer:
    """One token a word."""
    entries = [("\u2581" + word, -1.0) for word in WORDS]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -20.0)]
    return T5Tokenizer(vocab=special + entries, extra_ids=0, model_max_length=NUM_TOKENS)


def text_encoder(num_tokens: int) -> T5EncoderModel:
    """One layer of T5."""
    config = T5Config(
        vocab_size=num_tokens,
        d_model=TEXT_SHAPE[1],
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def transformer(rotary: bool) -> CogVideoXTransformer3DModel:
    """Two blocks; sincos positions as in 2B, or rotary ones as in 5B."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=LATENT_SHAPE[1],
        out_channels=LATENT_SHAPE[1],
        time_embed_dim=16,
        text_embed_dim=TEXT_SHAPE[1],
        num_layers=2,
        sample_width=LATENT_SHAPE[3],
        sample_height=LATENT_SHAPE[2],
        sample_frames=FRAMES,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=NUM_TOKENS,
        use_rotary_positional_embeddings=rotary,
    )


def vae(scaling_factor: float) -> AutoencoderKLCogVideoX:
    """4 times smaller in height, width and time; its contrast is raised to be visible."""
    model = AutoencoderKLCogVideoX(
        block_out_channels=(4, 4, 4),
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        latent_channels=LATENT_SHAPE[1],
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        sample_height=HEIGHT,
        sample_width=WIDTH,
        scaling_factor=scaling_factor,
    )
    with torch.no_grad():
        model.decoder.conv_out.conv.weight.mul_(1.5)
    return model


def pipeline(style: str = "2b", kind: str = "ddim", seed: int = 0) -> CogVideoXPipeline:
    """A whole pipeline in the manner of CogVideoX-2B or CogVideoX-5B, with random weights."""
    rotary, shift, scale = {"2b": (False, 3.0, 1.15258426), "5b": (True, 1.0, 0.7)}[style]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words = tokenizer()
        pipe = CogVideoXPipeline(
            tokenizer=words,
            text_encoder=text_encoder(len(words)),
            vae=vae(scale),
            transformer=transformer(rotary),
            scheduler=scheduler(kind, shift),
        )
    for part in (pipe.text_encoder, pipe.vae, pipe.transformer):
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_pipeline(folder: Path, style: str = "2b", kind: str = "ddim", seed: int = 0) -> Path:
    """An ordinary diffusers folder."""
    pipeline(style, kind, seed).save_pretrained(folder)
    return folder


def policy(folder: Path, **settings: Any) -> CogVideoX:
    """The folder as a policy."""
    return CogVideoX(str(folder), **settings)


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair_batch(count: int = 3, seed: int = 0, weight: Sequence[float] | None = None) -> PairBatch:
    """Random latents with everything a pairwise step needs."""
    return PairBatch(
        win=normal(seed + 1, count, *LATENT_SHAPE),
        lose=normal(seed + 2, count, *LATENT_SHAPE),
        text=normal(seed + 3, count, *TEXT_SHAPE),
        noise=normal(seed + 4, count, *LATENT_SHAPE),
        u=torch.linspace(0.1, 0.9, count, dtype=torch.float64),
        weight=torch.tensor(weight or [1.0] * count),
        row=torch.arange(10, 10 + count),
        ref_win=torch.full((count,), torch.nan),
        ref_lose=torch.full((count,), torch.nan),
    )


def point_batch(desirable: Sequence[bool], seed: int = 0) -> PointBatch:
    """Random latents with everything a pointwise step needs."""
    pairs = pair_batch(len(desirable), seed)
    return PointBatch(
        latents=pairs.win,
        text=pairs.text,
        noise=pairs.noise,
        u=pairs.u,
        weight=pairs.weight,
        desirable=torch.tensor(desirable),
        reward=torch.linspace(0.1, 0.9, len(desirable)),
        row=pairs.row,
        ref=pairs.ref_win,
    )


def real_batch(count: int = 2, seed: int = 50) -> Videos:
    """Random latents in the place of real clips."""
    return Videos(
        latents=normal(seed + 1, count, *LATENT_SHAPE),
        text=normal(seed + 2, count, *TEXT_SHAPE),
        noise=normal(seed + 3, count, *LATENT_SHAPE),
        u=torch.linspace(0.2, 0.8, count, dtype=torch.float64),
    )
