"""The critique stage: every question is put to the critic once, and its answer kept.

What is common to critics that rate and critics that compare is here, with the former;
`ipo_lightning.critics.stage.comparing` has the latter.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any, Generic, TypeVar

import torch

from ipo_lightning.critics.protocols import (
    CombinedCritic,
    Comparison,
    Critic,
    PointCritic,
    Rating,
    check_ready,
)
from ipo_lightning.errors import InputError, within
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.records import Answer, Candidate, Verdict
from ipo_lightning.storage.store import Store, fingerprint
from ipo_lightning.video import Clip, read_video

OnCandidates = Callable[[Sequence[Candidate]], Future[None]]
"""Told of candidates as soon as they are in the store."""
Base = Mapping[tuple[int, int], str]
"""Prompt index and candidate -> name of the base model's video of the same prompt and seed."""

C = TypeVar("C", bound=Critic)
Asked = TypeVar("Asked")
Said = TypeVar("Said", Rating, Comparison)


class CritiqueStage(ABC):
    """Finds out what a critic says of candidates, and what the store does not know yet."""

    store: Store

    @property
    @abstractmethod
    def identity(self) -> str:
        """The critic's."""

    @abstractmethod
    def judge(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> Sequence[Answer]:
        """What the critic says of a round's candidates."""

    @abstractmethod
    def score(
        self,
        candidates: Sequence[Candidate],
        base: Base | None,
        workers: Workers,
        device: str,
        label: str,
    ) -> list[Verdict]:
        """One score a candidate, in order, that tells policies apart.

        Args:
            base: the base model's videos; None where the candidates are these.
        """

    @abstractmethod
    def calls(self, count: int) -> int:
        """About how many answers judging ``count`` candidates of a prompt takes."""

    @property
    @abstractmethod
    def score_calls(self) -> int:
        """How many answers a score takes that is not the base model's own."""

    @abstractmethod
    def _todo(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """The candidates of which something is yet to be asked, in units of work."""

    @abstractmethod
    def ready(self) -> None:
        """Refuse a critic that lacks something, before videos are made for it.

        Raises:
            InputError: says what is missing.
        """

    def missing(self, candidates: Sequence[Candidate]) -> int:
        """How many candidates something is yet to be asked of."""
        return sum(len(unit) for unit in self._todo(candidates))

    @contextmanager
    def beside(self, device: str) -> Iterator[OnCandidates | None]:
        """How to put videos to the critic while others are made; None where it would be in the way
        or is never asked."""
        yield None


class AskingStage(CritiqueStage, Generic[C]):
    """Asks a critic for what the store does not know yet.

    The key of an answer is what was shown, the prompt and the critic's identity: changing the
    labelling asks nothing again, and an interrupted stage goes on where it stopped. An answer that
    is transient, as after a time-out, stands on all ranks for as long as a stage lasts; the next
    one that wants it asks again.
    """

    critic: C

    @property
    def identity(self) -> str:
        """See `CritiqueStage`."""
        return self.critic.identity

    def ready(self) -> None:
        """See `CritiqueStage`."""
        check_ready(self.critic)

    @abstractmethod
    def _ask(self, candidates: Sequence[Candidate]) -> None:
        """Put a unit, or several, to the critic and keep the answers."""

    def _run(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> None:
        todo = workers.agree(self._todo(candidates))
        size = self._prompts_per_call(len(todo), workers.world)
        calls = [[*chain(*todo[at : at + size])] for at in range(0, len(todo), size)]
        unit = "prompts" if size == 1 else f"x {size} prompts"
        with self._loaded(device) if todo else nullcontext():
            workers.run(calls, self._ask, label, unit)

    def _prompts_per_call(self, units: int, world: int) -> int:
        """How many units go into a call: what the critic wishes, while every rank has some."""
        wished = int(getattr(self.critic, "prompts_per_call", 1))
        return max(1, min(wished, units // world))

    @contextmanager
    def _loaded(self, device: str) -> Iterator[None]:
        """The critic in memory, which it gives back however this ends.

        Raises:
            InputError: it needs more memory than the device has.
        """
        try:
            self.critic.load(device)
            yield
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{self.identity} needs more memory than {device} has: show it fewer or smaller "
                "frames (viewing, frames), one video at a time (batch_size=1), or choose a smaller "
                "critic, or one behind an address"
            ) from error
        finally:
            self.critic.release()

    @contextmanager
    def beside(self, device: str) -> Iterator[OnCandidates | None]:
        """See `CritiqueStage`.

        At the end, videos that it has not begun with are left to the critique stage, and so are
        all after a failure, which comes up there if it lasts.
        """
        if not getattr(self.critic, "beside", False):
            yield None
            return
        failures: list[Exception] = []
        loaded: list[C] = []

        def ask(candidates: Sequence[Candidate]) -> None:
            if failures:
                return
            try:
                if not loaded:
                    loaded.append(self.critic)
                    self.critic.load(device)
                for siblings in self._todo(candidates):
                    self._ask(siblings)
            except Exception as error:
                failures.append(error)

        pool = ThreadPoolExecutor(1, "critic")
        try:
            yield lambda candidates: pool.submit(ask, candidates)
        finally:
            pool.shutdown(cancel_futures=True)
            if loaded:
                self.critic.release()
        if failures:
            warnings.warn(
                f"{self.critic.identity} failed beside the rollout ({failures[0]}); it is asked "
                "again in the critique stage", stacklevel=3,
            )  # fmt: skip

    def _clip(self, video: str) -> Clip:
        return read_video(self.store.path("videos", video, ".mp4"))

    def _known(self, key: str) -> bool:
        """Whether a question need not be asked (again)."""
        answer = self.store.get_record("verdicts", key)
        return answer is not None and not answer.get("transient")

    def _matched(
        self, asked: Sequence[Asked], said: Sequence[Said]
    ) -> Iterator[tuple[Asked, Said]]:
        """Each question with its answer; where their numbers differ, nobody knows whose is whose.

        Raises:
            InputError: they differ; nothing may be kept.
        """
        if len(asked) != len(said):
            raise InputError(
                f"{self.identity} gave {len(said)} answers to {len(asked)} questions: a critic "
                "gives one each, in order (docs/extending.md)"
            )
        return zip(asked, said, strict=True)

    def _answer(self, key: str) -> dict[str, Any]:
        """What the store has as the answer to a question that has been asked."""
        answer: dict[str, Any] | None = self.store.get_record("verdicts", key)
        if answer is None:
            raise OSError(f"{self.store.root}: the verdict {key} is gone; do all ranks see this "
                          "folder?")  # fmt: skip
        return answer


class Rated(CritiqueStage):
    """Of critics that rate one video at a time."""

    @abstractmethod
    def judge(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Verdict]:
        """One verdict a candidate, in order."""

    def score(
        self,
        candidates: Sequence[Candidate],
        base: Base | None,
        workers: Workers,
        device: str,
        label: str,
    ) -> list[Verdict]:
        """As `judge`: a rating tells policies apart without their base."""
        return self.judge(candidates, workers, device, label)


class Critique(Rated, AskingStage[PointCritic]):
    """Puts every video to a critic that rates one at a time."""

    def __init__(self, critic: PointCritic, store: Store) -> None:
        self.critic, self.store = critic, store

    def judge(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Verdict]:
        """See `Rated`."""
        self._run(candidates, workers, device, label)
        return [self._verdict(candidate) for candidate in candidates]

    def calls(self, count: int) -> int:
        """A rating each."""
        return count

    @property
    def score_calls(self) -> int:
        """A rating."""
        return 1

    def _todo(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """The unjudged candidates, by prompt; two of the same pixels and prompt are asked once."""
        unasked: dict[str, Candidate] = {}
        for candidate in candidates:
            key = self._key(candidate)
            if key not in unasked and not self._known(key):
                unasked[key] = candidate
        groups: dict[str, list[Candidate]] = {}
        for candidate in unasked.values():
            groups.setdefault(candidate.prompt, []).append(candidate)
        return list(groups.values())

    def _ask(self, candidates: Sequence[Candidate]) -> None:
        clips = [self._clip(one.video) for one in candidates]
        ratings = self.critic.rate(clips, [one.prompt for one in candidates])
        for candidate, rating in self._matched(candidates, ratings):
            self.store.put_record("verdicts", self._key(candidate), _plain(rating))

    def _key(self, candidate: Candidate) -> str:
        return fingerprint([candidate.video, candidate.prompt, self.critic.identity])

    def _verdict(self, candidate: Candidate) -> Verdict:
        answer = self._answer(self._key(candidate))
        answer.pop("transient", None)
        return Verdict(
            prompt_index=candidate.prompt_index,
            candidate=candidate.candidate,
            video=candidate.video,
            critic=self.critic.identity,
            **answer,
        )


class CombinedCritique(Rated):
    """Puts every video to each member of a critic in turn, and combines what they said."""

    def __init__(self, critic: CombinedCritic, store: Store) -> None:
        self.critic, self.store = critic, store
        self.stages = {name: Critique(member, store) for name, member in critic.members.items()}

    @property
    def identity(self) -> str:
        """See `CritiqueStage`."""
        return self.critic.identity

    def ready(self) -> None:
        """See `CritiqueStage`."""
        for name, stage in self.stages.items():
            with within(f"members.{name}"):
                stage.ready()
        _ = self.identity  # which may tell that it was normalised for other members

    def judge(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Verdict]:
        """See `Rated`."""
        said = [
            stage.judge(candidates, workers, device, f"{label}: {name}")
            for name, stage in self.stages.items()
        ]
        return [self._combined(verdicts) for verdicts in zip(*said, strict=True)]

    def calls(self, count: int) -> int:
        """A rating of each member."""
        return count * len(self.stages)

    @property
    def score_calls(self) -> int:
        """A rating of each member."""
        return len(self.stages)

    def _todo(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        return [unit for stage in self.stages.values() for unit in stage._todo(candidates)]

    def _combined(self, verdicts: Sequence[Verdict]) -> Verdict:
        """The members' verdicts on one video as one."""
        ratings = {
            name: Rating(one.score, one.dims, one.certainty, one.raw, one.fault)
            for name, one in zip(self.stages, verdicts, strict=True)
        }
        answer = _plain(self.critic.combine(ratings))
        answer.pop("transient", None)
        return replace(verdicts[0], critic=self.identity, **answer)


def _plain(rating: Rating) -> dict[str, Any]:
    """A rating as JSON; a score that is not finite is none."""
    score = rating.score
    finite = score is not None and math.isfinite(score)
    return plain(rating, "score", float(score) if score is not None and finite else None)


def plain(said: Rating | Comparison, name: str, verdict: Any, wrong: str = "not a number") -> Any:
    """What a critic said as JSON, which has no words for NaN and infinity.

    Args:
        name: of the field that ``said`` begins with.
        verdict: its value as JSON; None: there is no verdict, or it was refused.
        wrong: the fault where it was refused.
    """
    fault = said.fault or ("unreadable" if said[0] is None else wrong)
    answer = {
        name: verdict,
        "dims": {key: float(value) for key, value in said.dims.items() if math.isfinite(value)},
        "certainty": float(said.certainty) if math.isfinite(said.certainty) else 0.0,
        "raw": said.raw,
        "fault": fault if verdict is None else "",
    }
    return answer | ({"transient": True} if said.transient else {})
