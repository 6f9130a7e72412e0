"""What is found in a file's place: a folder, a link to nowhere, a pickle with code."""

import io
from pathlib import Path
from typing import Any

import torch


def folder(file: Path) -> None:
    """A folder where the file was."""
    file.unlink()
    file.mkdir()


def dead_link(file: Path) -> None:
    """A link to nowhere where the file was."""
    file.unlink()
    file.symlink_to(file.parent / "nowhere")


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("open('owned', 'w')",)


def saved(content: Any) -> bytes:
    """What torch writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()
