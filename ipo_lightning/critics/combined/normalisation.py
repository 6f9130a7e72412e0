"""Means and standard deviations of different critics' scores, which make them comparable.

They are fitted to the verdicts of runs with one critic each; the runs share their videos through
the store::

    python -m ipo_lightning.critics.combined.normalisation scales.json \\
      clip=outputs/clip/round_1/verdicts.jsonl gauges=outputs/gauges/round_1/verdicts.jsonl

A **part** is a number of a critic's rating: ``clip`` is its score, ``clip.text`` one of its
dimensions.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

from ipo_lightning.errors import InputError, pipe_may_close
from ipo_lightning.storage.store import read_jsonl, write_atomically


class Scale(NamedTuple):
    """Mean and standard deviation of a part, over the videos that it was fitted to."""

    mean: float
    std: float


class Normalisation(NamedTuple):
    """The content of a normalisation file."""

    scales: dict[str, Scale]
    """By part."""
    identities: dict[str, str]
    """Member -> identity of the critic that it was fitted to."""


def read_normalisation(file: str) -> Normalisation:
    """A file that `fit_normalisation` made.

    Raises:
        InputError: it is another kind of file.
    """
    try:
        plain = json.loads(Path(file).read_text())
        members: dict[str, Any] = plain["members"]
        scales = {
            part: Scale(float(mean), float(std))
            for member in members.values()
            for part, (mean, std) in member["parts"].items()
        }
        identities = {name: str(member["identity"]) for name, member in members.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            setting="normalisation",
            value=file,
            expected=f"it is not a file of means and deviations: {error}; make one with "
            "python -m ipo_lightning.critics.combined.normalisation",
        ) from error
    wrong = [part for part, one in scales.items() if not (one.std > 0 and math.isfinite(one.mean))]
    if wrong:
        flat = f"{wrong[0]} has no deviation above 0; fit a new file"
        raise InputError(setting="normalisation", value=file, expected=flat)
    return Normalisation(scales, identities)


def parts_of(member: str, score: float | None, dims: Mapping[str, float]) -> dict[str, float]:
    """A member's parts by name, without those that are not finite."""
    named = {member: score} | {f"{member}.{dim}": value for dim, value in dims.items()}
    return {name: v for name, v in named.items() if v is not None and math.isfinite(v)}


def fit_normalisation(files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Means and standard deviations of critics' parts, with the critics' identities.

    Args:
        files: member -> its ``verdicts.jsonl`` files, all of one critic.

    Raises:
        InputError: the verdicts are of several critics, too few, or all the same.
    """
    return {
        "made": datetime.now(UTC).date().isoformat(),
        "members": {name: fitted(name, paths) for name, paths in sorted(files.items())},
    }


def fitted(member: str, paths: Sequence[Path]) -> dict[str, Any]:
    """A member's part of a normalisation file."""
    rows = [row for path in paths for row in verdict_rows(path)]
    identities = sorted({str(row["critic"]) for row in rows})
    if len(identities) != 1:
        raise InputError(f"{member}: verdicts of {len(identities)} critics ({', '.join(identities)}"
                         "); give files of one critic")  # fmt: skip
    columns: dict[str, list[float]] = {}
    for row in rows:
        if row["score"] is not None:
            for part, value in parts_of(member, row["score"], row.get("dims") or {}).items():
                columns.setdefault(part, []).append(value)
    scales = {part: [fmean(values), pstdev(values)] for part, values in sorted(columns.items())}
    if scales.get(member, [0, 0])[1] == 0:
        count = len(columns.get(member, []))
        raise InputError(
            f"{member}: {count} scores, all equal, have no deviation; give more verdicts"
        )
    return {
        "identity": identities[0],
        "videos": len(rows),
        "without_verdict": len(rows) - len(columns[member]),
        "files": [str(path) for path in paths],
        "parts": {part: scale for part, scale in scales.items() if scale[1] > 0},
    }


def verdict_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``verdicts.jsonl`` of scores."""
    try:
        rows = read_jsonl(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not all("score" in row and "critic" in row for row in rows):
        raise InputError(f"{path} has no scores; give verdicts.jsonl of a critic that rates")
    return rows


def main(arguments: Sequence[str]) -> str:
    """Fit a normalisation; see the module.

    Args:
        arguments: the file to write, then ``member=FILE`` once or more a member.

    Returns:
        What was done, for the terminal.
    """
    usage = (
        "python -m ipo_lightning.critics.combined.normalisation OUT.json MEMBER=VERDICTS.jsonl ..."
    )
    files: dict[str, list[Path]] = {}
    for argument in arguments[1:]:
        name, equals, path = argument.partition("=")
        if not name or not equals or not path:
            raise InputError(f"{argument}: give {usage}")
        files.setdefault(name, []).append(Path(path))
    if not files:
        raise InputError(f"give {usage}")
    made = fit_normalisation(files)
    write_atomically(Path(arguments[0]), json.dumps(made, indent=2).encode() + b"\n")
    lines = [f"{name}: {one['videos']} videos, {', '.join(one['parts'])}"
             for name, one in made["members"].items()]  # fmt: skip
    return "\n".join([*lines, f"written: {arguments[0]}"])


if __name__ == "__main__":
    try:
        with pipe_may_close():
            sys.stdout.write(main(sys.argv[1:]) + "\n")
    except InputError as error:
        sys.exit(str(error))
