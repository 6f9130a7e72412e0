"""Finds the videos of preference data: in a folder by path, or in a store by their sha256."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ipo_lightning.critics.people.annotations import Annotation
from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import Store


class Named(NamedTuple):
    """A video as a row names it."""

    path: str
    """Relative to the folder of videos; "" where only the hash is known."""
    sha256: str = ""
    """Of the file; "" where it is unknown."""


def videos_of(row: Annotation) -> tuple[Named, Named]:
    """The two videos of a row."""
    return Named(row.path_A, row.video_A), Named(row.path_B, row.video_B)


@dataclass(frozen=True)
class Finder:
    """Finds videos by their paths, or, where there is no such file, by their sha256.

    Answers from the annotation page have hashes only.

    Args:
        folder: the folder that paths are relative to.
        store: the store with the videos of runs; None: only the folder is searched.
    """

    folder: Path
    store: Store | None = None

    def place(self, video: Named) -> Path:
        """The place of a video, whether or not it is there."""
        place = video_place(self.folder, video.path)
        if self.store is None or not video.sha256 or (video.path and os.path.isfile(place)):
            return place
        stored = self.store.path("videos", video.sha256, ".mp4")
        return place if video.path and not os.path.isfile(stored) else stored

    def file(self, video: Named, where: str) -> Path:
        """The file of a video.

        Args:
            where: file and line of the row, for the message.

        Raises:
            InputError: it is not there.
        """
        place = self.place(video)
        if not os.path.isfile(place):
            raise InputError(f"{where}: {self.lack(video)}")
        return place

    def lack(self, video: Named) -> str:
        """The message about a video that is not there."""
        if video.path or not video.sha256:
            return (
                f"there is no video {video.path or '(the row names no file)'} in {self.folder}; "
                "videos must be in this folder, or linked into it"
            )
        searched = "no store was searched" if self.store is None else (
            f"it is not in the store {self.store.root}"
        )  # fmt: skip
        return (
            f"the video of sha256 {video.sha256} has no path, and {searched}; give paths.store=DIR "
            "of the run that made it, or add path_A and path_B to the rows"
        )


def video_file(folder: Path, path: str) -> Path:
    """The file of a video, see `video_place`.

    Raises:
        InputError: it is not there.
    """
    return Finder(folder).file(Named(path), str(folder))


def video_place(folder: Path, path: str) -> Path:
    """The place of a video in a folder: at its path, or by its file name directly in the folder.

    Of a path that leads out of the folder only the file name counts: a table must not choose other
    files of this machine.
    """
    place, moved = folder / path, folder / Path(path).name
    inside = Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder))
    there, elsewhere = os.path.isfile(place), os.path.isfile(moved)  # False of names too long
    return place if inside and (there or not elsewhere) else moved
