"""How far a critic agrees with people: python audit.py critic=... pairs=FILE.

python audit.py critic=shapes pairs=DIR/pairs.jsonl                 all pairs of the file
python audit.py critic=shapes pairs=DIR/pairs.jsonl dry_run=true    how many questions, at what cost
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig

from app.audit_settings import check_audit, dims_of
from app.ending import ended
from app.entry import (
    build,
    friendly,
    refuse_missing,
    refuse_misspelt,
    register_resolvers,
)
from app.free_text import as_typed
from app.output import end, in_json, show
from ipo_lightning.errors import InputError, readable, within

if TYPE_CHECKING:
    from ipo_lightning.audit.asking import Answer, PairAsker, Shelf
    from ipo_lightning.audit.findings import Table
    from ipo_lightning.audit.votes import Compared, Gathered
    from ipo_lightning.critics.people.annotations import Annotation

register_resolvers()

REMAKE = "remove it, and the audit is made anew"


def audit(cfg: DictConfig) -> dict[str, Any] | None:
    """Compare the critic with people as ``cfg`` describes.

    Returns:
        What audit.json holds; None where only the plan was asked for.

    Raises:
        InputError: a setting or the file of pairs is wrong.
    """
    refuse_missing(cfg)
    check_audit(cfg)
    from app.process import device_of, settle
    from ipo_lightning.audit.asking import Shelf, asker_of
    from ipo_lightning.audit.findings import Rules, Table, check_people
    from ipo_lightning.audit.votes import drawn

    settle(cfg)
    shelf = Shelf(str(cfg.paths.store), bars=not in_json(cfg))
    gathered = read_pairs(cfg, shelf)
    pairs = drawn(gathered.pairs, cfg.n, cfg.seed)
    rules = Rules(cfg.calibration, cfg.seed, cfg.bins, dims_of(cfg))
    check_people(gathered.pairs, rules)
    device = str(device_of(cfg))
    asked = asker_of(build(cfg.critic, "critic"), shelf, device, cfg.batch_size)
    show(plan(cfg, asked, pairs))
    if cfg.dry_run:
        end()
        return None
    refuse_other_audit(folder_of(cfg, asked.identity), asked.identity, cfg)
    with within("critic"):
        answers = ask(cfg, asked, pairs, device)
    table = Table(pairs, answers[0], rules)
    found = finish(cfg, table, answers, asked, gathered)
    show(written(folder_of(cfg, asked.identity), found, table, shelf, tensorboard=cfg.tensorboard))
    end(audit=str(folder_of(cfg, asked.identity)))
    return found


def read_pairs(cfg: DictConfig, shelf: "Shelf") -> "Gathered":
    """People's verdicts, and where their videos lie."""
    from ipo_lightning.audit.votes import gather
    from ipo_lightning.exchange import Finder, read_any, videos_of

    found = read_any(cfg.pairs, cfg.format).one_lined()
    rows = found.comparisons()
    found.unpack(shelf)
    finder = Finder(Path(cfg.videos) if cfg.videos else found.folder, shelf)

    def find(row: "Annotation") -> tuple[Path, Path]:
        first, second = map(finder.place, videos_of(row))
        return first, second

    gathered = gather(rows, find, skip_missing=cfg.skip_missing)
    prompts = {pair.prompt for pair in gathered.pairs}
    if len(prompts) < 2:
        raise InputError(
            f"pairs={cfg.pairs}: all pairs are of one prompt; what is chosen on some prompts is "
            "counted on others, so give at least two"
        )
    return gathered


# -------------------------------------------------------------------- before asking


def plan(cfg: DictConfig, asked: "PairAsker", pairs: Sequence["Compared"]) -> str:
    """How many questions there are, how many are open, and what they will take."""
    again = [pairs[: cfg.repeat_pairs]] * (cfg.repeats - 1)
    total = asked.calls(pairs) + sum(asked.calls(some) for some in again)
    todo = asked.missing(pairs) + sum(asked.missing(some, 1 + i) for i, some in enumerate(again))
    known = asked.ledger.read()
    text = (
        f"{asked.identity}: {len(pairs)} pairs of {len({pair.prompt for pair in pairs})} prompts, "
        f"{total} {asked.unit}, {todo} of them to ask"
    )
    if not todo:
        return f"{text}: nothing is asked"
    if not known["calls"]:
        return f"{text}; no answer was timed on {asked.ledger.device} yet: n=20 tells what all cost"
    each = {"s": known["seconds"], **known["spent"]}
    costs = [f"{todo * value / known['calls']:.3g} {name}" for name, value in each.items()]
    return f"{text}; about {', '.join(costs)}, going by {known['calls']} answers"


def folder_of(cfg: DictConfig, identity: str) -> Path:
    """Where the audit lies: its own name, or one that other settings do not share."""
    from ipo_lightning.storage.store import fingerprint

    if cfg.name is not None:
        return Path(cfg.paths.outputs, "audits", str(cfg.name))
    keys = ("n", "calibration", "bins", "repeats", "repeat_pairs", "seed", "skip_missing", "format",
            "videos")  # fmt: skip
    settings = {"critic": identity, "pairs": content_of(cfg), "dims": dims_of(cfg),
                **{key: cfg[key] for key in keys}}  # fmt: skip
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{identity} {Path(cfg.pairs).stem}").strip("-")[:60]
    return Path(cfg.paths.outputs, "audits", f"{words.lower()}-{fingerprint(settings)[:6]}")


def content_of(cfg: DictConfig) -> str:
    """A hash of the file of pairs, or of the folder with them."""
    from ipo_lightning.storage.store import file_sha256, folder_fingerprint

    pairs = Path(cfg.pairs)
    with readable(pairs):
        return folder_fingerprint(pairs) if pairs.is_dir() else file_sha256(pairs)


def refuse_other_audit(folder: Path, critic: str, cfg: DictConfig) -> None:
    """Refuse a folder that holds the audit of another critic, or by other pairs.

    Raises:
        InputError: names both.
    """
    from ipo_lightning.audit.page import FINDINGS
    from ipo_lightning.storage.run_files import read_object

    if not (folder / FINDINGS).exists():
        return
    old, pairs = read_object(folder / FINDINGS, REMAKE), Path(cfg.pairs).name
    if (old.get("critic"), old.get("pairs_file")) != (critic, pairs):
        raise InputError(
            f"{folder} holds the audit of {old.get('critic')} by {old.get('pairs_file')}, not of "
            f"{critic} by {pairs}: give another name=NAME"
        )
    if "pairs_content" in old and old["pairs_content"] != content_of(cfg):
        raise InputError(
            f"{folder} holds an audit by other contents of {pairs}: give another name=NAME, or "
            "remove the folder"
        )


# -------------------------------------------------------------------- asking, and what follows


def ask(
    cfg: DictConfig, asked: "PairAsker", pairs: Sequence["Compared"], device: str
) -> list[list["Answer"]]:
    """The critic's answers, and once more for every time that it is to be asked again."""
    from ipo_lightning.critics.protocols import CriticGone

    try:
        again = [
            asked.ask(pairs[: cfg.repeat_pairs], device, turn) for turn in range(1, cfg.repeats)
        ]
        return [asked.ask(pairs, device), *again]
    except CriticGone as gone:
        raise InputError(f"{gone}; what was answered is kept, the same command goes on") from gone


def finish(
    cfg: DictConfig,
    table: "Table",
    answers: Sequence[Sequence["Answer"]],
    asked: "PairAsker",
    gathered: "Gathered",
) -> dict[str, Any]:
    """All that audit.json holds."""
    from ipo_lightning.audit.asking import cost
    from ipo_lightning.audit.findings import consistency, findings
    from ipo_lightning.audit.verdict import grade, sentences, settings_to_use

    found = {
        "critic": asked.identity,
        "kind": asked.kind,
        "pairs_file": Path(cfg.pairs).name,
        "pairs_content": content_of(cfg),
        "command": shlex.join(["python", *sys.argv]),
        "examples": cfg.examples,
        "left_out": gathered.left_out,
        **findings(table),
        "again": consistency(table, answers),
        "cost": cost(asked, table.pairs),
    }
    return {
        **found,
        "grade": grade(found),
        "use": settings_to_use(found),
        "sentences": sentences(found),
    }


def written(
    folder: Path, found: dict[str, Any], table: "Table", shelf: "Shelf", *, tensorboard: bool
) -> str:
    """Write the audit, and return what is shown at its end."""
    from ipo_lightning.audit.files import log_to_tensorboard, write_findings
    from ipo_lightning.audit.page import tables, write_audit

    write_findings(folder, found, table, shelf)
    page = write_audit(folder)
    if tensorboard:
        log_to_tensorboard(folder / "tensorboard", found, tables(found))
    return "\n".join(
        ["", tables(found), "", found["use"], "", *found["sentences"], "", f"page: {page}"]
    )


@hydra.main(version_base="1.3", config_path="conf", config_name="audit")
def main(cfg: DictConfig) -> None:
    """The command line."""
    with friendly(cfg.get("debug") is True):
        audit(cfg)


if __name__ == "__main__":
    with friendly("debug=true" in sys.argv):
        sys.argv[1:] = as_typed("audit", sys.argv[1:])
        refuse_misspelt("audit", sys.argv[1:])
    with ended(sys.argv[1:]):
        main()
