"""Results of the official VBench suite: read from its files, and made into its three scores."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ipo_lightning.errors import InputError
from ipo_lightning.storage.texts import read_text
from ipo_lightning.vbench.scores import (
    DIMENSIONS,
    QUALITY,
    SEMANTIC,
    Totals,
    scaled,
    totals,
    weighted_mean,
)

RESULTS = "*_eval_results.json"
"""Files that VBench writes, one for each run of it, with some dimensions each."""


def read_results(paths: Sequence[Path]) -> dict[str, float]:
    """The dimensions' values in VBench's result files, in [0, 1], in the order of its tables.

    Args:
        paths: files, or folders with `RESULTS`. A dimension's value is a number, or VBench's list
            of the number and the videos' values.

    Raises:
        InputError: a file is of another kind, or two disagree about a dimension.
    """
    found: dict[str, tuple[float, Path]] = {}
    for file in files_of(paths):
        for name, value in _values(file).items():
            other, where = found.setdefault(name, (value, file))
            if other != value:
                raise InputError(f"{name} is {other} in {where} and {value} in {file}: give the "
                                 "results of one evaluation")  # fmt: skip
    return {name: found[name][0] for name in DIMENSIONS if name in found}


def files_of(paths: Sequence[Path]) -> list[Path]:
    """The files among paths, and the result files of the folders.

    Raises:
        InputError: a folder has none.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.rglob(RESULTS)) if path.is_dir() else [path]
        if not found:
            raise InputError(f"{path}: no {RESULTS} in this folder")
        files += found
    return files


def _values(file: Path) -> dict[str, float]:
    try:
        content = json.loads(read_text(file))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f'{file}: expected VBench\'s results, {{"DIMENSION": [VALUE, ...], ...}}')
    return {_name(file, key): _value(file, key, value) for key, value in content.items()}


def _name(file: Path, key: str) -> str:
    name = key.lower().replace(" ", "_")
    if name not in DIMENSIONS:
        raise InputError(f"{file}: {key} is no dimension of VBench; they are "
                         f"{', '.join(DIMENSIONS)}")  # fmt: skip
    return name


def _value(file: Path, key: str, value: Any) -> float:
    plain = value[0] if isinstance(value, list) and value else value
    if not isinstance(plain, int | float) or not 0 <= plain <= 1:
        raise InputError(f"{file}: {key} is {str(plain)[:40]}; expected a number from 0 to 1, as "
                         "VBench writes it (its tables show percent)")  # fmt: skip
    return float(plain)


def scores_of(values: Mapping[str, float]) -> Totals | None:
    """VBench's three scores; None where a dimension is missing."""
    return totals(values) if len(values) == len(DIMENSIONS) else None


def rows_of(values: Mapping[str, float]) -> list[dict[str, str]]:
    """A table's rows: each dimension's value, and its part on the common scale, in percent."""
    return [
        {
            "dimension": name,
            "value": f"{100 * value:.2f}",
            "scaled": f"{100 * scaled(name, value):.2f}",
            "weight": f"{DIMENSIONS[name].weight:g}",
        }
        for name, value in values.items()
    ]


def summary_of(values: Mapping[str, float]) -> str:
    """The scores in a sentence; of some dimensions, that there is no total."""
    scores = scores_of(values)
    if scores is not None:
        quality, semantic, total = (100 * one for one in scores)
        return f"quality {quality:.2f}, semantic {semantic:.2f}, total {total:.2f}"
    missing = [name for name in DIMENSIONS if name not in values]
    lines = [f"no total: {len(missing)} of {len(DIMENSIONS)} dimensions are missing: "
             f"{', '.join(missing)}"]  # fmt: skip
    for group, known in {"quality": QUALITY, "semantic": SEMANTIC}.items():
        there = [name for name in known if name in values]
        if there:
            mean = 100 * weighted_mean(values, known)
            kind = "score" if len(there) == len(known) else "partial mean, none of VBench's scores"
            lines.append(f"{group} {mean:.2f} ({kind}: {len(there)} of {len(known)} dimensions)")
    return "\n".join(lines)
