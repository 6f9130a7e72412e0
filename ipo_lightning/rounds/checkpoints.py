"""Lightning's checkpoints of a run: written whole, the newest of each round kept."""

import os
import warnings
import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from typing_extensions import override

from ipo_lightning.errors import InputError, readable
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import remove, sync


class Checkpoints:
    """The checkpoints of a run, by round and optimizer steps."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    def save(self, trainer: L.Trainer, number: int, optimizer_steps: int) -> None:
        """Write one under a temporary name and rename it, then remove the round's older ones.

        Args:
            number: the round. optimizer_steps: how many of it are done.
        """
        folder = self.run.round(number).checkpoints
        path = folder / f"update-{optimizer_steps:06d}.ckpt"
        temporary = folder / f".{path.name}"
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            sync(temporary)
            remove(path)
            os.replace(temporary, path)
            for old in folder.glob("*.ckpt"):
                if old != path:
                    remove(old)
        trainer.strategy.barrier()

    def newest(self, up_to: int) -> Path | None:
        """The checkpoint that got furthest in rounds 1 .. ``up_to``; damaged ones are removed."""
        for number in range(up_to, 0, -1):
            folder = self.run.round(number).checkpoints
            for found in sorted(folder.glob("update-*.ckpt"), reverse=True):
                if is_whole(found):
                    return found
                warnings.warn(
                    f"{found} is damaged; it is removed and the run goes on from the checkpoint "
                    "before it", stacklevel=2,
                )  # fmt: skip
                found.unlink(missing_ok=True)
        return None


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint can be read to its end; sharded ones are folders and left to torch."""
    if checkpoint.is_dir():
        return True
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints of one file: streamed to where they belong, read into CPU memory.

    Lightning's own goes through memory and the folder for temporary files, both of which may be too
    small for it. It reads by a ``map_location`` that is a function, which torch refuses for tensor
    subclasses such as torchao's moments in 8 bits.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        place = Path(path)
        temporary = place.with_name(f".{place.name}.{uuid4().hex}")
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(checkpoint, temporary)
            sync(temporary)
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        try:
            with readable(Path(path)):
                return super().load_checkpoint(path, map_location, weights_only)
        except InputError as error:
            again = "remove it: the training goes on from an earlier checkpoint, or starts anew"
            raise InputError(f"{error}; {again}") from error
