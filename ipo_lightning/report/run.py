"""A run's files, read for the page; a missing file has no rows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ipo_lightning.errors import InputError
from ipo_lightning.report.tables import Row
from ipo_lightning.storage.foreign_yaml import read_settings
from ipo_lightning.storage.layout import STAGES, RoundDir, RunDir, drafts_in
from ipo_lightning.storage.run_files import read_object
from ipo_lightning.storage.store import Store, canonical, read_jsonl, write_atomically


def find_videos(run_dir: Path) -> Callable[[str], Path]:
    """Name of an mp4 (sha256) -> its file, in the store of ``config.yaml`` or next to the run.

    The former may be relative to another working directory, or on another machine.
    """
    paths = read_config(RunDir(run_dir)).get("paths")
    configured = paths.get("store") if isinstance(paths, Mapping) else None
    known = isinstance(configured, str) and Path(configured).is_dir()
    store = Store(str(configured) if known else run_dir.parent / "store")
    return lambda name: store.path("videos", name, ".mp4")


def read_config(run: RunDir) -> Row:
    """The resolved settings of a run, none where the file is missing."""
    if not run.config_file.exists():
        return {}
    return read_settings(run.config_file, "restore it, or delete it to have a report without it")


class RoundFiles(NamedTuple):
    """The files of a round; a missing file has no rows."""

    number: int
    candidates: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    points: list[dict[str, Any]]
    evaluation: list[dict[str, Any]]
    choice: list[dict[str, Any]]
    labelling: Row
    missing: list[str]
    draft_verdicts: list[dict[str, Any]]


class Run(NamedTuple):
    """The files of a run."""

    name: str
    path: Path
    config: Row
    config_text: str
    lines: list[dict[str, Any]]
    rounds: list[RoundFiles]
    asked: "Asked"


class Asked(NamedTuple):
    """What the entry point wrote down of a run: its commands, and what is not at its default."""

    commands: tuple[str, ...] = ()
    settings: tuple[tuple[str, str, str], ...] | None = None
    """Setting, default, here; None: nobody wrote them down."""

    def write(self, run_dir: Path) -> None:
        """Write it where `read_asked` finds it."""
        write_atomically(run_dir / FOLDER / ASKED, canonical(self._asdict()) + b"\n")


FOLDER, ASKED = "report", "asked.json"
"""The folder of a run for what goes with its page, and the file in it of what was asked."""


def read_asked(run_dir: Path) -> Asked:
    """What was asked of a run; nothing where it was not written down, or is damaged."""
    try:
        found = read_object(run_dir / FOLDER / ASKED)
        rows = found["settings"]
        return Asked(
            tuple(map(str, found["commands"])),
            None if rows is None else tuple((str(a), str(b), str(c)) for a, b, c in rows),
        )
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return Asked()


def read_run(run_dir: Path) -> Run:
    """All that the page shows, except the videos."""
    if not run_dir.is_dir():
        raise InputError(f"report: no run folder at {run_dir}; give the folder that train.py made")
    run = RunDir(run_dir)
    config = read_config(run)
    text = run.config_file.read_text("utf-8-sig") if config else ""
    lines = run.lines()
    numbers = {int(p.name[6:]) for p in run_dir.glob("round_*") if p.name[6:].isdigit()}
    numbers |= {int(one["round"]) for one in lines}
    by_number = {one["round"]: one for one in lines}
    rounds = [read_round(run.round(n), by_number.get(n)) for n in sorted(numbers)]
    name = str(config.get("name") or run_dir.resolve().name)
    return Run(name, run_dir, config, text, lines, rounds, read_asked(run_dir))


def read_round(one: RoundDir, line: Row | None) -> RoundFiles:
    """The files of one round."""
    labelled = one.pairs_file.exists() or one.points_file.exists()
    there = {
        "rollout": one.candidates_file.exists() or one.number == 0,
        "critique": one.verdicts_file.exists() or one.number == 0,
        "labelling": labelled or one.number == 0,
        "training": line is not None or one.policy_file.exists() or one.number == 0,
        "evaluation": line is not None,
    }
    counts = (line or {}).get("labelling")
    if counts is None and one.labelling_file.exists():
        counts = one.figures(one.labelling_file)
    return RoundFiles(
        one.number,
        read_rows(one.candidates_file),
        read_rows(one.verdicts_file),
        read_rows(one.pairs_file),
        read_rows(one.points_file),
        read_rows(one.evaluation_file),
        read_rows(one.choice_file),
        counts if isinstance(counts, Mapping) else {},
        [stage for stage in STAGES if not there[stage]],
        read_rows(drafts_in(one).verdicts_file),
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; none where it does not exist."""
    return read_jsonl(path) if path.exists() else []
