"""Where the videos of preference data lie: in a folder by path, or in a store by their sha256."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ipo_lightning.critics.people.annotations import Annotation
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.names import before_upload, same_letters, spellings, tails
from ipo_lightning.exchange.points import VideoPoint
from ipo_lightning.storage.parquet import embedded_files
from ipo_lightning.storage.store import Store


class Named(NamedTuple):
    """A video as a row names it."""

    path: str
    """Relative to the folder of videos; empty where only the hash is known."""
    sha256: str = ""
    """Of the file; empty where it is not known."""


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
    """Finds videos by their paths, and those of which no file is there by their sha256.

    The annotation page knows no paths: what is downloaded from it has hashes alone.

    Args:
        folder: where paths start.
        store: what holds the videos of runs; None: there is no other place than the folder.
    """

    folder: Path
    store: Store | None = None

    def place(self, video: Named) -> Path:
        """Where a video is, or should be."""
        place = video_place(self.folder, video.path)
        if self.store is None or not video.sha256 or (video.path and os.path.isfile(place)):
            return place
        stored = self.store.path("videos", video.sha256, ".mp4")
        return place if video.path and not os.path.isfile(stored) else stored

    def file(self, video: Named, where: str) -> Path:
        """The file of a video.

        Args:
            where: the row's place, for the message.

        Raises:
            InputError: there is none.
        """
        place = self.place(video)
        if not os.path.isfile(place):
            raise InputError(f"{where}: {self.lack(video)}")
        return place

    def lack(self, video: Named) -> str:
        """What to say of a video that is not there."""
        if video.path or not video.sha256:
            name = video.path[:200] or "(the row names no file)"
            return (
                f"there is no video {name} in {self.folder}; "
                "videos are looked for within this folder, to which a link may lead"
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
        InputError: there is none.
    """
    return Finder(folder).file(Named(path), str(folder))


def video_place(folder: Path, path: str) -> Path:
    """Where a video is, or should be: within the folder, or nearer to it where it was moved.

    A path that leads out of the folder stands for its last names alone: a file from elsewhere shall
    not choose which other files of this machine are read. Of the path's `spellings` and their
    `tails` the first counts that leads to a file.
    """
    known = list(spellings(path))
    ends = [tail for one in known for tail in tails(one)]
    for one in (*known, *ends):
        place = folder / one
        if _inside(folder, place) and os.path.isfile(place):  # False of names too long
            return place
    found = next(filter(None, (same_letters(folder, tail) for tail in ends)), None)
    literal = folder / path if _inside(folder, folder / path) else folder / Path(path).name
    return found or before_upload(folder, path) or literal


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
