"""Parts of a diffusers pipeline built from its configs without weights, to plan on fake tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedModel


class OfConfig:
    """Takes the place of a model class of diffusers or transformers, and reads no weights.

    Args:
        kind: the class. changes: keys of the config that are set anew.
    """

    def __init__(self, kind: Any, **changes: Any) -> None:
        self.kind, self.changes = kind, changes

    def load_config(self, *args: Any, **where: Any) -> dict[str, Any]:
        """The config as ``kind.load_config`` finds it, with the changes."""
        return {**self.kind.load_config(*args, **where), **self.changes}

    def from_pretrained(self, pretrained_model_name_or_path: str, **settings: Any) -> Any:
        """A model with random weights of the dtype asked for; other settings are ignored."""
        where = {key: settings.get(key) for key in ("subfolder", "revision")}
        dtype = settings.get("torch_dtype") or settings.get("dtype") or torch.float32
        with default_dtype(dtype):
            return self._build(pretrained_model_name_or_path, where)

    def _build(self, path: str, where: dict[str, Any]) -> Any:
        if issubclass(self.kind, PreTrainedModel):
            return self.kind(self.kind.config_class.from_pretrained(path, **where))
        return self.kind.from_config(self.load_config(path, **where))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What floating-point tensors are made in, meanwhile."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class FullLength:
    """Takes the place of a tokenizer: every prompt fills the whole length."""

    def __call__(self, prompts: list[str], *, max_length: int, **_: Any) -> BatchEncoding:
        """Token ids and attention mask, (P, max_length) each."""
        tokens = torch.zeros(len(prompts), max_length, dtype=torch.long)
        return BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
