"""A tiny random CLIP of the real classes, saved as one finds it on a hub. No network."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

SIDE, CONTEXT, WIDTH = 32, 16, 24


def tokenizer(context: int = CONTEXT) -> PreTrainedTokenizerFast:
    """One token a letter between a start and an end, as CLIP has them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*letters, "<start>", "<end>"])}
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    ends = [(name, vocabulary[name]) for name in ("<start>", "<end>")]
    bare.post_processor = processors.TemplateProcessing("<start> $A <end>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="<start>", eos_token="<end>", pad_token="<end>",
        model_max_length=context,
    )  # fmt: skip


def save_model(folder: Path, seed: int = 0, context: int = CONTEXT) -> Path:
    """A folder as `from_pretrained` takes it; weights larger than a training would start with.

    Args:
        context: tokens that it reads.
    """
    words = tokenizer(context)
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "projection_dim": WIDTH}  # fmt: skip
    text = CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=context, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, **common,
    )  # fmt: skip
    vision = CLIPVisionConfig(image_size=SIDE, patch_size=8, **common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
        model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    CLIPImageProcessorPil(size=size, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    words.save_pretrained(folder)
    return folder
