"""GenAI-Bench's ``video_generation``: votes of visitors on pairs.

Columns: ``prompt, left_model, left_video, right_model, right_video, vote_type`` with ``leftvote``,
``rightvote``, ``tievote`` or ``bothbad_vote``. Source: the card of TIGER-Lab/GenAI-Bench.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ipo_lightning.critics.people.annotations import OVERALL, Annotation, Choice
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.columns import numbered, plain, shown, text, video
from ipo_lightning.storage.tables import Placed

NEEDED = frozenset({"prompt", "left_video", "right_video", "vote_type"})
VOTES: Mapping[str, Choice] = {
    "leftvote": "A", "rightvote": "B", "tievote": "same", "bothbad_vote": "same"
}  # fmt: skip
"""Two bad videos are a tie, as in the benchmark itself; the row keeps the vote's name."""


def read(path: Path, rows: Sequence[Placed]) -> list[Annotation]:
    """The pairs of a table; the left video is A.

    Raises:
        InputError: names the row and what is wrong with it.
    """
    found = []
    for number, (place, row) in enumerate(rows, 1):
        vote = str(row.get("vote_type"))
        if vote not in VOTES:
            raise InputError(
                f"{place}: 'vote_type' must be one of {', '.join(VOTES)}, got {shown(vote)}"
            )
        first, second = (video(row, name, place) for name in ("left_video", "right_video"))
        found.append(
            Annotation(
                pair_id=numbered(path, number),
                prompt=text(row, "prompt", place),
                path_A=first.path,
                path_B=second.path,
                video_A=first.sha256,
                video_B=second.sha256,
                labels={OVERALL: VOTES[vote]},
                shown_left="A",
                source=path.name,
                extra=plain(row, {"prompt", "left_video", "right_video"}),
                place=place,
            )
        )
    return found
