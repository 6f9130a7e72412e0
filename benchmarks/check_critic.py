"""Whether a critic gives the figures that it ought to, with its real weights.

python benchmarks/check_critic.py --critic videoreward --videos videos.csv --device cuda
python benchmarks/check_critic.py --critic videoreward --videos videos.csv critic.dtype=float32

The table has a row a video: ``path`` (relative to the table) and ``prompt``; and, where upstream's
own code gave figures for it, columns of the critic's dimensions (VQ, MQ, TA), and ``score`` or
``Overall``. Prints what the critic says beside them; the exit status is 1 if a figure is further
off than ``--tolerance``. Without such columns it prints alone.
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hydra import compose, initialize_config_dir  # noqa: E402

from app.assembly import build  # noqa: E402
from app.entry import CONF, register_resolvers  # noqa: E402
from ipo_lightning.critics.protocols import Rating, kind_of  # noqa: E402
from ipo_lightning.errors import InputError  # noqa: E402
from ipo_lightning.video import read_video  # noqa: E402

SCORE = ("score", "Overall")
"""Names of the column of whole scores."""


class Row(NamedTuple):
    """A video, and what upstream says of it."""

    path: Path
    prompt: str
    expected: Mapping[str, float]


def read_rows(table: Path) -> list[Row]:
    """The rows of a CSV table; see the top of this file."""
    with open(table, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if not lines or not {"path", "prompt"} <= lines[0].keys():
        raise InputError(f"{table}: give a row a video with the columns path and prompt")
    return [
        Row(table.parent / line["path"], line["prompt"], dict(_numbers(line))) for line in lines
    ]


def _numbers(line: Mapping[str, str | None]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        try:
            yield ("score" if name in SCORE else name), float(value or "")
        except ValueError:
            continue  # words, or nothing


def said(rating: Rating) -> dict[str, float]:
    """A rating as a row of figures."""
    whole = {} if rating.score is None else {"score": rating.score}
    return {**rating.dims, **whole}


def compare(rows: list[Row], ratings: list[Rating]) -> float | None:
    """Print both; the largest difference, or None where there is nothing to compare with.

    A video without a verdict is infinitely far from its figures.
    """
    differences = []
    for row, rating in zip(rows, ratings, strict=True):
        print(row.path.name, f"({rating.fault})" if rating.fault else "")
        figures = said(rating) or dict.fromkeys(row.expected, float("inf"))
        for name, found in figures.items():
            wanted = row.expected.get(name)
            if wanted is None:
                print(f"  {name:>12} {found:9.4f}")
                continue
            differences.append(abs(found - wanted))
            print(f"  {name:>12} {found:9.4f}   expected {wanted:9.4f}   off {found - wanted:+.4f}")
    return max(differences, default=None)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--critic", required=True, help="a file of conf/critic")
    parser.add_argument("--videos", required=True, type=Path, help="the table, as CSV")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tolerance", type=float, default=0.05, help="of each figure")
    options, settings = parser.parse_known_args()
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"critic={options.critic}", *settings])
    critic = build(cfg.critic, "critic")
    if kind_of(critic) != "rates":
        raise InputError(f"--critic {options.critic} compares videos; give one that rates them")
    rows = read_rows(options.videos)
    critic.load(options.device)
    print(critic.identity)
    ratings = critic.rate([read_video(row.path) for row in rows], [row.prompt for row in rows])
    critic.release()
    worst = compare(rows, ratings)
    if worst is None:
        print("no figures to compare with")
        return 0
    print(f"largest difference {worst:.4f}; {options.tolerance:g} is let pass")
    return int(worst > options.tolerance)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(str(error))
