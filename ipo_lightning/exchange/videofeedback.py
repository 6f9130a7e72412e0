"""VideoFeedback (VideoScore's data): videos rated by five dimensions from 1 to 4.

Columns: ``id, text prompt, video link``, a number under each of `DIMS`; ``images`` and
``conversations``, which repeat them for a language model, are left out. Source: the card of
TIGER-Lab/VideoFeedback.
"""

from collections.abc import Sequence
from pathlib import Path

from ipo_lightning.errors import InputError
from ipo_lightning.exchange.columns import number, shown, text, video
from ipo_lightning.exchange.points import VideoPoint, with_mean
from ipo_lightning.storage.tables import Placed

DIMS = ("visual quality", "temporal consistency", "dynamic degree", "text-to-video alignment",
        "factual consistency")  # fmt: skip
NEEDED = frozenset({"text prompt", "video link", *DIMS})
SCALE = (1, 4)


def read_points(path: Path, rows: Sequence[Placed]) -> list[VideoPoint]:
    """The rated videos; the overall score is the mean of the five.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    found = []
    for place, row in rows:
        scores = {name: number(row, name, place) for name in DIMS}
        for name, score in scores.items():
            if not SCALE[0] <= score <= SCALE[1]:
                raise InputError(f"{place}: {name!r} must be from 1 to 4, got {shown(score)}")
        rated = video(row, "video link", place)
        found.append(
            VideoPoint(
                prompt=text(row, "text prompt", place),
                path=rated.path,
                sha256=rated.sha256,
                scores=with_mean(scores),
                source=path.stem,
                extra={"id": row["id"]} if row.get("id") else {},
                place=place,
            )
        )
    return found
