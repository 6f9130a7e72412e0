"""Weights that are on no hub: named by a setting, or downloaded once and checked."""

import importlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from ipo_lightning.critics.pretrained.published_texts import cache_folder
from ipo_lightning.critics.scorers.frames import UNREADABLE
from ipo_lightning.errors import InputError, cause_of
from ipo_lightning.storage.store import file_sha256
from ipo_lightning.storage.torch_files import read_plain

HEAD = ("https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/"
        "6d122adad522ab246644d9dc1c6d7a3810ee255f/sa_0_4_vit_l_14_linear.pth",
        "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba")  # fmt: skip
"""LAION's aesthetic head (MIT) at a pinned commit, and its sha256."""
FLOW = "https://download.pytorch.org/models/raft_large_C_T_V1-22a6c225.pth", "22a6c225"
"""torchvision's port of RAFT's weights ``raft-things``, and the beginning of its sha256."""


def check_file(setting: str, file: str | None) -> None:
    """Check that a file that was named is there.

    Raises:
        InputError: it is not.
    """
    if file is not None and not Path(file).is_file():
        raise InputError(setting=setting, value=file, expected="there is no such file")


def published(setting: str, file: str | None, source: tuple[str, str]) -> str:
    """The file that a setting names, or else the published one, downloaded once.

    Args:
        source: address and sha256, or the beginning of it.

    Raises:
        InputError: it cannot be downloaded, or is another file now.
    """
    if file is not None:
        return file
    address, sha256 = source
    kept = cache_folder() / "weights" / address.rpartition("/")[2]
    if not kept.is_file() or not file_sha256(kept).startswith(sha256):
        _download(setting, address, kept, sha256)
    return str(kept)


def _download(setting: str, address: str, kept: Path, sha256: str) -> None:
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(kept), hash_prefix=sha256, progress=False)
    except (OSError, RuntimeError) as error:
        raise InputError(
            setting=setting,
            expected=f"{kept.name} cannot be downloaded ({cause_of(error)}); on a machine with a "
            f"network run `curl -LO {address}`, and give that file as {{setting}}={kept.name}",
        ) from error


def filled(setting: str, model: torch.nn.Module, file: str) -> None:
    """Give a network the weights of a file that torch wrote; no code in it is run.

    Raises:
        InputError: the file cannot be read, or holds other weights.
    """
    try:
        tensors = read_plain(file)
        model.load_state_dict({name.removeprefix("module."): tensors[name] for name in tensors})
    except (*UNREADABLE, TypeError) as error:
        unread = f"it cannot be read: {cause_of(error)}"
        raise InputError(setting=setting, value=file, expected=unread) from error


def musiq() -> Any:
    """pyiqa's class.

    Raises:
        InputError: pyiqa is not installed.
    """
    try:
        return importlib.import_module("pyiqa.archs.musiq_arch").MUSIQ
    except ImportError as error:
        raise InputError(
            f"imaging_quality needs the package pyiqa ({cause_of(error)}), whose licence allows "
            "noncommercial use only: pip install pyiqa, or leave the dimension out"
        ) from error
