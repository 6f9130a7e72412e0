"""A run on disk: its rounds, their files, and what is finished.

The presence of a stage's file says that the stage is finished, since it appears whole or not at
all. What the rows refer to lies in the store and checks itself; the files of a round are checked by
its `Manifest`.
"""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args, runtime_checkable

from torch import Tensor

from ipo_lightning.storage.manifest import (
    MANIFEST,
    Manifest,
    hash_of,
    read_manifest,
    sha256_of,
    stat_of,
)
from ipo_lightning.storage.records import (
    AnyVerdict,
    Candidate,
    Pair,
    PairVerdict,
    Point,
    RealClip,
    Row,
    Verdict,
)
from ipo_lightning.storage.run_files import (
    IS_FOLDER,
    REMOVE_FOLDER,
    DamagedFile,
    one_each,
    read_object,
    read_rows,
    read_typed,
)
from ipo_lightning.storage.store import (
    canonical,
    file_sha256,
    remove_leftovers,
    write_atomically,
    write_jsonl,
)

R = TypeVar("R", Pair, Point)
Stage = Literal["rollout", "critique", "labelling", "training", "evaluation"]
STAGES: tuple[Stage, ...] = get_args(Stage)
REFERENCE_ERRORS = "reference errors"
"""A stage that leaves no file in the round: its results lie in the store, and find themselves."""
DRAFTS, DRAFT_CRITIQUE = "drafts", "draft critique"
"""Stages before the rollout, where candidates are drafted."""


AGAIN = "put it back, or remove the folders of round {number} and later ones: they are made again"
"""The cure where a file of a round cannot be made again as it was."""


class RoundDir:
    """The folder of one round: ``round_K``. Round 0 holds the base model's evaluation alone."""

    def __init__(self, path: Path, number: int) -> None:
        self.path, self.number = path, number
        self.candidates_file = path / "candidates.jsonl"
        self.verdicts_file = path / "verdicts.jsonl"
        self.pairs_file = path / "pairs.jsonl"
        self.points_file = path / "points.jsonl"
        self.labelling_file = path / "labelling.json"
        self.evaluation_file = path / "evaluation.jsonl"
        self.choice_file = path / "choice.jsonl"
        self.start_file = path / "start.json"
        self.seconds_file = path / "seconds.json"
        self.beta_file = path / "beta.json"
        self.training_file = path / "training.json"
        self.policy = path / "policy"
        self.policy_file = path / "policy.json"
        self.checkpoints = path / "checkpoints"

    # ---------------------------------------------------------------- reading

    def candidates(self) -> list[Candidate]:
        """The round's videos."""
        return read_typed(self.candidates_file, Candidate)

    def verdicts(self) -> list[AnyVerdict]:
        """What the critic said of them."""
        compared = "p_first" in next(iter(read_rows(self.verdicts_file)), {})
        kind: type[AnyVerdict] = PairVerdict if compared else Verdict
        return read_typed(self.verdicts_file, kind)

    def pairs(self) -> list[Pair]:
        """The labelled pairs.

        Raises:
            DamagedFile: also where they are not as many as were kept.
        """
        return self._counted(self.pairs_file, Pair)

    def points(self) -> list[Point]:
        """The labelled videos; see `pairs`."""
        return self._counted(self.points_file, Point)

    def _counted(self, file: Path, kind: type[R]) -> list[R]:
        """Labels, unless some may be lost; those written by hand may come without a count."""
        rows = read_typed(file, kind)
        kept = self.figures(self.labelling_file).get("kept", len(rows))
        if kept == len(rows):
            return rows
        raise DamagedFile(
            file,
            f"{len(rows)} labels, but {self.labelling_file.name} says that {kept} were kept",
            "remove it: the same command makes it again; or, if you added or removed labels "
            f"yourself, set kept to {len(rows)} there",
        )

    def labels_file(self, label_kind: str) -> Path:
        """The file of labels that a pairwise or a pointwise loss trains on."""
        return self.pairs_file if label_kind == "pairwise" else self.points_file

    def fingerprint(self) -> str | None:
        """The fingerprint of the policy that the round ended with, if it has been exported."""
        known = self.manifest().policy
        if known is not None or not self.policy_file.exists():
            return known
        found = read_object(self.policy_file).get("fingerprint")
        if not isinstance(found, str):
            raise DamagedFile(self.policy_file, "no fingerprint", AGAIN.format(number=self.number))
        return found

    def figures(self, file: Path) -> dict[str, Any]:
        """Seconds or means of the training: a damaged file is none, with a warning."""
        try:
            return read_object(file) if file.exists() else {}
        except DamagedFile as error:
            warnings.warn(
                f"{file} is damaged ({error.fault}); its figures are left out", stacklevel=2
            )
            return {}

    def seconds(self) -> dict[str, float]:
        """Seconds spent so far, by stage."""
        found = self.figures(self.seconds_file)
        return {k: s for k, s in found.items() if isinstance(s, int | float)}

    # ---------------------------------------------------------------- writing

    def write(self, path: Path, rows: Iterable[Row]) -> None:
        """Write one of the files of rows."""
        content = _as_lines(rows)
        self.put(path, content, content.count(b"\n"))

    def write_object(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write one of the files that hold an object."""
        self.put(path, json.dumps(content).encode())

    def put(self, path: Path, content: bytes, lines: int | None = None) -> None:
        """Write a file of the round, and down what it was.

        Raises:
            DamagedFile: the round is finished, and this is not what it was made with.
        """
        name, manifest, found = path.name, self.manifest(), sha256_of(content)
        told = path in (self.seconds_file, self.training_file, self.labelling_file)
        if told and path.is_dir():
            warnings.warn(f"{path} is a folder: its figures are left out", stacklevel=2)
            return
        if not told and manifest.line is not None and manifest.files.get(name, found) != found:
            raise DamagedFile(path, f"made anew it is not what round {self.number} was made with",
                              AGAIN.format(number=self.number))  # fmt: skip
        if path.is_dir():
            raise DamagedFile(path, IS_FOLDER, REMOVE_FOLDER)
        rows = {} if lines is None else {name: lines}
        replace(
            manifest,
            files={**manifest.files, name: found},
            lines={**manifest.lines, **rows},
            edited=tuple(one for one in manifest.edited if one != name),
        ).write(self.path)
        write_atomically(path, content)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Add to a stage's time, so that a resumed stage counts whole."""
        spent = self.seconds()
        spent[stage] = round(spent.get(stage, 0.0) + seconds, 3)
        self.write_object(self.seconds_file, spent)

    def record_policy(self, folder: Path) -> None:
        """Write down what the files of a policy are that takes its place next.

        Args:
            folder: where they lie now.
        """
        names = _weights(folder)
        files = {f"{self.policy.name}/{name}": file_sha256(folder / name) for name in names}
        stats = {f"{self.policy.name}/{name}": stat_of(folder / name) or () for name in names}
        manifest = self.manifest()
        kept = {n: h for n, h in manifest.files.items() if not n.startswith(f"{self.policy.name}/")}
        replace(manifest, files={**kept, **files}, stats=stats).write(self.path)

    def write_policy_file(self, fingerprint: str) -> None:
        """Write the policy's fingerprint: it is exported."""
        self.write_object(self.policy_file, {"fingerprint": fingerprint, "round": self.number})
        replace(self.manifest(), policy=fingerprint).write(self.path)

    def record_all(self) -> None:
        """Write down what all files are, as they are; the policy is checked by its fingerprint."""
        folder = self.path
        names = [path.name for path in sorted(folder.glob("*.json*")) if path.name != MANIFEST]
        names += [f"{self.policy.name}/{name}" for name in _weights(self.policy)]
        found = {name: hash_of(folder / name) for name in names}
        files = {name: sha256 for name, sha256 in found.items() if sha256 is not None}
        Manifest(self.number, files).write(folder)

    def forget_labels(self) -> None:
        """Remove what was said of the round's videos, once they are no longer the same."""
        for file in (
            self.verdicts_file, self.pairs_file, self.points_file, self.labelling_file
        ):  # fmt: skip
            file.unlink(missing_ok=True)

    def forget_own_labels(self) -> None:
        """Remove labels of verdicts that were edited since; those that people edited stay."""
        edited = self.manifest().edited
        for file in (self.pairs_file, self.points_file):
            if file.exists() and file.name not in edited and not self.edited(file):
                warnings.warn(f"{file} is made anew of these verdicts", stacklevel=2)
                file.unlink()

    # ---------------------------------------------------------------- damage

    def manifest(self) -> Manifest:
        """What the round's files were when they were written."""
        return read_manifest(self.path, self.number)

    def intact(self, path: Path) -> bool:
        """Whether a file is there, and as it was written as far as that is known.

        Warns of one that must be made anew.
        """
        known = self.manifest().files.get(path.name)
        if known is None:
            return path.exists()
        if hash_of(path) == known:
            return True
        fault = "is not as it was written" if path.exists() else "is gone"
        warnings.warn(f"{path} {fault}; it is made anew", stacklevel=2)
        return False

    def were_others(self, path: Path, rows: Sequence[Row]) -> bool:
        """Whether other rows than these were written to a file; False where none were."""
        known = self.manifest().files.get(path.name)
        if known is None and path.exists():
            known = hash_of(path)
        return known is not None and known != sha256_of(_as_lines(rows))

    def edited(self, path: Path) -> bool:
        """Whether a file that is there is not as it was written."""
        known = self.manifest().files.get(path.name)
        return known is not None and hash_of(path) != known

    def adopt(self, path: Path) -> None:
        """Take a file of rows that was edited by hand as it is, from now on.

        Raises:
            DamagedFile: the round has been trained without the edit.
        """
        manifest, found = self.manifest(), hash_of(path)
        rows = b"".join(canonical(row) + b"\n" for row in read_rows(path))
        if sha256_of(rows) == manifest.files[path.name]:  # only blank lines and the like were added
            write_atomically(path, rows)
            return
        if manifest.policy is not None:
            raise DamagedFile(
                path,
                f"changed since round {self.number} was trained with it",
                "put it back, or remove it: the same command makes it again",
            )
        warnings.warn(f"{path} was edited by hand; it is used as it is", stacklevel=2)
        files = {**manifest.files, path.name: str(found)}
        edited = (*manifest.edited, path.name)
        replace(manifest, files=files, edited=edited).write(self.path)

    def faults(self) -> list[str]:
        """Names of the files that are not as they were written, or gone; not of mere figures."""
        manifest, figures = self.manifest(), (self.seconds_file.name, self.training_file.name)
        names = (name for name in manifest.files if name not in figures)
        return [name for name in names if not manifest.unchanged(self.path, name)]

    def policy_faults(self) -> list[str]:
        """Names of the policy's files that are not as they were exported, or gone."""
        return [name for name in self.faults() if name.startswith(f"{self.policy.name}/")]

    def check_policy(self) -> None:
        """Read a policy's files, and refuse one that is not as it was exported.

        Raises:
            DamagedFile: names a file.
        """
        for name, sha256 in self.manifest().files.items():
            file = self.path / name
            if self.policy in file.parents and hash_of(file) != sha256:
                fault = f"not as round {self.number} was trained to" if file.exists() else "gone"
                raise DamagedFile(
                    file,
                    fault,
                    "put it back, or remove the folder policy and give the command of the run: it "
                    "is exported anew from the round's checkpoint",
                )


class DraftsDir(RoundDir):
    """The folder of a round, as the stages see it that make drafts of its candidates."""

    def __init__(self, path: Path, number: int) -> None:
        super().__init__(path, number)
        self.candidates_file = path / "drafts.jsonl"
        self.verdicts_file = path / "draft_verdicts.jsonl"


def drafts_in(folder: RoundDir) -> DraftsDir:
    """The same folder, whose candidates are drafts."""
    return DraftsDir(folder.path, folder.number)


def forget_evaluation(folder: RoundDir) -> None:
    """Take back a round's line and the files that it was made of."""
    manifest, own = folder.manifest(), (folder.evaluation_file, folder.choice_file)
    names = {file.name for file in own}
    files = {name: found for name, found in manifest.files.items() if name not in names}
    rows = {name: count for name, count in manifest.lines.items() if name not in names}
    replace(manifest, files=files, lines=rows, line=None).write(folder.path)
    for file in own:
        file.unlink(missing_ok=True)


def start_of(folder: RoundDir) -> dict[str, Any] | None:
    """What ``start.json`` says of a round that guards let start elsewhere: the ``round`` whose
    policy it goes on from, and ``lr_scale``; None: it goes on from the one before it.

    Raises:
        DamagedFile: it is not such a record.
    """
    if not folder.start_file.exists():
        return None
    found = read_object(folder.start_file)
    earlier, scale = found.get("round"), found.get("lr_scale")
    if type(earlier) is not int or not 0 <= earlier < folder.number:
        raise DamagedFile(folder.start_file, f"round={earlier}")
    if not isinstance(scale, float) or not 0 < scale <= 1:
        raise DamagedFile(folder.start_file, f"lr_scale={scale}")
    return found


def before(run: "RunDir", number: int) -> int:
    """The round whose policy round ``number`` starts from, and whose videos it trains on: the one
    before it, or the one that guards went back to."""
    start = start_of(run.round(number))
    return number - 1 if start is None else int(start["round"])


def _as_lines(rows: Iterable[Row]) -> bytes:
    return b"".join(canonical(row.row()) + b"\n" for row in rows)


def _weights(folder: Path) -> list[str]:
    """Paths in a policy's folder of all but the model card, which is for people."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix != ".md")
    return [file.relative_to(folder).as_posix() for file in files]


class RunDir:
    """The folder of a run: ``outputs/NAME``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.rounds_file = self.path / "rounds.jsonl"
        self.best_file = self.path / "best.json"
        self.rejudged_file = self.path / "rejudged.json"

    def round(self, number: int) -> RoundDir:
        """The folder of a round, whether or not it exists."""
        return RoundDir(self.path / f"round_{number}", number)

    def rounds(self) -> list[RoundDir]:
        """The folders of rounds that there are, in order."""
        names = (path.name.removeprefix("round_") for path in self.path.glob("round_*"))
        return [self.round(number) for number in sorted(int(n) for n in names if n.isdecimal())]

    def lines(self) -> list[dict[str, Any]]:
        """One line a finished round, in order.

        The copies in the rounds' folders count where ``rounds.jsonl`` is damaged, or says something
        else.
        """
        copies = self._copies()
        try:
            rows = self._written()
        except DamagedFile:
            if not copies:
                raise
            rows = []
        by_number = {row["round"]: row for row in rows} | copies
        return [by_number[number] for number in sorted(by_number)]

    def line(self, number: int) -> dict[str, Any] | None:
        """The line of a round, or None where it is not finished."""
        return next((line for line in self.lines() if line["round"] == number), None)

    def append(self, line: dict[str, Any]) -> None:
        """Add the line of a finished round, atomically; a round has one line."""
        folder = self.round(line["round"])
        if folder.path.is_dir():
            replace(folder.manifest(), line=line).write(folder.path)
        kept = [old for old in self.lines() if old["round"] != line["round"]]
        write_jsonl(self.rounds_file, sorted([*kept, line], key=lambda one: one["round"]))

    def forget_evaluations(self, judge: str) -> None:
        """Take back what a judge said of all rounds, so that they are evaluated again.

        Its lines are kept in ``rejudged.json``. A kill in the midst leaves some: the same again.
        """
        earlier, lines = self.earlier_judges(), {line["round"]: line for line in self.lines()}
        if earlier and earlier[-1]["judge"] == judge:  # that kill
            lines |= {line["round"]: line for line in earlier.pop()["lines"]}
        if lines:
            kept = [*earlier, {"judge": judge, "lines": [lines[k] for k in sorted(lines)]}]
            write_atomically(self.rejudged_file, json.dumps(kept).encode())
        for folder in self.rounds():
            forget_evaluation(folder)
        write_jsonl(self.rounds_file, [])

    def earlier_judges(self) -> list[dict[str, Any]]:
        """``judge`` and ``lines`` of those that evaluated the run before the one it has now."""
        try:
            found = json.loads(self.rejudged_file.read_bytes())
        except (OSError, ValueError):  # there were none, or nobody knows any more
            return []
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def mend(self) -> None:
        """Remove what killed processes left, and put ``rounds.jsonl`` right.

        A line is put back from the round's folder, and goes with that folder. For the process that
        writes, and holds the run's lock.
        """
        remove_leftovers(self.path)
        for folder in self.rounds():
            known = folder.manifest().policy
            if known is not None and not folder.intact(folder.policy_file):
                folder.write_policy_file(known)
        there = {folder.number for folder in self.rounds()}
        lines = [line for line in self.lines() if line["round"] in there]
        fault = self._fault(lines)
        if fault:
            warnings.warn(
                f"{self.rounds_file} is damaged ({fault}); it is made anew from the rounds' "
                "folders", stacklevel=2,
            )  # fmt: skip
        wanted = b"".join(canonical(line) + b"\n" for line in lines)
        if fault or (lines and hash_of(self.rounds_file) != sha256_of(wanted)):
            write_atomically(self.rounds_file, wanted)
        copies = self._copies()
        for line in lines:
            if line["round"] not in copies:  # of an older version, or its hashes were damaged
                self.round(line["round"]).record_all()
                self.append(line)

    def _fault(self, lines: Sequence[Mapping[str, Any]]) -> str | None:
        """How ``rounds.jsonl`` differs from the lines that it should have."""
        try:
            written = self._written()
        except DamagedFile as error:
            return error.fault
        odd = [one for one in (*written, *lines) if one not in written or one not in lines]
        numbers = sorted({one["round"] for one in odd})
        return f"the line of round {', '.join(map(str, numbers))}" if numbers else None

    def closed(self, number: int) -> bool:
        """Whether a round is finished, and its files are as they were written."""
        folder = self.round(number)
        return self.line(number) is not None and folder.path.is_dir() and not folder.faults()

    def done(self, number: int, label_kind: str) -> dict[Stage, bool]:
        """Which stages of a round are finished."""
        one = self.round(number)
        return {
            "rollout": one.candidates_file.exists(),
            "critique": one.verdicts_file.exists(),
            "labelling": one.labels_file(label_kind).exists(),
            "training": one.fingerprint() is not None,
            "evaluation": self.line(number) is not None,
        }

    def _copies(self) -> dict[int, dict[str, Any]]:
        """The lines that the rounds' own folders keep, by round."""
        manifests = (folder.manifest() for folder in self.rounds())
        return {one.round: dict(one.line) for one in manifests if one.line is not None}

    def _written(self) -> list[dict[str, Any]]:
        """The lines of ``rounds.jsonl``."""
        if not self.rounds_file.exists() and not self.rounds_file.is_symlink():
            return []
        rows = read_rows(self.rounds_file)
        for line, row in enumerate(rows, 1):
            number = row.get("round")
            if type(number) is not int or number < 0:
                raise DamagedFile(self.rounds_file, f"line {line}: no number of a round")
        one_each(self.rounds_file, (row["round"] for row in rows), "round")
        return rows


class RoundData(NamedTuple):
    """What a round trains on."""

    number: int
    rows: Sequence[Pair] | Sequence[Point]
    texts: dict[str, str]
    """Prompt or caption -> blob of its embedding."""
    errors: Tensor | None = None
    """(V, 2) errors of the reference at the V draws to pairs, or (V, 1) to points, float32; None
    where it is asked live, or never."""
    real: Sequence[RealClip] = ()
    """Real clips to train on beside the labels, for lambda_2."""


@runtime_checkable
class RoundSource(Protocol):
    """What makes a round's data: the iteration callback, as the datamodule sees it."""

    def ensure_round(self, number: int, draws: int) -> RoundData:
        """Make the data of a round, or find it on disk; called before the round trains.

        ``draws`` is how many draws of its labels it will make, on all ranks together.
        """
        ...
