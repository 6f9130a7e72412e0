"""Files that torch wrote: ``.ckpt``, ``.pt``, ``.pth``, ``.bin``. No code in them is ever run."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch


def read_plain(file: str | Path, *, mmap: bool = False) -> Any:
    """The content of a file, on the CPU: tensors and plain types.

    Args:
        mmap: leave tensors on disk until they are used; their checksums are not looked at.

    Raises:
        Exception: of many kinds, where it is damaged or holds something else; `cause_of` tells it.
    """
    with warnings.catch_warnings():  # of old pickles, which are refused
        warnings.simplefilter("ignore")
        mapped = mmap and zipfile.is_zipfile(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
