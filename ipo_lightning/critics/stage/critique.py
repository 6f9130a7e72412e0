"""What a run asks of its critics, whichever kind they are: `critique_of` finds the kind."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Protocol

from ipo_lightning.critics.protocols import (
    CombinedCritic,
    Critic,
    LatentCritic,
    PairCritic,
    PointCritic,
    Question,
    check_ready,
    kind_of,
)
from ipo_lightning.critics.stage.answer_cache import OnCandidates, Unanswered
from ipo_lightning.critics.stage.comparing import (
    AGAINST_BASE,
    BaseVideos,
    Couples,
    against_base,
    compare,
    comparisons_of,
    score_of_base,
    tournaments_of,
)
from ipo_lightning.critics.stage.rating import (
    latent_question_of,
    latent_ratings_of,
    question_of,
    rate,
    ratings_of,
    sound_rating,
    unrated,
    verdict,
)
from ipo_lightning.critics.stage.recorded import RecordedCritique
from ipo_lightning.errors import InputError, within
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
        InputError: it is not a critic.
    """
    if hasattr(critic, "rate_latents"):
        raise InputError(
            f"{critic.identity} rates foreseen latents, and no finished videos: it can choose "
            "among drafts alone (rollout.draft.critic)"
        )
    kind = kind_of(critic)
    if kind == "compares":
        return PairCritique(critic, store, couples)
    if kind == "recorded":
        return RecordedCritique(critic, store, couples, held_out)
    if hasattr(critic, "members"):
        return CombinedCritique(critic, store)
    return PointCritique(critic, store)


def draft_critique_of(
    critic: Any,
    store: Store,
    couples: Couples = Couples(),  # noqa: B008 - frozen
) -> Critique:
    """A critic as it is asked about drafts: one of foreseen latents, or any other."""
    if hasattr(critic, "rate_latents"):
        return LatentCritique(critic, store)
    return critique_of(critic, store, couples)


class PointCritique:
    """A critic that rates one video at a time."""

    score_calls = 1
    base_calls = 1

    def __init__(self, critic: PointCritic, store: Store) -> None:
        self.critic: Critic = critic
        self.store, self.ratings = store, ratings_of(critic, store)

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


class LatentCritique(PointCritique):
    """A critic that rates drafts by their latents, which are not decoded."""

    def __init__(self, critic: LatentCritic, store: Store) -> None:
        self.critic, self.store = critic, store
        self.ratings = latent_ratings_of(critic, store)

    def ask(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Verdict]:
        return rate(self.ratings, candidates, workers, device, label, latent_question_of)

    def missing(self, candidates: Sequence[Candidate]) -> int:
        return self.ratings.missing(candidates, partial(unrated, question=latent_question_of))

    def during_rollout(self, device: str) -> AbstractContextManager[OnCandidates | None]:
        return nullcontext()


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
        for name, member in self.members.items():
            with within(f"members.{name}"):
                member.ready()
        _ = self.identity  # which may tell that it was normalised for other members

    def ask(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Verdict]:
        for name, member in self.members.items():
            member.ratings.fill(candidates, unrated, workers, device, f"{label}: {name}")
        return workers.agree(lambda: [self._verdict(one) for one in candidates])

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
        return nullcontext()

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
        return self.couples.meetings(count) * (2 if self.couples.both_orders else 1)

    def unanswered(
        self, candidates: Sequence[Candidate], answered: Callable[[Question], bool]
    ) -> list[Unanswered[Question]]:
        """The prompts whose tournament waits for answers."""
        return tournaments_of(self.comparisons, self.couples).unanswered(candidates, answered)
