"""The configs of published models, for plans on a machine that cannot reach their hub.

These are architectures as their authors published them: enough to count parameters, bytes and
operations, not to sample. Where the hub's own configs can be read, they are used instead.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

Config = dict[str, Any]


class Published(NamedTuple):
    """A model of a hub."""

    parts: dict[str, Config]
    """Folder of a pipeline ("" its own) -> its config."""
    parameters: int
    """Of the transformer."""
    gigabytes: float
    """Of the transformer's weights there, in 10^9 bytes."""
    bytes_each: int
    """Of a weight there."""


T5_XXL: Config = {
    "_class_name": "T5EncoderModel", "model_type": "t5", "vocab_size": 32128, "d_model": 4096,
    "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}  # fmt: skip
"""T5-v1.1-XXL's encoder, 4.76e9 parameters."""
UMT5_XXL: Config = {
    **T5_XXL, "_class_name": "UMT5EncoderModel", "model_type": "umt5", "vocab_size": 256384,
}  # fmt: skip
"""UMT5-XXL's encoder, 5.68e9 parameters."""


def _cogvideox(transformer: Config, *, scale: float, shift: float) -> dict[str, Config]:
    """``scale`` is the VAE's scaling_factor, ``shift`` the scheduler's snr_shift_scale."""
    return {
        "": {"_class_name": "CogVideoXPipeline"},
        "transformer": {**COGVIDEOX_TRANSFORMER, **transformer},
        "vae": {**COGVIDEOX_VAE, "scaling_factor": scale},
        "text_encoder": T5_XXL,
        "scheduler": {**COGVIDEOX_SCHEDULE, "snr_shift_scale": shift},
    }


def _wan(transformer: Config) -> dict[str, Config]:
    return {
        "": {"_class_name": "WanPipeline"},
        "transformer": {**WAN_TRANSFORMER, **transformer},
        "vae": WAN_VAE,
        "text_encoder": UMT5_XXL,
        "scheduler": WAN_SCHEDULE,
    }


COGVIDEOX_TRANSFORMER: Config = {
    "_class_name": "CogVideoXTransformer3DModel", "attention_head_dim": 64, "in_channels": 16,
    "out_channels": 16, "patch_size": 2, "time_embed_dim": 512, "text_embed_dim": 4096,
    "max_text_seq_length": 226, "sample_frames": 49, "sample_height": 60, "sample_width": 90,
    "temporal_compression_ratio": 4, "use_rotary_positional_embeddings": False,
}  # fmt: skip
COGVIDEOX_VAE: Config = {
    "_class_name": "AutoencoderKLCogVideoX",
    "block_out_channels": [128, 256, 256, 512], "latent_channels": 16, "layers_per_block": 3,
    "norm_num_groups": 32, "temporal_compression_ratio": 4,
    "down_block_types": ["CogVideoXDownBlock3D"] * 4, "up_block_types": ["CogVideoXUpBlock3D"] * 4,
    "sample_height": 480, "sample_width": 720,
}  # fmt: skip
COGVIDEOX_SCHEDULE: Config = {
    "_class_name": "CogVideoXDDIMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085,
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False,
    "set_alpha_to_one": True,
}  # fmt: skip
WAN_TRANSFORMER: Config = {
    "_class_name": "WanTransformer3DModel", "attention_head_dim": 128, "freq_dim": 256,
    "text_dim": 4096, "in_channels": 16, "out_channels": 16, "patch_size": [1, 2, 2],
}  # fmt: skip
WAN_VAE: Config = {
    "_class_name": "AutoencoderKLWan", "base_dim": 96, "z_dim": 16, "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "temperal_downsample": [False, True, True], "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ],
}  # fmt: skip
WAN_SCHEDULE: Config = {
    "_class_name": "UniPCMultistepScheduler", "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0,
}  # fmt: skip

_2B: Config = {"num_attention_heads": 30, "num_layers": 30}
_5B: Config = {
    "num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True,
}  # fmt: skip
_5B_1_5: Config = {
    **_5B, "patch_size_t": 2, "patch_bias": False, "sample_frames": 81, "sample_height": 300,
    "sample_width": 300,
}  # fmt: skip
_1_3B: Config = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_14B: Config = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}

COGVIDEOX_2B = Published(
    _cogvideox(_2B, scale=1.15258426, shift=3.0), 1_693_783_872, 3.39, bytes_each=2
)
COGVIDEOX_5B = Published(_cogvideox(_5B, scale=0.7, shift=1.0), 5_570_283_072, 11.1, bytes_each=2)
MODELS = {
    "zai-org/CogVideoX-2b": COGVIDEOX_2B,
    "zai-org/CogVideoX-5b": COGVIDEOX_5B,
    "zai-org/CogVideoX1.5-5B": Published(
        _cogvideox(_5B_1_5, scale=0.7, shift=1.0), 5_570_676_352, 11.15, bytes_each=2
    ),
    "Fudan-FUXI/IPOC-2B-v1.0": COGVIDEOX_2B,  # "used as CogVideoX is", says the paper's repository
    "Fudan-FUXI/IPOC-5B-v1.0": COGVIDEOX_5B,
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Published(
        _wan(_1_3B), 1_418_996_800, 5.68, bytes_each=4
    ),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": Published(
        _wan(_14B), 14_288_491_584, 28.58, bytes_each=2
    ),
}  # fmt: skip
"""By hub id."""


def write_configs(model: Published, folder: Path) -> Path:
    """Write the configs as a diffusers folder without weights, and return it."""
    for part, config in model.parts.items():
        file = folder / part / _FILES.get(part, "config.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        content = config if part else {**config, **_index(model.parts)}
        file.write_text(json.dumps(content))
    return folder


_FILES = {"": "model_index.json", "scheduler": "scheduler_config.json"}


def _index(parts: dict[str, Config]) -> dict[str, list[str]]:
    """What model_index.json says of the parts."""
    library = {"text_encoder": "transformers"}
    return {
        part: [library.get(part, "diffusers"), config["_class_name"]]
        for part, config in parts.items()
        if part
    }
