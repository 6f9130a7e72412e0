"""Evaluation videos in the loggers, so that a run can be watched and not only measured."""

import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.report import find_videos, thumbnail
from ipo_lightning.report.pairing import Draw, draw
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
        self.told: set[str] = set()
        """Kinds of loggers that were said to take no videos."""

    def on_round_end(self, trainer: L.Trainer, round_number: int, round_dir: Path) -> None:
        """Write the round's videos at the trainer's global step; rank zero only."""
        if not trainer.is_global_zero:
            return
        takers = [(logger, writer_of(logger)) for logger in trainer.loggers]
        for kind in {type(logger).__name__ for logger, writer in takers if writer is None}:
            self._say_once(kind)
        if not any(write for _, write in takers):
            return
        try:
            shown = list(self._shown(Path(round_dir)))
        except InputError:  # a log is no reason to end a run
            return
        if shown:
            pictures = pictures_of(shown, round_number)
            for logger, write in takers:
                if write is not None:
                    write(logger, pictures, trainer.global_step)

    def _say_once(self, kind: str) -> None:
        if kind not in self.told:
            self.told.add(kind)
            warnings.warn(f"{kind} takes no videos; the report shows them", stacklevel=3)

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


def evaluated(round_dir: Path) -> dict[Draw, dict[str, Any]]:
    """A round's evaluation rows by draw, in their order; none where there is no file."""
    path = round_dir / "evaluation.jsonl"
    rows = read_jsonl(path) if path.exists() else []
    return {draw(row): row for row in rows}


def first_places(rows: dict[Draw, dict[str, Any]]) -> list[Draw]:
    """The first video of every prompt."""
    firsts: dict[Any, Draw] = {}
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


class Picture(NamedTuple):
    """An encoded image, moving or still."""

    name: str
    content: bytes
    format: str
    """``gif`` or ``png``."""
    size: tuple[int, int]
    """Height and width in pixels."""
    fps: float | None = None
    caption: str = ""


def pictures_of(shown: list[Shown], number: int) -> list[Picture]:
    """A moving picture for each prompt, and a contact sheet of the base and this round."""
    moving = [gif_of(one, f"videos/{i}: {one.prompt}") for i, one in enumerate(shown)]
    sheet = contact_sheet(*sheet_rows(shown, number))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    size = sheet.height, sheet.width
    return [*moving, Picture("videos/base and policy", buffer.getvalue(), "png", size)]


def gif_of(shown: Shown, name: str) -> Picture:
    """A clip of this round as a GIF; tiny ones are enlarged."""
    frames, fps = shown.clip
    height, width = frames.shape[1:3]
    scale = fitting_scale(height)
    size = height * scale, width * scale
    return Picture(name, gif(frames, fps, scale), "gif", size, fps, shown.prompt)


# -------------------------------------------------------------------- loggers


Writer = Callable[[Any, list[Picture], int], None]


def writer_of(logger: Logger) -> Writer | None:
    """How a logger takes pictures; None of one that takes none."""
    if isinstance(logger, TensorBoardLogger):
        return to_tensorboard
    if isinstance(logger, MLFlowLogger):
        return to_mlflow
    return to_wandb if hasattr(logger, "log_video") else None


def to_tensorboard(logger: TensorBoardLogger, pictures: list[Picture], step: int) -> None:
    """As images, whose bytes it shows as they are, hence moving; add_video asks for moviepy."""
    writer = logger.experiment._get_file_writer()
    for one in pictures:
        height, width = one.size
        image = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=one.content
        )
        writer.add_summary(Summary(value=[Summary.Value(tag=one.name, image=image)]), step)
    logger.experiment.flush()


def to_wandb(logger: Any, pictures: list[Picture], step: int) -> None:
    """Of Weights & Biases, and of loggers with its ``log_video`` and ``log_image``."""
    for i, one in enumerate(pictures):
        if one.format == "gif":  # W&B makes a panel of each key, and a prompt may be long
            video = [io.BytesIO(one.content)]
            logger.log_video(f"videos/{i}", video, step, format=["gif"], caption=[one.caption])
        else:
            logger.log_image(one.name, [Image.open(io.BytesIO(one.content))], step)


def to_mlflow(logger: MLFlowLogger, pictures: list[Picture], step: int) -> None:
    """As artifacts of the run, in a folder a step."""
    with tempfile.TemporaryDirectory() as folder:
        for i, one in enumerate(pictures):
            Path(folder, f"{i}.{one.format}").write_bytes(one.content)
        logger.experiment.log_artifacts(logger.run_id, folder, f"videos/step_{step}")
