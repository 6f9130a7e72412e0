"""VideoAlign's CSV, also the format of VideoGen-RewardBench.

Columns: ``path_A, path_B, prompt``, a label ``A``, ``B`` or ``same`` under each of ``VQ``, ``MQ``,
``TA`` and, in the benchmark, ``Overall``; ``A_model, B_model, fps_A, num_frames_A, fps_B,
num_frames_B`` and others are kept. Sources: KwaiVGI/VideoAlign ``datasets/train/example.csv`` and
the card of KlingTeam/VideoGen-RewardBench.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from ipo_lightning.critics.people.annotations import OVERALL, Annotation
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.columns import choice, numbered, plain, text, video, with_overall
from ipo_lightning.storage.store import write_atomically
from ipo_lightning.storage.tables import Placed

NEEDED = frozenset({"path_A", "path_B", "prompt"})
DIMS = ("VQ", "MQ", "TA")
CLIPS = ("fps_A", "num_frames_A", "fps_B", "num_frames_B")
COLUMNS = ("path_A", "path_B", "A_model", "B_model", "prompt", *DIMS, OVERALL, *CLIPS)


def read(path: Path, rows: Sequence[Placed]) -> list[Annotation]:
    """The pairs of a table; without ``Overall`` it is the video that more dimensions prefer.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    found = []
    known = {*NEEDED, *DIMS, OVERALL}
    for number, (place, row) in enumerate(rows, 1):
        labels = {name: choice(row, name, place) for name in (*DIMS, OVERALL)}
        given = {name: value for name, value in labels.items() if value is not None}
        if not given:
            raise InputError(f"{place}: there is no label under {', '.join(labels)}")
        first, second = (video(row, name, place) for name in ("path_A", "path_B"))
        found.append(
            Annotation(
                pair_id=numbered(path, number),
                prompt=text(row, "prompt", place),
                path_A=first.path,
                path_B=second.path,
                video_A=first.sha256,
                video_B=second.sha256,
                labels=with_overall(given),
                source=path.name,
                extra=plain(row, known),
                place=place,
            )
        )
    return found


def write(path: Path, rows: Iterable[Annotation]) -> None:
    """Write a table that VideoAlign's training and benchmark scripts read, atomically."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for one in rows:
        writer.writerow({**one.extra, "path_A": one.path_A, "path_B": one.path_B, **one.row()})
    write_atomically(path, buffer.getvalue().encode())
