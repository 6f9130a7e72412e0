"""Command line: list what in a store no run refers to, and delete it when told.

python -m ipo_lightning.rounds.store outputs/store outputs/a outputs/b
python -m ipo_lightning.rounds.store outputs/store outputs/a outputs/b --delete
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.run_lock import held
from ipo_lightning.report.tables import table
from ipo_lightning.storage.foreign_yaml import read_settings
from ipo_lightning.storage.garbage import (
    References,
    check_run,
    delete,
    garbage,
    long_ago,
    references_of,
    rows_of,
)
from ipo_lightning.storage.layout import RunDir

DAYS = 2.0
"""Whatever is younger is kept: a run that is not in the list may be making or using it."""


def collect(
    store: Path, folders: Sequence[Path], *, days: float, deleting: bool, only_these: bool
) -> str:
    """List what no run refers to, or delete it; what was found, as text.

    Raises:
        InputError: a folder holds no run or cannot be read, a run is in use, or runs of this store
            are not in the list.
    """
    runs = [RunDir(folder) for folder in folders]
    others = _others(store, runs)
    if deleting and others and not only_these:
        raise InputError(
            f"{', '.join(map(str, others))}: runs with this store that are not in the list, and "
            "what they need would be deleted; give them too, or --only-these"
        )
    with _all_held(runs if deleting else []):
        found = garbage(store, _references(runs), long_ago(days))
        lines = [table(rows, list(rows[0]))] if (rows := rows_of(found)) else [f"{store} is empty"]
        lines += [f"{found.young} files that no run refers to are kept: made or used in the last "
                  f"{days:g} days, or since an unfinished run began its round"
                  ] if found.young else []  # fmt: skip
        lines += [f"not in the list, but with this store: {', '.join(map(str, others))}"
                  ] if others else []  # fmt: skip
        if not deleting:
            lines.append("nothing was deleted: --delete deletes what is unreferred")
            return "\n".join(lines)
        files, size = delete(found)
    return "\n".join([*lines, f"deleted: {files} files, {size / 2**20:.1f} MiB"])


def _references(runs: Sequence[RunDir]) -> References:
    """What runs refer to, the prompt that guidance leads away from among it."""
    settings = [_settings(run) for run in runs]
    policies = [run for run, own in zip(runs, settings, strict=True) if own.get("task") != "critic"]
    found = references_of(policies)
    for own in settings:
        rollout, terms = own.get("rollout"), own.get("regularise")
        negative = rollout.get("negative_prompt") if isinstance(rollout, dict) else None
        found.prompts.add(str(negative or ""))
        if isinstance(terms, dict) and terms.get("real"):
            found.all_bases = False  # its captions are in no file of the run: all texts are kept
    return found


def _settings(run: RunDir) -> dict[str, Any]:
    """Of a run; none where it has no config.yaml."""
    return read_settings(run.config_file, "restore it") if run.config_file.exists() else {}


@contextmanager
def _all_held(runs: Sequence[RunDir]) -> Iterator[None]:
    """The runs, which no process may work on meanwhile.

    Raises:
        InputError: one of them is in use; names the process.
    """
    with ExitStack() as until_the_end:
        for run in runs:
            check_run(run)
            until_the_end.enter_context(held(run.path))
        yield


def _others(store: Path, runs: Sequence[RunDir]) -> list[Path]:
    """Runs beside these, or beside the store, that use the store too."""
    given = {run.path.resolve() for run in runs}
    beside = {run.path.resolve().parent for run in runs} | {store.resolve().parent}
    found = {file.parent for folder in beside for file in folder.glob("*/config.yaml")}
    return sorted(path for path in found - given if _has(path, store))


def _has(folder: Path, store: Path) -> bool:
    """Whether a run's settings name the store; a run whose settings cannot be read may."""
    try:
        paths = read_settings(folder / "config.yaml", "restore it").get("paths")
    except InputError:
        return True
    named = paths.get("store") if isinstance(paths, dict) else None
    places = (Path(str(named)), folder.parent / "store")
    return any(place.resolve() == store.resolve() for place in places)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ipo_lightning.rounds.store",
        description="List what in a store no run refers to, and delete it when told.",
    )
    parser.add_argument("store", type=Path, help="the store: outputs/store")
    parser.add_argument("runs", type=Path, nargs="+", help="the folders of all runs that use it")
    parser.add_argument("--delete", action="store_true", help="delete what no run refers to")
    parser.add_argument(
        "--days", type=float, default=DAYS, help="keep what was made or used in so many days (2)"
    )
    parser.add_argument(
        "--only-these", action="store_true", help="delete also what runs beside these need"
    )
    given = parser.parse_args(arguments)
    try:
        text = collect(given.store, given.runs, days=given.days, deleting=given.delete,
                       only_these=given.only_these)  # fmt: skip
    except (InputError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
