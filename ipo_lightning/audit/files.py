"""An audit's files: the findings, one row a pair, and TensorBoard's log."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ipo_lightning.audit.asking import Answer, Shelf
from ipo_lightning.audit.findings import Table, number
from ipo_lightning.audit.page import FINDINGS, PAIRS
from ipo_lightning.audit.votes import Compared
from ipo_lightning.critics.people.annotations import OVERALL
from ipo_lightning.decoding.differences import sha256_of
from ipo_lightning.storage.store import write_atomically, write_jsonl


def write_findings(folder: Path, found: Mapping[str, Any], table: Table, shelf: Shelf) -> None:
    """Write ``audit.json`` and ``pairs.jsonl``."""
    names = shelf.place(file for pair in table.pairs for file in (pair.first, pair.second))
    write_jsonl(folder / PAIRS, (
        {**_pair_row(pair, names), **_answer_row(answer), "calibration": bool(calibrating)}
        for pair, answer, calibrating in zip(
            table.pairs, table.answers, table.calibrating.tolist(), strict=True)
    ))  # fmt: skip
    write_atomically(folder / FINDINGS, json.dumps(found, indent=1, allow_nan=False).encode())


def _pair_row(pair: Compared, names: Mapping[Path, str]) -> dict[str, Any]:
    values = [vote.value for vote in pair.votes[OVERALL]]
    return {
        "prompt": pair.prompt,
        "first_video": sha256_of(names[pair.first]), "first_file": str(pair.first.resolve()),
        "second_video": sha256_of(names[pair.second]), "second_file": str(pair.second.resolve()),
        "people": {"first": values.count(1), "tie": values.count(0), "second": values.count(-1)},
    }  # fmt: skip


def _answer_row(answer: Answer) -> dict[str, Any]:
    row = answer._asdict()
    numbers = {name: number(value) for name, value in row.items() if isinstance(value, float)}
    return {**row, **numbers, "dims": dict(answer.dims)}


def log_to_tensorboard(folder: Path, found: Mapping[str, Any], tables: str) -> None:
    """Scalars, and the tables and the verdict as text; those of an earlier audit are replaced."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        for name, value in scalars(found):
            writer.add_scalar(name, value, 0)
        indented = "\n".join(f"    {row}" for row in [*tables.splitlines(), "", found["use"]])
        writer.add_text("audit", "\n\n".join([*found["sentences"], indented]), 0)


def scalars(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Each number of the findings by its path; of an estimate its value."""
    if "value" in found and "low" in found:
        if found["value"] is not None:
            yield prefix, float(found["value"])
        return
    for key, value in found.items():
        name = f"{prefix}/{key}".lstrip("/").replace(" ", "_")
        if isinstance(value, Mapping):
            yield from scalars(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)
