"""People as critics: the run writes a page of questions, stops, and goes on from their answers.

Answers belong to videos and prompts, not to runs: no run or round asks again what the folder of
answers has.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

from ipo_lightning.critics.people.annotations import NO_DIMS, OVERALL
from ipo_lightning.critics.people.answers import Answers, Key, key_of, read_answers
from ipo_lightning.critics.people.page import EMBED_MIB, PAGE, write_page
from ipo_lightning.critics.people.questions import plan
from ipo_lightning.critics.protocols import AnswersPending, Comparison, Question
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.errors import InputError
from ipo_lightning.settings import Above, AtMost, Count, NotNegative, Says, Share, Text, checked
from ipo_lightning.storage.run_files import read_typed
from ipo_lightning.storage.store import fingerprint, write_jsonl

ASKED_FILE = "questions.jsonl"
SECONDS = 8.0
"""Of an answer, for the estimate of time until annotators' own pace is known."""
Names = Annotated[Sequence[Text], Says("a list of names, such as [VQ, MQ]")]
NOT_ANSWERED = "not answered"


class Batch(NamedTuple):
    """Questions that were put to people in one request."""

    folder: Path
    questions: list[Question]


@checked
class HumanCritic:
    """A `RecordedCritic` with the verdicts of people.

    Args:
        answers: a folder of annotators' ``.jsonl`` files, or one such file. Pages are written into
            the folder (of the file).
        annotators: how many people answer each question; each has a page of their own.
        dims: dimensions that are asked before the whole verdict: ``VQ``, ``MQ``, ``TA`` or names of
            your own.
        repeats: share of the questions that are shown again with sides swapped, in [0, 1]: it
            measures how far annotators agree with themselves. They are not told.
        min_answered: share of a batch of questions, in (0, 1], that must be answered before the run
            goes on; the others then have no verdict.
        seed: of orders and sides.
        embed_mib: MiB of videos within a page; with more, they are files in a folder next to it.
    """

    def __init__(
        self,
        answers: Text,
        *,
        annotators: Count = 1,
        dims: Names = (),
        repeats: Share = 0.1,
        min_answered: Annotated[float, Above(0), AtMost(1)] = 1.0,
        seed: int = 0,
        embed_mib: NotNegative = EMBED_MIB,
    ) -> None:
        if taken := [name for name in dims if name in NO_DIMS]:
            field = f"{taken[0]} is the name of a field; choose another"
            raise InputError(setting="dims", expected=field)
        self.path = Path(answers)
        if self.path.suffix and not self.path.is_dir() and self.path.suffix != ".jsonl":
            kinds = "give a folder or a .jsonl file"
            raise InputError(setting="answers", value=answers, expected=kinds)
        self.folder = self.path.parent if self.path.suffix == ".jsonl" else self.path
        self.annotators = [str(number + 1) for number in range(annotators)]
        self.dims, self.repeats, self.min_answered = tuple(dims), repeats, min_answered
        self.seed, self.embed_mib = seed, embed_mib
        self._answers: Answers | None = None
        self._given_up: set[Key] | None = None

    @property
    def answers(self) -> Answers:
        """The answers so far, read once."""
        if self._answers is None:
            self._answers = read_answers(self.path)
        return self._answers

    @property
    def identity(self) -> str:
        """With the content of the answers: new answers make new verdicts."""
        rules = {"annotators": len(self.annotators), "enough": self.min_answered}
        known = fingerprint([self.answers.content, rules])
        return f"people@{known[:16]}#page-{PAGE}"

    def cost(self, video: Watched) -> Cost:
        """Nothing of a device, see `cost_of`."""
        return Cost("people", "none")

    def recall(self, question: Question) -> Comparison | None:
        """As `RecordedCritic.recall`. An unanswered question of a batch of which ``min_answered``
        are answered has no verdict."""
        if self._waits_for(question):
            if key_of(question.prompt, question.first, question.second)[0] not in self._spared():
                return None
            return self.answers.settle(question) or Comparison(None, fault=NOT_ANSWERED)
        return self.answers.settle(question)

    def request(self, unanswered: Sequence[Question], find: Callable[[str], Path]) -> NoReturn:
        """Write a page for each annotator with open questions.

        Raises:
            AnswersPending: always; it names the pages.
        """
        name = fingerprint([self.dims, self.repeats, self.seed, sorted(unanswered)])[:12]
        batch = self.folder / f"questions-{name}"
        pages = []
        for annotator in self.annotators:
            own = [q for q in unanswered if annotator not in self.answers.annotators(q)]
            if not own:
                continue
            shown = plan(own, annotator=annotator, seed=self.seed, repeats=self.repeats)
            page = batch / f"page-{annotator}.html"
            pages.append(
                (write_page(page, shown, annotator, self.dims, find, self.embed_mib), len(shown))
            )
        write_jsonl(batch / ASKED_FILE, (question._asdict() for question in unanswered))
        raise AnswersPending(self._message(pages, len(unanswered)))

    def notes(self) -> list[str]:
        """Lines on each annotator, and on answers that match no question."""
        lines = [account.line() for account in self.answers.accounts()]
        asked = {_key(q) for batch in self._batches() for q in batch.questions}
        strange = len(self.answers.by_question.keys() - asked) if asked else 0
        if strange:
            lines.append(f"{strange} answered pairs match no question of these pages")
        return lines

    def _waits_for(self, question: Question) -> bool:
        return self.answers.people(question) < len(self.annotators)

    def _spared(self) -> set[Key]:
        """The questions of batches of which ``min_answered`` are answered."""
        if self._given_up is None:
            self._given_up = {
                _key(question)
                for batch in self._batches()
                if self._answered(batch) >= self.min_answered
                for question in batch.questions
            }
        return self._given_up

    def _answered(self, batch: Batch) -> float:
        waiting = sum(self._waits_for(question) for question in batch.questions)
        return 1 - waiting / max(len(batch.questions), 1)

    def _batches(self) -> list[Batch]:
        found = sorted(self.folder.glob(f"questions-*/{ASKED_FILE}"))
        return [Batch(f.parent, read_typed(f, Question)) for f in found]

    def _message(self, pages: Sequence[tuple[Path, int]], questions: int) -> str:
        paces = [one.seconds for one in self.answers.accounts() if one.seconds is not None]
        pace = max(paces, default=SECONDS * len({*self.dims, OVERALL}))
        minutes = max(1, round(max(count for _, count in pages) * pace / 60))
        opened = "\n".join(f"  open   {page} ({count} to answer)" for page, count in pages)
        many = len(pages) > 1
        put = self.folder if self.path == self.folder else f"{self.path}, added to its lines"
        wait = "questions wait" if questions > 1 else "question waits"
        time = f"{minutes} minute{'s' if minutes > 1 else ''}"
        return (
            f"{questions} {wait} for people, about {time}"
            f"{' for each person' if many else ''}:\n{opened}\n"
            f"  answer in a browser{', a page a person' if many else ''}; no network is needed\n"
            f"  put    the downloaded file{'s' if many else ''} into {put}"
            + "".join(f"\n{note}" for note in self.notes())
        )


def _key(question: Question) -> Key:
    return key_of(question.prompt, question.first, question.second)[0]
