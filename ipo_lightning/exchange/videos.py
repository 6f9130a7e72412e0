"""Finds the videos of preference data: in a folder by path, or in a store by their sha256."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ipo_lightning.critics.people.annotations import Annotation
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.names import alike, ambiguity, spellings, tails
from ipo_lightning.exchange.points import VideoPoint
from ipo_lightning.storage.parquet import embedded_files
from ipo_lightning.storage.store import Store


class Named(NamedTuple):
    """A video as a row names it."""

    path: str
    """Relative to the folder of videos; "" where only the hash is known."""
    sha256: str = ""
    """Of the file; "" where it is unknown."""


def videos_of(row: Annotation | VideoPoint) -> tuple[Named, ...]:
    """The two videos of a pair, or the one of a point."""
    if isinstance(row, VideoPoint):
        return (video_of(row),)
    return Named(row.path_A, row.video_A), Named(row.path_B, row.video_B)


def video_of(point: VideoPoint) -> Named:
    """The video of a point."""
    return Named(point.path, point.sha256)


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
        """The place of a video, whether or not it is there.

        Raises:
            InputError: several files fit its path.
        """
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
            name = video.path[:200] or "(the row names no file)"
            return (
                f"there is no video {name} in {self.folder}; "
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
        InputError: it is not there, or several files fit.
    """
    return Finder(folder).file(Named(path), str(folder))


def video_place(folder: Path, path: str) -> Path:
    """The place of a video in a folder: at its path, or nearer to the folder if it was moved.

    Of a path that leads out of the folder only the last names count: a table must not choose other
    files of this machine. Of the path's `spellings` and their `tails` the first file counts.

    Raises:
        InputError: several files fit, and none letter by letter.
    """
    for one in (*spellings(path), *_ends(path)):
        place = folder / one
        if _inside(folder, place) and os.path.isfile(place):  # False of names too long
            return place
    found = alike(folder, _ends(path))
    if len(found) > 1:
        raise InputError(ambiguity(path, found))
    if found:
        return found[0]
    return folder / path if _inside(folder, folder / path) else folder / Path(path).name


def _ends(path: str) -> Iterator[str]:
    """What a path means in a folder that has moved."""
    return (end for one in spellings(path) for end in tails(one))


def _inside(folder: Path, place: Path) -> bool:
    return Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder))


def unpack(path: Path, videos: Iterable[Named], store: Store) -> None:
    """Put the videos that a parquet file holds into a store, where its rows find them by sha256.

    Raises:
        InputError: the file cannot be read.
    """
    if path.suffix.lower() != ".parquet":
        return
    names = {video.sha256 for video in videos if video.sha256 and not video.path}
    wanted = {name for name in names if not store.has_blob("videos", name, ".mp4")}
    if wanted:
        for sha256, content in embedded_files(path):
            if sha256 in wanted:
                store.put_blob("videos", content, ".mp4")
