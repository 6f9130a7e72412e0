"""Configs of published critics, for plans on a machine that cannot reach their hub.

Architectures as their authors published them: enough to count parameters and tokens, not to rate.
A folder's own config, or one in the local cache, is used instead where there is one.
"""

from typing import Any

Config = dict[str, Any]


def _qwen2_vl(hidden: int, mlp: int, heads: int, kv_heads: int, words: int, tied: bool) -> Config:
    return {
        "model_type": "qwen2_vl",
        "tie_word_embeddings": tied,
        "text_config": _text(hidden, mlp, 28, heads, kv_heads, words),
        "vision_config": {
            "depth": 32, "embed_dim": 1280, "hidden_size": hidden, "num_heads": 16, "mlp_ratio": 4,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    }  # fmt: skip


def _qwen2_5_vl(text: Config, tied: bool) -> Config:
    return {
        "model_type": "qwen2_5_vl",
        "tie_word_embeddings": tied,
        "text_config": text,
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "out_hidden_size": text["hidden_size"], "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
    }  # fmt: skip


def _qwen3_vl(text: Config, depth: int, hidden: int, mlp: int, stack: list[int]) -> Config:
    return {
        "model_type": "qwen3_vl",
        "tie_word_embeddings": text["hidden_size"] < 4096,
        "text_config": {**text, "head_dim": 128},
        "vision_config": {
            "depth": depth, "hidden_size": hidden, "intermediate_size": mlp, "num_heads": 16,
            "out_hidden_size": text["hidden_size"], "patch_size": 16, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": stack,
        },
    }  # fmt: skip


def _text(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, words: int) -> Config:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": words,
    }


def _clip(text: Config, vision: Config, width: int) -> Config:
    shared = {"projection_dim": width}
    return {
        "model_type": "clip",
        **shared,
        "text_config": text | shared,
        "vision_config": vision | shared | {"image_size": 224},
    }


def _layers(hidden: int, layers: int, heads: int) -> Config:
    """Of a tower of CLIP, whose hidden layers are four times as wide."""
    return {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


QWEN2_VL_2B = _qwen2_vl(1536, 8960, 12, 2, 151936, tied=True)
QWEN2_VL_7B = _qwen2_vl(3584, 18944, 28, 4, 152064, tied=False)
QWEN2_5_VL_3B = _qwen2_5_vl(_text(2048, 11008, 36, 16, 2, 151936), tied=True)
QWEN2_5_VL_7B = _qwen2_5_vl(_text(3584, 18944, 28, 28, 4, 152064), tied=False)
QWEN3_VL_2B = _qwen3_vl(_text(2048, 6144, 28, 16, 8, 151936), 24, 1024, 4096, [5, 11, 17])
QWEN3_VL_4B = _qwen3_vl(_text(2560, 9728, 36, 32, 8, 151936), 24, 1024, 4096, [5, 11, 17])
QWEN3_VL_8B = _qwen3_vl(_text(4096, 12288, 36, 32, 8, 151936), 27, 1152, 4304, [8, 16, 24])
CLIP_B_32 = _clip(_layers(512, 12, 8), {**_layers(768, 12, 12), "patch_size": 32}, 512)
CLIP_L_14 = _clip(_layers(768, 12, 12), {**_layers(1024, 24, 16), "patch_size": 14}, 768)
CLIP_H_14 = _clip(_layers(1024, 24, 16), {**_layers(1280, 32, 16), "patch_size": 14}, 1024)
DINO_B_16: Config = {
    "model_type": "vit", **_layers(768, 12, 12), "image_size": 224, "patch_size": 16,
}  # fmt: skip

MODELS: dict[str, Config] = {
    "Qwen/Qwen2-VL-2B-Instruct": QWEN2_VL_2B,
    "Qwen/Qwen2-VL-7B-Instruct": QWEN2_VL_7B,
    "Qwen/Qwen2.5-VL-3B-Instruct": QWEN2_5_VL_3B,
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN2_5_VL_7B,
    "Qwen/Qwen3-VL-2B-Instruct": QWEN3_VL_2B,
    "Qwen/Qwen3-VL-4B-Instruct": QWEN3_VL_4B,
    "Qwen/Qwen3-VL-8B-Instruct": QWEN3_VL_8B,
    "CodeGoat24/UnifiedReward-2.0-qwen-3b": QWEN2_5_VL_3B,
    "CodeGoat24/UnifiedReward-2.0-qwen-7b": QWEN2_5_VL_7B,
    "CodeGoat24/UnifiedReward-2.0-qwen3vl-2b": QWEN3_VL_2B,
    "CodeGoat24/UnifiedReward-2.0-qwen3vl-4b": QWEN3_VL_4B,
    "CodeGoat24/UnifiedReward-2.0-qwen3vl-8b": QWEN3_VL_8B,
    "CodeGoat24/UnifiedReward-Flex-qwen3vl-8b": QWEN3_VL_8B,
    "CodeGoat24/UnifiedReward-Think-qwen3vl-8b": QWEN3_VL_8B,
    "TIGER-Lab/VideoScore2": QWEN2_5_VL_7B,
    "openai/clip-vit-base-patch32": CLIP_B_32,
    "openai/clip-vit-large-patch14": CLIP_L_14,
    "yuvalkirstain/PickScore_v1": CLIP_H_14,
    "facebook/dino-vitb16": DINO_B_16,
}
"""By hub id."""
