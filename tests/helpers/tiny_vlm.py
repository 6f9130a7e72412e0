"""Tiny random multimodal models of the real classes, saved as one finds them on a hub.

Among them a VideoReward in upstream's layout: an unmerged adapter of peft, with the names of
transformers 4.45.

Tokenizers, processors and chat templates are made on the spot: one token a letter, and whole words
where a test needs them. Templates follow the families' own: Qwen's shows videos where they stand
in a turn, LLaVA-OneVision's all before the words.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipVisionConfig,
)

from ipo_lightning.video import Clip

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
WORDS = ("yes", "Yes", "no", "No", "A", "B", "tie", "Good", "Bad")
"""Words that are one token; all else is spelt letter by letter."""
HIDDEN, LAYERS, CONTEXT = 64, 2, 4096
SMALL = {"fps": 8.0, "least_frames": 2, "most_frames": 4, "min_pixels": 56 * 56,
         "max_pixels": 84 * 84}  # fmt: skip
"""A `Viewing` of a few patches."""

SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
QWEN = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}" + SYSTEM + "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% for part in message['content'] if part['type'] == 'video' %}<video>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ '\n' + part['text'] }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Bytes as tokens, `WORDS` whole, and the family's special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:  # byte pairs from the left: y + e, ye + s
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
            vocabulary.setdefault(word[:end], len(vocabulary))
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special += (
        ["<image>", "<video>"]
        if family == "llava_onevision"
        else ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    )
    bare.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _text(words: Any, sections: Sequence[int], **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": list(sections), "rope_theta": 1e4}
    return {
        "vocab_size": len(words) + 8,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": rope,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        **more,
    }


def _marks(words: Any) -> dict[str, int]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }
    return {key: words.convert_tokens_to_ids(name) for key, name in names.items()}


def _qwen2_vl(words: Any) -> tuple[Any, Any]:
    config = Qwen2VLConfig(
        text_config=_text(words, [2, 3, 3]),
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 4,
                       "mlp_ratio": 2, "patch_size": 14, "spatial_merge_size": 2,
                       "temporal_patch_size": 2},
        **_marks(words),
    )  # fmt: skip
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessorPil(), words, Qwen2VLVideoProcessor(), chat_template=QWEN
    )
    return Qwen2VLForConditionalGeneration(config), processor


def _qwen2_5_vl(words: Any) -> tuple[Any, Any]:
    config = Qwen2_5_VLConfig(
        text_config=_text(words, [2, 3, 3]),
        vision_config={"depth": 2, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 4,
                       "intermediate_size": 64, "window_size": 112, "fullatt_block_indexes": [1],
                       "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
                       "tokens_per_second": 2},
        **_marks(words),
    )  # fmt: skip
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(), words, Qwen2VLVideoProcessor(), chat_template=QWEN
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(words: Any) -> tuple[Any, Any]:
    config = Qwen3VLConfig(
        text_config=_text(words, [3, 3, 2], head_dim=16),
        vision_config={"depth": 3, "hidden_size": 32, "out_hidden_size": HIDDEN, "num_heads": 4,
                       "intermediate_size": 64, "patch_size": 16, "spatial_merge_size": 2,
                       "temporal_patch_size": 2, "num_position_embeddings": 64,
                       "deepstack_visual_indexes": [0, 1]},
        **_marks(words),
    )  # fmt: skip
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessorPil(patch_size=16), words, Qwen3VLVideoProcessor(), chat_template=QWEN
    )
    return Qwen3VLForConditionalGeneration(config), processor


def _llava_onevision(words: Any) -> tuple[Any, Any]:
    text = _text(words, [2, 3, 3])
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            image_size=56, patch_size=14, vision_use_head=False,
        ),
        text_config=Qwen2Config(**text),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        video_token_id=words.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[56, 56], [56, 112]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )  # fmt: skip
    size = {"height": 56, "width": 56}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=[[56, 56], [56, 112]]),
        words,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=LLAVA,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


MAKERS = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_onevision": _llava_onevision,
}


def save_model(folder: Path, family: str, seed: int = 0, scale: float = 8.0) -> Path:
    """A folder as `from_pretrained` takes it.

    Args:
        scale: random weights are made so many times larger than a training would start with, or
            answers would hardly depend on what is shown.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = MAKERS[family](tokenizer(family))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
RUBRIC = (
    "\nRate the quality: <|VQ_reward|>\nEND\nand the motion: <|MQ_reward|>\nEND\n"
    "The prompt is {text_prompt}, and its alignment <|TA_reward|>\nEND\n"
)
NORMS = {"VQ_mean": 0.5, "VQ_std": 2.0, "MQ_mean": -0.25, "MQ_std": 0.5, "TA_mean": 1.0,
         "TA_std": 1.5}  # fmt: skip
UPSTREAM: dict[str, Any] = {
    "data_config": {"fps": 2.0, "max_frame_pixels": 448 * 448, "num_frames": None,
                    "eval_dim": ["VQ", "MQ", "TA"], "prompt_template_type": "detailed_special",
                    "sample_type": "uniform"},
    "model_config": {"use_special_tokens": True, "reward_token": "special", "output_dim": 1},
    "peft_lora_config": {"lora_enable": True, "lora_r": 4, "lora_alpha": 8},
    "inference_config": NORMS,
}  # fmt: skip
"""What upstream's model_config.json says, of what is read."""


def legacy(base: Path, outputs: int, seed: int = 0) -> tuple[Any, torch.Tensor]:
    """Upstream's network, as peft wraps it, and its head (outputs, hidden)."""
    words = AutoTokenizer.from_pretrained(base)
    words.add_tokens(list(TOKENS), special_tokens=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2VLForConditionalGeneration.from_pretrained(base, dtype="float32")
        model.resize_token_embeddings(len(words), mean_resizing=False)
        linear = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and "visual" not in name and name != "lm_head"
        ]
        with warnings.catch_warnings():  # peft reads a name that transformers gives up
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=linear))
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.5)
        head = torch.randn(outputs, HIDDEN) / 8
    return wrapped.eval(), head


def legacy_state(wrapped: Any, head: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state dict as transformers 4.45 and peft 0.10 write it."""
    before = "base_model.model."
    state = {}
    for name, value in wrapped.state_dict().items():
        name = name.replace(f"{before}model.visual.", f"{before}visual.")
        name = name.replace(f"{before}model.language_model.", f"{before}model.")
        state[name] = value.clone()
    return state | {f"{before}rm_head.weight": head}


def save_videoreward(folder: Path, base: Path, outputs: int = 1) -> Path:
    """A folder like ``KlingTeam/VideoReward``, with a rubric of its own."""
    (folder / "checkpoint-7").mkdir(parents=True)
    torch.save(legacy_state(*legacy(base, outputs)), folder / "checkpoint-7/model.pth")
    (folder / "model_config.json").write_text(json.dumps(UPSTREAM))
    (folder / "prompt_template.py").write_text(f'OTHER = "other"\nRUBRIC = {RUBRIC!r}\n')
    return folder


def clip(seed: int, frames: int = 8, size: tuple[int, int] = (40, 56), fps: float = 8.0) -> Clip:
    """A random video: smooth enough to survive a resize, different in each frame."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(frames, 3, 5, 7, generator=generator)
    fine = torch.nn.functional.interpolate(noise, size=size, mode="bilinear")
    pixels = (fine * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return Clip(pixels.contiguous(), fps)
