"""Parts of a diffusers folder made of its configs alone, for plans on fake tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedModel


class OfConfig:
    """Stands where a model class of diffusers or transformers does, and reads no weights.

    Args:
        kind: the class. changes: to the config that it finds.
    """

    def __init__(self, kind: Any, **changes: Any) -> None:
        self.kind, self.changes = kind, changes

    def load_config(self, *args: Any, **where: Any) -> dict[str, Any]:
        """See diffusers' ``ConfigMixin.load_config``."""
        return {**self.kind.load_config(*args, **where), **self.changes}

    def from_pretrained(self, pretrained_model_name_or_path: str, **settings: Any) -> Any:
        """A model with random weights of the type asked for; other settings are passed over."""
        where = {key: settings.get(key) for key in ("subfolder", "revision")}
        dtype = settings.get("torch_dtype") or settings.get("dtype") or torch.float32
        with _default(dtype):
            return self._build(pretrained_model_name_or_path, where)

    def _build(self, path: str, where: dict[str, Any]) -> Any:
        if issubclass(self.kind, PreTrainedModel):
            return self.kind(self.kind.config_class.from_pretrained(path, **where))
        return self.kind.from_config(self.load_config(path, **where))


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class FullLength:
    """Stands where a tokenizer does: every prompt fills its length."""

    def __call__(self, prompts: list[str], *, max_length: int, **_: Any) -> BatchEncoding:
        """Tokens and mask, (P, max_length) each."""
        tokens = torch.zeros(len(prompts), max_length, dtype=torch.long)
        return BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
