"""Prompt files by split, where configs look for them; the reading is part of the library."""

from ipo_lightning.prompts.files import (
    SPLITS,
    Held,
    Split,
    from_file,
    place,
    read_named,
    read_prompts,
    split_of,
)

__all__ = [
    "SPLITS",
    "Held",
    "Split",
    "from_file",
    "place",
    "read_named",
    "read_prompts",
    "split_of",
]
