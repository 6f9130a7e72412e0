"""The answers of one critic: each question is put to it once, and its answer kept in the store."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from ipo_lightning.critics.protocols import Comparison, Critic, Rating
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.computing import Calls, Here, Sent, itself
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.records import Candidate
from ipo_lightning.storage.store import LostBlob, Store, fingerprint
from ipo_lightning.video import Clip, VideoFile

Q = TypeVar("Q", bound=tuple[str, ...])
"""A question: the names (sha256) of the videos that are shown, in order, then the prompt."""
A = TypeVar("A", bound=Rating | Comparison)

Clips = Mapping[str, Clip]
"""The videos of a call by name."""
OnCandidates = Callable[[Sequence[Candidate]], Future[None]]
"""Called with a prompt's candidates as soon as they are in the store."""


class Unanswered(NamedTuple, Generic[Q]):
    """A prompt that the critic must be asked about."""

    candidates: list[Candidate]
    questions: list[Q]
    """What can be asked now; a tournament has further questions once these are answered."""


FindUnanswered = Callable[[Sequence[Candidate], Callable[[Q], bool]], list[Unanswered[Q]]]
"""(candidates, whether a question is answered) -> the prompts with questions that are not."""


class AnswerCache(Generic[Q, A]):
    """What a critic answers, computed where the store does not have it.

    An answer's key is made of the videos, the prompt and the critic's identity. So other settings
    of the labelling ask no question again, and an interrupted stage goes on where it stopped. A
    transient answer, as after a time-out, counts until the end of the stage that got it; the next
    stage asks again.

    Args:
        critic: whose answers these are.
        store: where they are kept, and the videos lie.
        put: puts questions to a critic in one call: one answer each, in order. A function of a
            module, so that it can be sent elsewhere.
        sound: an answer as it is kept: JSON has no NaN and no infinity.
        read: an answer of its record, which is its fields by name but for ``transient``.
        shown: what a name in a question stands for, with a ``read()`` for who asks the critic;
            None: an mp4 file.
    """

    def __init__(
        self,
        critic: Critic,
        store: Store,
        put: Callable[[Any, Sequence[Q], Clips], Sequence[A]],
        sound: Callable[[A], A],
        read: Callable[[Mapping[str, Any]], A],
        shown: "Callable[[Store, str], Any] | None" = None,
    ) -> None:
        self.shown = shown or video_file
        self.critic, self.store = critic, store
        self._put, self._sound, self._read = put, sound, read

    def key(self, question: Q) -> str:
        """The name of the answer's record."""
        return fingerprint([*question, self.critic.identity])

    def knows(self, question: Q) -> bool:
        """Whether the question need not be asked (again)."""
        record = self.store.get_record("verdicts", self.key(question))
        return record is not None and not record.get("transient")

    def recall(self, question: Q) -> A:
        """The answer to a question that was asked.

        Raises:
            LostBlob: the store does not have it, as where a video of its was damaged.
        """
        key = self.key(question)
        record = self.store.get_record("verdicts", key)
        if record is None:
            raise LostBlob(f"{self.store.root}: the verdict {key} is gone; do all ranks see this "
                          "folder?")  # fmt: skip
        return self._read({name: record[name] for name in record if name != "transient"})

    def ask(self, questions: Sequence[Q], calls: Calls | None = None) -> None:
        """Put questions to the critic in one call and keep its answers.

        Raises:
            InputError: the critic gave another number of answers; none is kept.
            LostBlob: a video is missing from the store or was damaged.
        """
        names = dict.fromkeys(name for question in questions for name in question[:-1])
        files = {name: self.shown(self.store, name) for name in names}
        calls = calls or Here(self.critic)
        answers = calls.finish(calls.start(answered, self._put, questions, files), itself)
        if len(answers) != len(questions):
            raise InputError(
                f"{self.critic.identity} gave {len(answers)} answers to {len(questions)} "
                "questions: a critic gives one each, in order (docs/extending.md)"
            )
        with self.store.together() as unit:
            for question, answer in zip(questions, answers, strict=True):
                record = self._sound(answer)._asdict()
                marked = {"transient": True} if record.pop("transient") else {}
                unit.put_record("verdicts", self.key(question), record | marked)

    def missing(self, candidates: Sequence[Candidate], find: FindUnanswered[Q]) -> int:
        """How many candidates the critic must yet be asked about."""
        return sum(len(one.candidates) for one in find(candidates, self.knows))

    def fill(
        self,
        candidates: Sequence[Candidate],
        find: FindUnanswered[Q],
        workers: Workers,
        device: str,
        label: str,
    ) -> None:
        """Ask until every question about the candidates has an answer, the work shared by ranks.

        Raises:
            InputError: the critic needs more memory than the device has.
        """
        prompts = workers.agree(lambda: [one.candidates for one in find(candidates, self.knows)])
        if not prompts:
            return
        if getattr(self.critic, "during_rollout", False):  # behind an address, which is this host's
            workers = replace(workers, engine=None)
        use = CriticUse(self.critic, device)
        with memory_named(self.critic, device), workers.computing(use, len(prompts)) as calls:
            self._ask_in_calls(prompts, find, workers, label, calls)

    def _ask_in_calls(
        self,
        prompts: Sequence[Sequence[Candidate]],
        find: FindUnanswered[Q],
        workers: Workers,
        label: str,
        calls: Calls,
    ) -> None:
        """Ask about the prompts, some in a call."""
        size = self._prompts_per_call(len(prompts), workers.world)
        parts = [[*chain(*prompts[at : at + size])] for at in range(0, len(prompts), size)]
        unit = "prompts" if size == 1 else f"x {size} prompts"
        workers.run(parts, lambda some: self._ask_all(some, find, calls), label, unit, calls=calls)

    @contextmanager
    def during_rollout(self, device: str, find: FindUnanswered[Q]) -> Iterator[OnCandidates | None]:
        """Give a function that asks about a prompt's candidates in a thread of the critic's own.

        It is None where the critic has no ``during_rollout``, see `Critic`. At the end, videos that
        the thread has not begun with are left to the critique stage. After a failure all are: if it
        lasts, it comes up there.
        """
        if not getattr(self.critic, "during_rollout", False):
            yield None
            return
        failures: list[Exception] = []
        asked: list[Critic] = []

        def ask(candidates: Sequence[Candidate]) -> None:
            if failures:
                return
            try:
                if not asked:
                    asked.append(self.critic)
                    self.critic.load(device)
                for one in find(candidates, self.knows):
                    self._ask_all(one.candidates, find)
            except Exception as error:
                failures.append(error)

        pool = ThreadPoolExecutor(1, "critic")
        try:
            yield lambda candidates: pool.submit(ask, candidates)
        finally:
            pool.shutdown(cancel_futures=True)
            if asked:
                self.critic.release()
        if failures:
            warnings.warn(
                f"{self.critic.identity} failed during the rollout ({failures[0]}); it is asked "
                "again in the critique stage", stacklevel=3,
            )  # fmt: skip

    def _ask_all(
        self, candidates: Sequence[Candidate], find: FindUnanswered[Q], calls: Calls | None = None
    ) -> None:
        """Ask in as many calls as it takes, each question at most once."""
        asked: set[Q] = set()

        def answered(question: Q) -> bool:
            return question in asked or self.knows(question)

        while prompts := find(candidates, answered):
            # Two prompts may be the same words.
            questions = list(dict.fromkeys(one for prompt in prompts for one in prompt.questions))
            asked.update(questions)
            self.ask(questions, calls)

    def _prompts_per_call(self, prompts: int, world: int) -> int:
        """The critic's ``prompts_per_call``, or fewer, so that every rank has some to ask about."""
        wanted = int(getattr(self.critic, "prompts_per_call", 1))
        return max(1, min(wanted, prompts // world))


def video_file(store: Store, name: str) -> VideoFile:
    """A video as critics see it.

    Raises:
        LostBlob: it is gone, or was damaged.
    """
    return VideoFile(store.check("videos", name, ".mp4"))


def answered(
    critic: Any,
    put: Callable[[Any, Sequence[Q], Clips], Sequence[A]],
    questions: Sequence[Q],
    files: Mapping[str, Any],
) -> Sequence[A]:
    """What a critic answers to questions about what is in these files."""
    return put(critic, questions, {name: file.read() for name, file in files.items()})


class CriticUse(NamedTuple):
    """A critic as questions are put to it, a `Use`: here on ``device``, or loaded elsewhere."""

    critic: Any
    device: str

    @contextmanager
    def here(self) -> Iterator[Any]:
        """The critic in memory; it is released whatever happens."""
        try:
            self.critic.load(self.device)
            yield self.critic
        finally:
            self.critic.release()

    def sent(self) -> Sent:
        """The critic, which is to be loaded there."""
        return Sent("critic", f"critic {self.critic.identity}", CriticBuilder(self.critic))


class CriticBuilder(NamedTuple):
    """Loads a critic; a `Builder`."""

    critic: Any

    def build(self, device: str) -> Any:
        """The critic in memory."""
        self.critic.load(device)
        return self.critic

    def put(self, built: Any, weights: Any) -> None:
        """It is sent none."""

    def release(self, built: Any) -> None:
        """Free its memory."""
        built.release()


@contextmanager
def memory_named(critic: Critic, device: str) -> Iterator[None]:
    """Say what to do where a critic needs too much memory.

    Raises:
        InputError: it needs more memory than the device has.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{critic.identity} needs more memory than {device} has: show it fewer or "
            "smaller frames (viewing, frames), one video at a time (batch_size=1), or choose a "
            "smaller critic, or one on a server (critic/vlm=openai)"
        ) from error


def finite_dims(dims: Mapping[str, float]) -> dict[str, float]:
    """The dimensions that have a finite value."""
    return {name: float(value) for name, value in dims.items() if math.isfinite(value)}


def finite_certainty(certainty: float) -> float:
    """The certainty; 0 where it is not finite."""
    return float(certainty) if math.isfinite(certainty) else 0.0
