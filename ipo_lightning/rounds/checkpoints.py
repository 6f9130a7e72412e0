"""Lightning's checkpoints of a run: written whole, the newest of each round kept."""

import errno
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from typing_extensions import override

from ipo_lightning.errors import InputError, cause_of, readable
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import remove, replaced_file, sync
from ipo_lightning.storage.torch_files import read_plain
from ipo_lightning.storage.writing import room_to_write


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
        with room_to_write(path):
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
        """The checkpoint that got furthest in rounds 1 .. ``up_to`` and is whole."""
        rounds = range(up_to, 0, -1)
        return next(filter(None, map(self.newest_of, rounds)), None)

    def newest_of(self, number: int) -> Path | None:
        """The checkpoint that got furthest in a round; a damaged one is passed over."""
        folder = self.run.round(number).checkpoints
        for found in sorted(folder.glob("update-*.ckpt"), reverse=True):
            if (fault := fault_of(found, number)) is None:
                return found
            warnings.warn(
                f"{found} is damaged ({fault}); the run goes on from the checkpoint before it",
                stacklevel=3,
            )
        return None


def fault_of(checkpoint: Path, number: int | None = None) -> str | None:
    """Why a training cannot go on from a checkpoint; None where it can.

    Of one that ranks wrote into a folder, only what torch finds it by is read here.

    Args:
        number: the round whose training it is; None: a critic's.

    Raises:
        InputError: it is whole, yet cannot be read here: by this version of torch, say, or at all.
    """
    sharded = checkpoint.is_dir()
    if fault := _missing_shards(checkpoint) if sharded else _damaged_zip(checkpoint):
        return fault
    with readable(checkpoint):
        plain = checkpoint / "meta.pt" if sharded else checkpoint
        content = read_plain(plain, mmap=not sharded)
        found = number if number is None else content["ipo_lightning"]["round"]
    return None if found == number else f"it is of round {found}"


def _damaged_zip(checkpoint: Path) -> str | None:
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            if any(one.external_attr for one in archive.infolist()):
                return "its directory is altered"  # torch leaves out what it takes for a folder
            odd = archive.testzip()
            return f"its {odd} is altered" if odd else None
    except (OSError, MemoryError) as error:
        if checkpoint.is_symlink() and not checkpoint.exists():
            return f"a link to {checkpoint.readlink()}, where nothing is"
        if isinstance(error, FileNotFoundError):
            return "it is gone"
        if getattr(error, "errno", None) != errno.EINVAL:  # which odd offsets lead to
            raise
        return cause_of(error)
    except Exception as error:  # of a damaged directory zipfile says it in many ways
        return cause_of(error)


def _missing_shards(folder: Path) -> str | None:
    names = (".metadata", "meta.pt")
    lost = [name for name in names if not (folder / name).is_file()]
    return f"a folder without {lost[0]}" if lost else None


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
        with replaced_file(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

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
