"""Evaluation videos in TensorBoard, so that a run can be watched and not only measured."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.report import find_videos, thumbnail
from ipo_lightning.settings import Count, checked
from ipo_lightning.storage.store import read_jsonl
from ipo_lightning.video import Clip, contact_sheet, fitting_scale, gif, read_video, spread


class Shown(NamedTuple):
    """One evaluation prompt with the base's video and this round's, of the same seed."""

    prompt: str
    base: Clip | None  # None in round 0 itself, and where round 0 was not evaluated
    clip: Clip


@checked
class VideoLogger(L.Callback):
    """Logs a few evaluation videos of each finished round, and the base's beside them.

    The iteration callback calls :meth:`on_round_end`, since Lightning knows no rounds. Prompts are
    spaced evenly over the evaluation set and stay the same in every round.

    Args:
        n: prompts shown of a round.
        videos: finds an mp4 by its name (sha256); by default in the run's own store.
    """

    def __init__(self, n: Count = 4, videos: Callable[[str], Path] | None = None) -> None:
        self.n, self.videos = n, videos

    def on_round_end(self, trainer: L.Trainer, round_number: int, round_dir: Path) -> None:
        """Write the round's videos at the trainer's global step; rank zero only."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                self._log(logger, trainer.global_step, round_number, Path(round_dir))

    def _log(self, logger: TensorBoardLogger, step: int, number: int, round_dir: Path) -> None:
        try:
            shown = list(self._shown(round_dir))
        except InputError:  # a log is no reason to end a run
            return
        if not shown:
            return
        for i, one in enumerate(shown):
            add_picture(logger, f"videos/{i}: {one.prompt}", gif_image(one.clip), step)
        rows, labels = sheet_rows(shown, number)
        sheet = contact_sheet(rows, labels)
        add_picture(logger, "videos/base and policy", png_image(sheet), step)
        logger.experiment.flush()

    def _shown(self, round_dir: Path) -> Iterator[Shown]:
        """The chosen prompts; one whose video cannot be read is left out."""
        rows = evaluated(round_dir)
        base_dir = round_dir.parent / "round_0"
        base = {} if round_dir == base_dir else evaluated(base_dir)
        places = first_places(rows)
        for place in (places[i] for i in spread(len(places), self.n)):
            clip = self._read(round_dir, rows[place])
            if clip is not None:
                before = self._read(round_dir, base[place]) if place in base else None
                yield Shown(str(rows[place]["prompt"]), before, clip)

    def _read(self, round_dir: Path, row: dict[str, Any]) -> Clip | None:
        """A video at a size fit for a log, or None: a log is no reason to end a run."""
        find = self.videos or find_videos(round_dir.parent)
        try:
            return thumbnail(read_video(find(str(row["video"]))))
        except InputError:
            return None


Place = tuple[Any, ...]  # prompt's index, prompt, candidate, seed: what pairs two videos


def evaluated(round_dir: Path) -> dict[Place, dict[str, Any]]:
    """A round's evaluation rows by place, in their order; none where there is no file."""
    path = round_dir / "evaluation.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    names = ("prompt_index", "prompt", "candidate", "seed")
    return {tuple(row.get(name) for name in names): row for row in rows}


def first_places(rows: dict[Place, dict[str, Any]]) -> list[Place]:
    """The first video of every prompt."""
    firsts: dict[Any, Place] = {}
    for place in rows:
        firsts.setdefault(place[0], place)
    return list(firsts.values())


def sheet_rows(shown: list[Shown], number: int) -> tuple[list[Tensor], list[str]]:
    """Videos and captions of the contact sheet: for each prompt the base, then this round."""
    rows, labels = [], []
    for one in shown:
        if one.base is not None:
            rows.append(one.base.frames)
            labels.append(f"base: {one.prompt}")
        rows.append(one.clip.frames)
        labels.append(f"round {number}: {one.prompt}")
    return rows, labels


def gif_image(clip: Clip) -> Summary.Image:
    """A clip as TensorBoard's image: it shows the bytes as they are, hence moving."""
    height, width = clip.frames.shape[1:3]
    scale = fitting_scale(height)
    content = gif(clip.frames, clip.fps, scale)
    return Summary.Image(
        height=height * scale, width=width * scale, colorspace=3, encoded_image_string=content
    )


def add_picture(logger: TensorBoardLogger, name: str, image: Summary.Image, step: int) -> None:
    """Write an encoded image; ``add_video`` would ask for moviepy."""
    summary = Summary(value=[Summary.Value(tag=name, image=image)])
    logger.experiment._get_file_writer().add_summary(summary, step)


def png_image(picture: Image.Image) -> Summary.Image:
    """A still picture as TensorBoard's image."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return Summary.Image(
        height=picture.height,
        width=picture.width,
        colorspace=3,
        encoded_image_string=buffer.getvalue(),
    )
