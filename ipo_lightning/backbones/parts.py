"""A diffusers pipeline on disk or on a hub, read part by part."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import folder_fingerprint


class PipelineParts:
    """Reads parts of a pipeline when they are asked for, and model_index.json before the first.

    Args:
        path: a diffusers folder, or a hub id, which is read from the local cache or the network.
        revision: of the hub id; None for a folder.
        pipeline_class: the class of diffusers that the pipeline should be.
        check_index: refuses the model_index.json of another pipeline with `InputError`.

    Raises:
        InputError: ``path`` is neither; and from each method: the part cannot be read.
    """

    def __init__(
        self,
        path: str,
        revision: str | None,
        pipeline_class: Any,
        check_index: Callable[[dict[str, Any]], None],
    ) -> None:
        check_path(path)
        self.path, self.revision = path, revision
        self._pipeline_class, self._check_index = pipeline_class, check_index

    @cached_property
    def index(self) -> dict[str, Any]:
        """The content of model_index.json."""
        with named(self.path):
            index = dict(self._pipeline_class.load_config(self.path, revision=self.revision))
        self._check_index(index)
        return index

    @cached_property
    def content(self) -> list[str]:
        """What the pipeline is known by: a hash of the folder, or the hub id and its commit."""
        if Path(self.path).is_dir():
            return [folder_fingerprint(self.path)]
        with named(self.path):
            index = hf_hub_download(self.path, "model_index.json", revision=self.revision)
        return [self.path, Path(index).parent.name]

    def config(self, kind: Any, part: str) -> dict[str, Any]:
        """The config of a part, such as ``transformer``, of a class of diffusers."""
        where = self._where(part)
        with named(self.path):
            return dict(kind.load_config(**where))

    def load(self, kind: Any, part: str, **settings: Any) -> Any:
        """A part, of a class of diffusers or transformers; settings go to ``from_pretrained``."""
        where = self._where(part)
        with named(self.path):
            return kind.from_pretrained(**where, **settings)

    def _where(self, part: str) -> dict[str, Any]:
        _ = self.index  # refuses other pipelines before any of their parts is read
        return {
            "pretrained_model_name_or_path": self.path,
            "subfolder": part,
            "revision": self.revision,
        }


@contextmanager
def named(path: str) -> Iterator[None]:
    """Name the pipeline in the message where its files cannot be read, as by a wrong hub id."""
    try:
        yield
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"backbone.path={path} cannot be read: {reason} (a folder is read from disk; a hub id "
            "needs the network, or a copy in the local cache)"
        ) from error


def check_path(path: str) -> None:
    """Refuse what is neither a diffusers folder nor looks like ``owner/name`` on a hub."""
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"backbone.path={path}: no model_index.json there; give the folder of a diffusers "
                "pipeline or a hub id"
            )
    elif path.count("/") != 1 or path.startswith((".", "~", "/")) or folder.parent.is_dir():
        raise InputError(f"backbone.path={path}: there is no such folder, nor is it a hub id")
