"""What a run asks of its critics, whichever kind they are: `critique_of` finds the kind."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from ipo_lightning.critics.protocols import (
    AnswersPending,
    CombinedCritic,
    Comparison,
    PairCritic,
    PointCritic,
    Question,
    RecordedCritic,
    check_ready,
    kind_of,
)
from ipo_lightning.critics.stage.answer_cache import OnCandidates, Unanswered
from ipo_lightning.critics.stage.comparing import (
    AGAINST_BASE,
    BaseVideos,
    Couples,
    Tournaments,
    against_base,
    compare,
    comparisons_of,
    pair_verdict,
    score_of,
    score_of_base,
    tournaments_of,
    twin,
)
from ipo_lightning.critics.stage.rating import (
    question_of,
    rate,
    ratings_of,
    sound_rating,
    unrated,
    verdict,
)
from ipo_lightning.labelling.tournaments import Schedule, play
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.records import AnyVerdict, Candidate, PairVerdict, Verdict
from ipo_lightning.storage.store import Store


class Critique(Protocol):
    """A critic as a run asks it."""

    @property
    def identity(self) -> str:
        """The critic's."""
        ...

    def ready(self) -> None:
        """Check that the critic can be asked, before videos are made for it.

        Raises:
            InputError: says what it lacks.
        """
        ...

    def ask(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> Sequence[AnyVerdict]:
        """The verdicts on a round's candidates."""
        ...

    def score(
        self,
        candidates: Sequence[Candidate],
        base: BaseVideos | None,
        workers: Workers,
        device: str,
        label: str,
    ) -> list[Verdict]:
        """A score for each candidate, in order, by which policies can be compared.

        Args:
            base: the base model's videos; None where the candidates are these.
        """
        ...

    def missing(self, candidates: Sequence[Candidate]) -> int:
        """How many candidates the critic must yet be asked about."""
        ...

    def during_rollout(self, device: str) -> AbstractContextManager[OnCandidates | None]:
        """How to ask about videos while others are made; None where the critic is asked after."""
        ...

    def calls(self, count: int) -> int:
        """About how many answers `ask` needs for ``count`` candidates of a prompt."""
        ...

    @property
    def score_calls(self) -> int:
        """How many answers the score of a video needs."""
        ...

    @property
    def base_calls(self) -> int:
        """How many answers the score of a video of the base model needs."""
        ...


def critique_of(
    critic: Any,
    store: Store,
    couples: Couples = Couples(),  # noqa: B008 - frozen
    *,
    held_out: bool = False,
) -> Critique:
    """A critic as a run asks it, by its methods: one that can rate is asked to.

    Args:
        couples: what a critic that compares is asked.
        held_out: whether it is the held-out judge of the evaluation.

    Raises:
        InputError: it is no critic.
    """
    kind = kind_of(critic)
    if kind == "compares":
        return PairCritique(critic, store, couples)
    if kind == "recorded":
        return RecordedCritique(critic, store, couples, held_out)
    if hasattr(critic, "members"):
        return CombinedCritique(critic, store)
    return PointCritique(critic, store)


@contextmanager
def not_during_rollout() -> Iterator[OnCandidates | None]:
    """The critic is asked after the rollout."""
    yield None


class PointCritique:
    """A critic that rates one video at a time."""

    score_calls = 1
    base_calls = 1

    def __init__(self, critic: PointCritic, store: Store) -> None:
        self.critic, self.store = critic, store
        self.ratings = ratings_of(critic, store)

    @property
    def identity(self) -> str:
        return self.critic.identity

    def ready(self) -> None:
        check_ready(self.critic)

    def ask(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Verdict]:
        return rate(self.ratings, candidates, workers, device, label)

    def score(
        self,
        candidates: Sequence[Candidate],
        base: BaseVideos | None,
        workers: Workers,
        device: str,
        label: str,
    ) -> list[Verdict]:
        """The ratings: they compare policies without the base model's videos."""
        return self.ask(candidates, workers, device, label)

    def missing(self, candidates: Sequence[Candidate]) -> int:
        return self.ratings.missing(candidates, unrated)

    def during_rollout(self, device: str) -> AbstractContextManager[OnCandidates | None]:
        return self.ratings.during_rollout(device, unrated)

    def calls(self, count: int) -> int:
        return count


class CombinedCritique:
    """A critic that combines what its members say: each member is asked about all videos in turn.

    One member is in memory at a time.
    """

    def __init__(self, critic: CombinedCritic, store: Store) -> None:
        self.critic, self.store = critic, store
        self.members = {name: PointCritique(one, store) for name, one in critic.members.items()}
        self.score_calls = self.base_calls = len(self.members)

    @property
    def identity(self) -> str:
        return self.critic.identity

    def ready(self) -> None:
        for member in self.members.values():
            member.ready()
        _ = self.identity  # which may tell that it was normalised for other members

    def ask(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Verdict]:
        for name, member in self.members.items():
            member.ratings.fill(candidates, unrated, workers, device, f"{label}: {name}")
        return [self._verdict(one) for one in candidates]

    def score(
        self,
        candidates: Sequence[Candidate],
        base: BaseVideos | None,
        workers: Workers,
        device: str,
        label: str,
    ) -> list[Verdict]:
        """The ratings, as of a `PointCritique`."""
        return self.ask(candidates, workers, device, label)

    def missing(self, candidates: Sequence[Candidate]) -> int:
        return sum(member.missing(candidates) for member in self.members.values())

    def during_rollout(self, device: str) -> AbstractContextManager[OnCandidates | None]:
        return not_during_rollout()

    def calls(self, count: int) -> int:
        return count * len(self.members)

    def _verdict(self, candidate: Candidate) -> Verdict:
        """The members' ratings of one video as one verdict."""
        question = question_of(candidate)
        said = {name: one.ratings.recall(question) for name, one in self.members.items()}
        return verdict(candidate, self.identity, sound_rating(self.critic.combine(said)))


class PairCritique:
    """A critic that compares two videos of a prompt."""

    score_calls = 2  # the video and the base model's, in both orders
    base_calls = 0

    def __init__(
        self,
        critic: PairCritic,
        store: Store,
        couples: Couples = Couples(),  # noqa: B008 - frozen
    ) -> None:
        self.critic, self.store, self.couples = critic, store, couples
        self.comparisons = comparisons_of(critic, store)

    @property
    def identity(self) -> str:
        return self.critic.identity

    def ready(self) -> None:
        check_ready(self.critic)

    def ask(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[PairVerdict]:
        return compare(self.comparisons, candidates, self.couples, workers, device, label)

    def score(
        self,
        candidates: Sequence[Candidate],
        base: BaseVideos | None,
        workers: Workers,
        device: str,
        label: str,
    ) -> list[Verdict]:
        """The chances to beat the base model's videos, a tie counting half."""
        if base is None:
            return [score_of_base(one, self.identity) for one in candidates]

        def compare_all(some: Sequence[Candidate]) -> list[PairVerdict]:
            return compare(self.comparisons, some, AGAINST_BASE, workers, device, label)

        return against_base(candidates, base, self.store, compare_all)

    def missing(self, candidates: Sequence[Candidate]) -> int:
        return self.comparisons.missing(candidates, self.unanswered)

    def during_rollout(self, device: str) -> AbstractContextManager[OnCandidates | None]:
        return self.comparisons.during_rollout(device, self.unanswered)

    def calls(self, count: int) -> int:
        """Those of a tournament without ties."""
        return couples_of(self.couples.schedule, count) * (2 if self.couples.both_orders else 1)

    def unanswered(
        self, candidates: Sequence[Candidate], answered: Callable[[Question], bool]
    ) -> list[Unanswered[Question]]:
        """The prompts whose tournament waits for answers."""
        return tournaments_of(self.comparisons, self.couples).unanswered(candidates, answered)


class RecordedCritique:
    """A critic whose comparisons come from elsewhere: all that are missing are requested at once.

    Args:
        critic, store, couples: as of `PairCritique`. The critic swaps sides itself: each couple is
            one question.
        held_out: whether scores are requested too, as from a held-out judge. Else a video that has
            not been compared with the base model's has no score.
    """

    base_calls = 0

    def __init__(
        self,
        critic: RecordedCritic,
        store: Store,
        couples: Couples = Couples(),  # noqa: B008 - frozen
        held_out: bool = False,
    ) -> None:
        self.critic, self.store, self.couples, self.held_out = critic, store, couples, held_out
        self.score_calls = 1 if held_out else 0

    @property
    def identity(self) -> str:
        return self.critic.identity

    def ready(self) -> None:
        """Always: answers that are missing are requested."""

    def ask(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[PairVerdict]:
        """The verdicts on a round's candidates.

        Raises:
            AnswersPending: somebody must answer first; the open questions of all prompts were
                requested.
        """
        return self._ask(candidates, self.couples, workers)

    def score(
        self,
        candidates: Sequence[Candidate],
        base: BaseVideos | None,
        workers: Workers,
        device: str,
        label: str,
    ) -> list[Verdict]:
        """The chances to beat the base model's videos; of the held-out judge all are requested."""
        if base is None:
            return [score_of_base(one, self.identity) for one in candidates]
        if self.held_out:
            return against_base(
                candidates, base, self.store, lambda some: self._ask(some, AGAINST_BASE, workers)
            )
        return [score_of(self._verdict(one, twin(one, base, self.store))) for one in candidates]

    def missing(self, candidates: Sequence[Candidate]) -> int:
        prompts = self._tournaments(self.couples).unanswered(candidates, self._knows)
        return sum(len(one.candidates) for one in prompts)

    def during_rollout(self, device: str) -> AbstractContextManager[OnCandidates | None]:
        return not_during_rollout()

    def calls(self, count: int) -> int:
        return couples_of(self.couples.schedule, count)

    def _ask(
        self, candidates: Sequence[Candidate], couples: Couples, workers: Workers
    ) -> list[PairVerdict]:
        tournaments = self._tournaments(couples)
        prompts = tournaments.unanswered(candidates, self._knows)
        unanswered = list(dict.fromkeys(one for prompt in prompts for one in prompt.questions))
        unanswered = [Question(*one) for one in workers.agree(unanswered)]
        if unanswered and workers.leads:
            self.critic.request(unanswered, lambda name: self.store.path("videos", name, ".mp4"))
        if unanswered:
            raise AnswersPending(f"{len(unanswered)} comparisons wait for an answer")
        return tournaments.verdicts(candidates, self._knows)

    def _tournaments(self, couples: Couples) -> Tournaments:
        return Tournaments(couples, self._questions, self._verdict)

    def _questions(self, one: Candidate, other: Candidate) -> list[Question]:
        same = one.video == other.video
        return [] if same else [Question(one.video, other.video, one.prompt)]

    def _knows(self, question: Question) -> bool:
        return self.critic.recall(question) is not None

    def _verdict(self, one: Candidate, other: Candidate) -> PairVerdict:
        said: Comparison | None = None
        for question in self._questions(one, other):
            said = self.critic.recall(question) or Comparison(None, fault="not asked")
        found = pair_verdict(one, other, self.identity, said, None)
        return replace(found, shown=())  # which side people saw it on is known to the critic alone


def couples_of(schedule: Schedule, count: int) -> int:
    """How many couples meet in a tournament of ``count`` candidates without ties."""
    return len(play(schedule, count, lambda couples: dict.fromkeys(couples, 1.0)))
