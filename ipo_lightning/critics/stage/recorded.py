"""The critique stage of critics whose comparisons are recorded elsewhere, such as people's."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from ipo_lightning.critics.protocols import AnswersPending, Comparison, Question, RecordedCritic
from ipo_lightning.critics.stage.answer_cache import OnCandidates
from ipo_lightning.critics.stage.comparing import (
    AGAINST_BASE,
    BaseVideos,
    Couples,
    Tournaments,
    against_base,
    pair_verdict,
    score_of,
    score_of_base,
    twin,
)
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.records import Candidate, PairVerdict, Verdict
from ipo_lightning.storage.store import Store


class RecordedCritique:
    """A critic whose comparisons come from elsewhere: all that are missing are requested at once.

    Args:
        critic: it swaps sides itself, so each couple is one question.
        store: where the videos lie.
        couples: which candidates meet.
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
        return nullcontext()

    def calls(self, count: int) -> int:
        return self.couples.meetings(count)

    def _ask(
        self, candidates: Sequence[Candidate], couples: Couples, workers: Workers
    ) -> list[PairVerdict]:
        tournaments = self._tournaments(couples)

        def find() -> list[Question]:
            prompts = tournaments.unanswered(candidates, self._knows)
            return list(dict.fromkeys(one for prompt in prompts for one in prompt.questions))

        unanswered = workers.agree(find)
        names = {name: None for question in unanswered for name in question[:-1]}
        workers.agree(lambda: [self._file(name) for name in names])  # damaged ones are made anew
        if unanswered and workers.leads:
            self.critic.request(unanswered, self._file)
        if unanswered:
            raise AnswersPending(f"{len(unanswered)} comparisons wait for an answer")
        return tournaments.verdicts(candidates, self._knows)

    def _tournaments(self, couples: Couples) -> Tournaments:
        return Tournaments(couples, self._questions, self._verdict)

    def _questions(self, one: Candidate, other: Candidate) -> list[Question]:
        same = one.video == other.video
        return [] if same else [Question(one.video, other.video, one.prompt)]

    def _file(self, video: str) -> Path:
        return self.store.check("videos", video, ".mp4")

    def _knows(self, question: Question) -> bool:
        return self.critic.recall(question) is not None

    def _verdict(self, one: Candidate, other: Candidate) -> PairVerdict:
        said: Comparison | None = None
        for question in self._questions(one, other):
            said = self.critic.recall(question) or Comparison(None, fault="not asked")
        found = pair_verdict(one, other, self.identity, said, None)
        return replace(found, shown=())  # which side people saw it on is known to the critic alone
