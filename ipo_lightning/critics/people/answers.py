"""What annotators answered: read strictly, settled by question, and how far each is to be trusted.

A file is canonical JSON lines (`ipo_lightning.critics.people.annotations`) with the videos'
hashes, as the page's download has them. Which video an annotator saw on which side does not matter
here: answers are turned to the question's own order.
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
"""(prompt, one video, the other video), the two in their names' order."""


class Said(NamedTuple):
    """One answer, about the videos in their names' order."""

    annotator: str
    labels: Mapping[str, Choice]
    seconds: float | None


class Account(NamedTuple):
    """How an annotator worked."""

    annotator: str
    answers: int
    ties: int
    cannot_say: int
    repeats: int
    """Questions that were answered more than once, a hidden repeat mostly."""
    agreed: int
    """Of these, how many always the same."""
    seconds: float | None
    """Median time of an answer."""

    def line(self) -> str:
        """The account in a sentence."""
        again = f"{self.agreed} of {self.repeats} repeats answered alike" if self.repeats else (
            "no repeats"
        )  # fmt: skip
        pace = "" if self.seconds is None else f", {self.seconds:.0f} s each"
        return (
            f"annotator {self.annotator or '(no name)'}: {self.answers} answers ({self.ties} ties, "
            f"{self.cannot_say} cannot say){pace}; {again}"
        )


class Answers:
    """The answers of all annotators, by question; those that count, see `latest`."""

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
        """Fingerprint of what was said, whatever the files' names and the rows' order."""
        return fingerprint(sorted(fingerprint(row.row()) for row in self.rows))

    def annotators(self, question: Question) -> set[str]:
        """Who has answered a question."""
        key, _ = key_of(question.prompt, question.first, question.second)
        return {said.annotator for said in self.by_question.get(key, [])}

    def people(self, question: Question) -> int:
        """How many people have answered a question."""
        key, _ = key_of(question.prompt, question.first, question.second)
        return len(_by_person(self.by_question.get(key, [])))

    def settle(self, question: Question) -> Comparison | None:
        """What the annotators think of (first, second); None where nobody was asked.

        Each has one vote (without a name, each answer is somebody else's), shared out among their
        answers where a question was answered more than once: whoever contradicts themselves is half
        for each. The preference is the votes' shares, the certainty the largest share. Where more
        than half cannot say, there is no verdict.
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
        """How each annotator worked, by name."""
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
    """The same about the two videos exchanged."""
    preference = one.preference and one.preference.mirrored()
    dims = {name: 1 - value for name, value in one.dims.items()}
    return one._replace(preference=preference, dims=dims)


def key_of(prompt: str, first: str, second: str) -> tuple[Key, bool]:
    """A question's key, and whether its videos stand there in the other order.

    Two spellings of a prompt are one, see `one_line`.
    """
    return (one_line(prompt), *sorted((first, second))), first > second  # type: ignore[return-value]


def latest(*files: Iterable[Annotation]) -> list[Annotation]:
    """The answers that count, of one file or of several.

    A page may be downloaded more than once: of what its annotator answered anew the later counts.
    Rows that lack the annotator's name or the pair's cannot be told for that: in one file each is
    an answer of its own, also where two are equal; but the n-th of equal rows in another file is
    the same as the n-th in this one, so that a file that is given twice, or has grown, counts once.
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
    """What a row has in common with those of which one alone counts.

    Args:
        seen: how often each row without a name came in this file; counted on.
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
                f"{row.place}: pair {row.pair_id or '(no name)'} does not say which videos it is "
                "about: give video_A and video_B, the sha256 of their files"
            )
    return Answers(*found)


def _by_person(said: Iterable[Said]) -> list[list[Said]]:
    """Answers by person; those without a name are by somebody else each."""
    found: dict[tuple[str, int], list[Said]] = {}
    for number, one in enumerate(said):
        found.setdefault((one.annotator, 0 if one.annotator else number), []).append(one)
    return list(found.values())


def _votes(said: Iterable[Said], name: str) -> Preference | None:
    """Shares of the annotators who prefer the first, neither, the second; see `Answers.settle`."""
    people = _by_person(one for one in said if name in one.labels)
    able = [_vote(one.labels[name] for one in own) for own in people]
    votes = [vote for vote in able if vote is not None]
    if not votes or 2 * len(votes) < len(able):
        return None
    return Preference(*(fmean(share) for share in zip(*votes, strict=True)))


def _vote(choices: Iterable[Choice]) -> tuple[float, float, float] | None:
    """One annotator's vote; None where they mostly cannot say."""
    counts = Counter(choices)
    unable = counts.pop("invalid", 0)
    able = counts.total()
    if not able or unable > able:
        return None
    shares = [sum(VOTES[c][i] * n for c, n in counts.items()) / able for i in range(3)]
    return shares[0], shares[1], shares[2]
