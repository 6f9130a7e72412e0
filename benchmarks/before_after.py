"""Draw the same prompts and noise before and after a run, as one contact sheet.

python benchmarks/before_after.py outputs/NAME --out docs/images/before_after.png

Nothing is picked by hand: it is the first video of evenly spaced evaluation prompts, in round 0
(the base model) and in each of the rounds asked for.
"""

import argparse
from pathlib import Path

from ipo_lightning.evaluation import paired
from ipo_lightning.report import find_videos
from ipo_lightning.rounds.closing import evaluated
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.video import contact_sheet, read_video, spread


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--rounds", type=int, nargs="*", help="default: the base and the last")
    parser.add_argument("--scale", type=int, default=3)
    options = parser.parse_args()
    run, find = RunDir(options.run), find_videos(options.run)
    rounds = options.rounds or [0, run.lines()[-1]["round"]]
    tables = [evaluated(run.round(number)) for number in rounds]
    columns = [paired(tables[0], rows) for rows in tables]
    firsts = [place for place, row in enumerate(tables[0]) if row.candidate == 0]
    frames, labels = [], []
    for place in (firsts[i] for i in spread(len(firsts), options.prompts)):
        for number, rows in zip(rounds, columns, strict=True):
            row = rows[place]
            frames.append(read_video(find(row.video)).frames)
            labels.append(f"{row.prompt}: {f'round {number}' if number else 'base'}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(frames, labels, options.scale).save(options.out)


if __name__ == "__main__":
    main()
