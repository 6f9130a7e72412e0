"""Annotators' answers: read strictly, combined by question, with statistics of each annotator.

A file is canonical JSON lines (`ipo_lightning.critics.people.annotations`) with the videos' hashes,
as the page downloads them. The sides on which the videos were shown do not matter here: answers are
turned to the order of the question.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from ipo_lightning.critics.people.annotations import OVERALL, Annotation, Choice, read_annotations
from ipo_lightning.critics.protocols import Comparison, Question
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.preferences import Preference
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.storage.texts import one_line

CANNOT_SAY = "cannot say"
MIRRORED: Mapping[Choice, Choice] = {"A": "B", "B": "A", "same": "same", "invalid": "invalid"}
VOTES: Mapping[Choice, tuple[float, float, float]] = {
    "A": (1, 0, 0), "same": (0, 1, 0), "B": (0, 0, 1)
}  # fmt: skip

Key = tuple[str, str, str]
"""(prompt, video, other video), the two videos sorted by name."""


class Said(NamedTuple):
    """One answer, about the videos sorted by name."""

    annotator: str
    labels: Mapping[str, Choice]
    seconds: float | None


class Account(NamedTuple):
    """Statistics of an annotator."""

    annotator: str
    answers: int
    ties: int
    cannot_say: int
    repeats: int
    """Questions that were answered more than once, mostly hidden repeats."""
    agreed: int
    """How many of these always had the same answer."""
    seconds: float | None
    """Median time of an answer."""

    def line(self) -> str:
        """The statistics in a sentence."""
        again = f"{self.agreed} of {self.repeats} repeats answered alike" if self.repeats else (
            "no repeats"
        )  # fmt: skip
        pace = "" if self.seconds is None else f", {self.seconds:.0f} s each"
        return (
            f"annotator {self.annotator or '(no name)'}: {self.answers} answers ({self.ties} ties, "
            f"{self.cannot_say} cannot say){pace}; {again}"
        )


class Answers:
    """The answers of all annotators, by question; of repeated downloads those of `latest`."""

    def __init__(self, *files: Iterable[Annotation]) -> None:
        self.rows = latest(*files)
        self.by_question: dict[Key, list[Said]] = {}
        for row in self.rows:
            key, turned = key_of(row.prompt, row.video_A, row.video_B)
            labels = {name: MIRRORED[said] if turned else said for name, said in row.labels.items()}
            said = Said(row.annotator, labels, row.seconds)
            self.by_question.setdefault(key, []).append(said)

    @cached_property
    def content(self) -> str:
        """Fingerprint of all answers; files' names and the order of rows do not matter."""
        return fingerprint(sorted(fingerprint(row.row()) for row in self.rows))

    def annotators(self, question: Question) -> set[str]:
        """The annotators who answered a question."""
        key, _ = key_of(question.prompt, question.first, question.second)
        return {said.annotator for said in self.by_question.get(key, [])}

    def people(self, question: Question) -> int:
        """How many people have answered a question."""
        key, _ = key_of(question.prompt, question.first, question.second)
        return len(_by_person(self.by_question.get(key, [])))

    def settle(self, question: Question) -> Comparison | None:
        """The annotators' comparison of (first, second); None where nobody was asked.

        Each annotator has one vote; answers without a name are of different annotators. Several
        answers of an annotator share the vote. The preference is the shares of the votes, the
        certainty the largest share. If more than half cannot say, there is no verdict.
        """
        key, turned = key_of(question.prompt, question.first, question.second)
        said = self.by_question.get(key)
        if not said:
            return None
        raw = ", ".join(
            f"{one.annotator or '(no name)'}: {MIRRORED[c] if turned else c}"
            for one in said
            for c in [one.labels[OVERALL]]
        )
        votes = _votes(said, OVERALL)
        if votes is None:
            return Comparison(None, raw=raw, fault=CANNOT_SAY)
        names = {name for one in said for name in one.labels} - {OVERALL}
        by_name = {name: _votes(said, name) for name in sorted(names)}
        settled = Comparison(
            votes,
            {name: vote.expected for name, vote in by_name.items() if vote is not None},
            max(votes),
            raw,
        )
        return mirrored(settled) if turned else settled

    def accounts(self) -> list[Account]:
        """Statistics of each annotator, by name."""
        names = sorted({row.annotator for row in self.rows})
        return [self._account(name) for name in names]

    def _account(self, annotator: str) -> Account:
        own = [
            [said for said in group if said.annotator == annotator]
            for group in self.by_question.values()
        ]
        said = [one.labels[OVERALL] for group in own for one in group]
        seconds = [one.seconds for group in own for one in group if one.seconds is not None]
        people = [said for group in own for said in _by_person(group)]
        twice = [{one.labels[OVERALL] for one in group} for group in people if len(group) > 1]
        return Account(
            annotator,
            len(said),
            said.count("same"),
            said.count("invalid"),
            len(twice),
            sum(len(choices) == 1 for choices in twice),
            median(seconds) if seconds else None,
        )


def mirrored(one: Comparison) -> Comparison:
    """The comparison of the same two videos in the other order."""
    preference = one.preference and one.preference.mirrored()
    dims = {name: 1 - value for name, value in one.dims.items()}
    return one._replace(preference=preference, dims=dims)


def key_of(prompt: str, first: str, second: str) -> tuple[Key, bool]:
    """A question's key, and whether the key has its videos in the other order.

    Two spellings of a prompt are one, see `one_line`.
    """
    return (one_line(prompt), *sorted((first, second))), first > second  # type: ignore[return-value]


def latest(*files: Iterable[Annotation]) -> list[Annotation]:
    """The answers that count, of one or several files.

    An annotator may download a page more than once; then the later answer to a question counts.
    Rows without the annotator's or the pair's name cannot be matched so. Within a file each of them
    is a separate answer, even if two are equal. Between files the n-th of equal rows is the same
    answer: a file that is given twice, or that has grown, is not counted twice.
    """
    kept: dict[tuple[str, ...], Annotation] = {}
    for rows in files:
        seen: Counter[str] = Counter()
        for row in rows:
            own = _own(row, seen)
            if own not in kept or row.timestamp >= kept[own].timestamp:
                kept[own] = row
    return list(kept.values())


def _own(row: Annotation, seen: "Counter[str]") -> tuple[str, ...]:
    """A key of the rows that are the same answer: one of them counts.

    Args:
        seen: how often each row without a name came in this file, which is counted on.
    """
    if row.pair_id and row.annotator:
        videos = (row.video_A or row.path_A, row.video_B or row.path_B)
        return (row.source, row.annotator, row.pair_id, *key_of(row.prompt, *videos)[0])
    words = fingerprint(replace(row, extra={}).row())
    seen[words] += 1
    return words, str(seen[words])


def read_answers(path: Path) -> Answers:
    """The answers of a file, or of all ``.jsonl`` files of a folder; none where it does not exist.

    Raises:
        InputError: names the file, the line and what is wrong with it.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path] if path.exists() else []
    found = [read_annotations(file) for file in files]
    for row in chain.from_iterable(found):
        if not row.video_A or not row.video_B:
            raise InputError(
                f"{row.place}: pair {row.pair_id or '(no name)'} does not name its videos: "
                "give video_A and video_B, the sha256 of their files"
            )
    return Answers(*found)


def _by_person(said: Iterable[Said]) -> list[list[Said]]:
    """Answers by annotator; those without a name are of different annotators."""
    found: dict[tuple[str, int], list[Said]] = {}
    for number, one in enumerate(said):
        found.setdefault((one.annotator, 0 if one.annotator else number), []).append(one)
    return list(found.values())


def _votes(said: Iterable[Said], name: str) -> Preference | None:
    """Shares of the annotators who prefer the first, neither, or the second, see `Answers.settle`;
    None where more than half cannot say."""
    people = _by_person(one for one in said if name in one.labels)
    able = [_vote(one.labels[name] for one in own) for own in people]
    votes = [vote for vote in able if vote is not None]
    if not votes or 2 * len(votes) < len(able):
        return None
    return Preference(*(fmean(share) for share in zip(*votes, strict=True)))


def _vote(choices: Iterable[Choice]) -> tuple[float, float, float] | None:
    """One annotator's vote; None where more than half of their answers cannot say."""
    counts = Counter(choices)
    unable = counts.pop("invalid", 0)
    able = counts.total()
    if not able or unable > able:
        return None
    shares = [sum(VOTES[c][i] * n for c, n in counts.items()) / able for i in range(3)]
    return shares[0], shares[1], shares[2]
