"""The critique stage of critics that compare: a tournament a prompt, each couple in both orders."""

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import combinations, groupby, permutations
from statistics import fmean
from typing import Any

from ipo_lightning.critics.protocols import (
    AnswersPending,
    Comparison,
    PairCritic,
    Question,
    RecordedCritic,
    kind_of,
)
from ipo_lightning.critics.stage.rating import (
    AskingStage,
    Base,
    CombinedCritique,
    Critique,
    CritiqueStage,
    plain,
)
from ipo_lightning.errors import InputError
from ipo_lightning.labelling.tournaments import (
    Couple,
    Results,
    Schedule,
    next_round,
    opposite,
    play,
    swiss,
)
from ipo_lightning.metrics.preferences import Preference, both_orders, both_orders_of, bradley_terry
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.records import Candidate, Duel, Verdict
from ipo_lightning.storage.store import Store, fingerprint
from ipo_lightning.video import Clip

TWIN = 10**6
"""Added to a candidate's number: its counterpart of the base model, in an evaluation."""
SLACK = 1e-3
"""By which a preference's probabilities may miss 0 and their sum 1: they come rounded, too."""


def nothing_refused(gauges: Mapping[str, float]) -> str | None:
    """Every candidate is worth a question."""
    return None


@dataclass(frozen=True)
class Asking:
    """What is asked of a critic that compares.

    Args:
        schedule: which candidates of a prompt meet (`ipo_lightning.labelling.tournaments`).
        both_orders: whether each couple is shown in both orders; else in one, which its content
            chooses. A critic of people's answers looks after the order itself.
        refuse: gauges -> why a candidate is not worth a question, or None.
    """

    schedule: Schedule = swiss
    both_orders: bool = True
    refuse: Callable[[Mapping[str, float]], str | None] = nothing_refused


class Tournaments(CritiqueStage):
    """What computed and recorded comparisons have in common: which couples meet, and what of it.

    A prompt's tournament is one unit of work: who meets next depends on what was said before.
    """

    asking: Asking

    @abstractmethod
    def judge(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Duel]:
        """The duels of a round's candidates, by prompt, in the order in which they were fought."""

    @abstractmethod
    def _questions(self, one: Candidate, other: Candidate) -> list[Question]:
        """What must be known of two candidates; nothing where their videos are the same."""

    @abstractmethod
    def _settled(self, question: Question) -> bool:
        """Whether a question need not be asked (again)."""

    @abstractmethod
    def _duel(self, one: Candidate, other: Candidate) -> Duel:
        """What the answers make of two candidates."""

    def score(
        self,
        candidates: Sequence[Candidate],
        base: Base | None,
        workers: Workers,
        device: str,
        label: str,
    ) -> list[Verdict]:
        """The chance that a video beats the base model's of the same prompt and seed, a tie
        counting half; 1/2 for the base's own, without asking."""
        if base is None:
            return [_itself(one, self.identity) for one in candidates]
        twins = [_twin(one, base, self.store) for one in candidates]
        stage = copy(self)
        stage.asking = Asking(opposite)
        duels = stage.judge([*candidates, *twins], workers, device, label)
        found = {(duel.prompt_index, duel.first): duel for duel in duels}
        return [_against_base(found[one.prompt_index, one.candidate]) for one in candidates]

    @abstractmethod
    def orders(self) -> int:
        """In how many orders a couple is shown."""

    def calls(self, count: int) -> int:
        """Those of a tournament without ties."""
        played = play(self.asking.schedule, count, lambda couples: dict.fromkeys(couples, 1.0))
        return len(played) * self.orders()

    def _units(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """The candidates that are worth a question, by prompt, in order."""
        counting = [one for one in candidates if self.asking.refuse(one.gauges) is None]
        counting.sort(key=lambda one: (one.prompt_index, one.candidate))
        return [list(unit) for _, unit in groupby(counting, key=lambda one: one.prompt_index)]

    def _todo(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        return [unit for unit in self._units(candidates) if self._walk(unit, self._settled)[1]]

    def _walk(
        self, unit: Sequence[Candidate], settled: Callable[[Question], bool]
    ) -> tuple[list[Duel], list[Question]]:
        """A prompt's duels so far, and what must be answered before its tournament goes on."""
        duels: list[Duel] = []
        rounds: list[Results] = []
        while couples := next_round(self.asking.schedule, len(unit), rounds):
            meeting = [(unit[i], unit[j]) for i, j in couples]
            asked = [question for two in meeting for question in self._questions(*two)]
            unanswered = [question for question in dict.fromkeys(asked) if not settled(question)]
            if unanswered:
                return duels, unanswered
            fought = [self._duel(*two) for two in meeting]
            rounds.append(_results(couples, fought))
            duels += fought
        return duels, []


class PairCritique(Tournaments, AskingStage[PairCritic]):
    """Puts couples of videos to a critic that compares, a round of a tournament in one call.

    Each presentation is a question of its own, kept under both videos in their order, the prompt
    and the critic's identity: another schedule asks only for what was never shown, the second order
    alone where the first is there.
    """

    def __init__(
        self,
        critic: PairCritic,
        store: Store,
        asking: Asking = Asking(),  # noqa: B008 - frozen
    ) -> None:
        self.critic, self.store, self.asking = critic, store, asking

    def judge(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Duel]:
        """See `Tournaments`."""
        self._run(candidates, workers, device, label)
        units = self._units(candidates)
        return [duel for unit in units for duel in self._walk(unit, lambda question: True)[0]]

    def orders(self) -> int:
        """Two, or one where a single order is to do."""
        return 2 if self.asking.both_orders else 1

    @property
    def score_calls(self) -> int:
        """A duel with the base's video, always in both orders."""
        return 2

    def _ask(self, candidates: Sequence[Candidate]) -> None:
        asked: set[Question] = set()  # what has no answer for now is not asked twice in a stage

        def settled(question: Question) -> bool:
            return question in asked or self._settled(question)

        units = self._units(candidates)
        while questions := [one for unit in units for one in self._walk(unit, settled)[1]]:
            questions = list(dict.fromkeys(questions))  # two prompts may be the same words
            asked.update(questions)
            clips = {
                name: self._clip(name) for one in questions for name in (one.first, one.second)
            }
            answers = self.critic.compare(
                [clips[one.first] for one in questions],
                [clips[one.second] for one in questions],
                [one.prompt for one in questions],
            )
            for question, answer in self._matched(questions, answers):
                self.store.put_record("verdicts", self._key(question), _plain(answer))

    def _questions(self, one: Candidate, other: Candidate) -> list[Question]:
        return [question for question in self._orders(one, other) if question is not None]

    def _orders(self, one: Candidate, other: Candidate) -> tuple[Question | None, Question | None]:
        """(one, other) and (other, one), without what is not to be asked."""
        there = Question(one.video, other.video, one.prompt)
        back = Question(other.video, one.video, one.prompt)
        if one.video == other.video:
            return None, None
        if self.asking.both_orders:
            return there, back
        # By content, so that no candidate is first because of its number.
        chosen = int(fingerprint([*sorted([one.video, other.video]), one.prompt]), 16) % 2
        return (there, None) if (one.video < other.video) == bool(chosen) else (None, back)

    def _settled(self, question: Question) -> bool:
        return self._known(self._key(question))

    def _key(self, question: Question) -> str:
        return fingerprint([*question, self.critic.identity])

    def _duel(self, one: Candidate, other: Candidate) -> Duel:
        answers = [
            _comparison(self._answer(self._key(question))) if question else None
            for question in self._orders(one, other)
        ]
        return duel(one, other, self.identity, *answers)


class RecordedCritique(Tournaments):
    """Looks comparisons up, and asks for all that are missing at once.

    Args:
        critic, store, asking: as of `PairCritique`.
        judging: whether scores are asked for too, as of a held-out judge; else what is known of
            them counts, and the rest is missing.
    """

    def __init__(
        self,
        critic: RecordedCritic,
        store: Store,
        asking: Asking = Asking(),  # noqa: B008 - frozen
        judging: bool = False,
    ) -> None:
        self.critic, self.store, self.asking, self.judging = critic, store, asking, judging

    def ready(self) -> None:
        """It is: answers that are not there are asked for."""

    @property
    def identity(self) -> str:
        """See `CritiqueStage`."""
        return self.critic.identity

    def judge(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Duel]:
        """See `Tournaments`.

        Raises:
            AnswersPending: somebody must answer first; what is open of all prompts is asked for.
        """
        walked = [self._walk(unit, self._settled) for unit in self._units(candidates)]
        unanswered = list(dict.fromkeys(one for _, questions in walked for one in questions))
        unanswered = [Question(*one) for one in workers.agree(unanswered)]
        if unanswered and workers.leads:
            self.critic.request(unanswered, lambda name: self.store.path("videos", name, ".mp4"))
        if unanswered:
            raise AnswersPending(f"{len(unanswered)} comparisons wait for an answer")
        return [duel for duels, _ in walked for duel in duels]

    def score(
        self,
        candidates: Sequence[Candidate],
        base: Base | None,
        workers: Workers,
        device: str,
        label: str,
    ) -> list[Verdict]:
        """See `Tournaments`; what is not known is missing, unless this is the judge."""
        if base is None or self.judging:
            return super().score(candidates, base, workers, device, label)
        return [_against_base(self._duel(one, _twin(one, base, self.store))) for one in candidates]

    def orders(self) -> int:
        """One question a couple: sides are the critic's affair."""
        return 1

    @property
    def score_calls(self) -> int:
        """A judge asks about each video and the base's; else nobody is asked."""
        return 1 if self.judging else 0

    def _questions(self, one: Candidate, other: Candidate) -> list[Question]:
        same = one.video == other.video
        return [] if same else [Question(one.video, other.video, one.prompt)]

    def _settled(self, question: Question) -> bool:
        return self.critic.recall(question) is not None

    def _duel(self, one: Candidate, other: Candidate) -> Duel:
        said: Comparison | None = None
        for question in self._questions(one, other):
            said = self.critic.recall(question) or Comparison(None, fault="not asked")
        found = duel(one, other, self.identity, said, None)
        return replace(found, shown=())  # at which place is between the critic and those it asked


def critique_of(
    critic: Any,
    store: Store,
    asking: Asking = Asking(),  # noqa: B008 - frozen
    *,
    judging: bool = False,
) -> Critique | CombinedCritique | PairCritique | RecordedCritique:
    """The critique stage that a critic needs: by its methods, a critic that can rate is asked to.

    Raises:
        InputError: it is no critic.
    """
    kind = kind_of(critic)
    if kind == "compares":
        return PairCritique(critic, store, asking)
    if kind == "recorded":
        return RecordedCritique(critic, store, asking, judging)
    combined = hasattr(critic, "members")
    return CombinedCritique(critic, store) if combined else Critique(critic, store)


def strengths(critic: PairCritic, clips: Sequence[Clip], prompt: str) -> list[float]:
    """How videos of one prompt fare against each other: all couples, both orders, Bradley-Terry.

    A couple without a verdict counts for nobody.
    """
    couples = list(permutations(range(len(clips)), 2))
    said = critic.compare(
        [clips[i] for i, _ in couples], [clips[j] for _, j in couples], [prompt] * len(couples)
    )
    answers = dict(zip(couples, said, strict=True))
    outcomes = {}
    for i, j in combinations(range(len(clips)), 2):
        one, other = (Candidate(0, prompt, k, 0, "", "") for k in (i, j))
        found = duel(one, other, critic.identity, answers[i, j], answers[j, i])
        if found.outcome is not None:
            outcomes[i, j] = found.outcome
    return list(bradley_terry(len(clips), outcomes).values)


def duel(
    one: Candidate,
    other: Candidate,
    critic: str,
    shown: Comparison | None,
    swapped: Comparison | None,
) -> Duel:
    """Two candidates' duel.

    Args:
        shown: the answer to (one, other). swapped: the answer to (other, one). None: not asked;
            where neither was, the videos are the same, and tie.
    """
    answers = (shown, swapped)
    place = Duel(
        prompt_index=one.prompt_index,
        first=one.candidate,
        second=other.candidate,
        first_video=one.video,
        second_video=other.video,
        critic=critic,
        p_first=None,
        p_tie=None,
        p_second=None,
        shown=tuple(None if said is None else said.preference for said in answers),
        raw=tuple("" if said is None else said.raw for said in answers),
    )
    asked = [said for said in answers if said is not None]
    fault = next((said.fault or "unreadable" for said in asked if said.preference is None), "")
    if fault:
        return replace(place, fault=fault)
    preference, consistent = _preference(shown, swapped)
    return replace(
        place,
        p_first=preference.first,
        p_tie=preference.tie,
        p_second=preference.second,
        dims=_dims(shown, swapped),
        certainty=fmean(said.certainty for said in asked) if asked else 1.0,
        consistent=consistent,
    )


def _preference(shown: Comparison | None, swapped: Comparison | None) -> tuple[Preference, bool]:
    there = shown.preference if shown else None
    back = swapped.preference if swapped else None
    if there is not None and back is not None:
        return both_orders(there, back)
    if there is not None:
        return there, True
    return (back.mirrored(), True) if back is not None else (Preference(0.0, 1.0, 0.0), True)


def _dims(shown: Comparison | None, swapped: Comparison | None) -> dict[str, float]:
    if shown and swapped:
        return both_orders_of(shown.dims, swapped.dims)
    if swapped:
        return {name: 1 - value for name, value in swapped.dims.items()}
    return dict(shown.dims) if shown else {}


def _results(couples: Sequence[Couple], duels: Sequence[Duel]) -> dict[Couple, float | None]:
    return {couple: one.outcome for couple, one in zip(couples, duels, strict=True)}


def _twin(one: Candidate, base: Base, store: Store) -> Candidate:
    """The base model's video of the same prompt and seed, as another candidate."""
    video = base[one.prompt_index, one.candidate]
    if not store.has_blob("videos", video, ".mp4"):
        raise InputError(
            f"{store.root}: the base model's evaluation videos are gone, and a critic that "
            "compares needs them; give another name=NAME, whose round 0 makes them anew"
        )
    return replace(one, candidate=TWIN + one.candidate, video=video)


def _itself(one: Candidate, critic: str) -> Verdict:
    return Verdict(one.prompt_index, one.candidate, one.video, critic, 0.5)


def _against_base(found: Duel) -> Verdict:
    """A duel with the base's video as the score of the other."""
    return Verdict(
        prompt_index=found.prompt_index,
        candidate=found.first,
        video=found.first_video,
        critic=found.critic,
        score=found.outcome,
        dims=found.dims,
        certainty=found.certainty,
        raw=json.dumps(found.raw),
        fault=found.fault,
    )


def _plain(said: Comparison) -> dict[str, Any]:
    """A comparison as JSON; a preference that is no distribution is none."""
    chances = None if said.preference is None else [float(value) for value in said.preference]
    sound = chances is not None and min(chances) >= -SLACK and abs(sum(chances) - 1) <= SLACK
    return plain(said, "preference", chances if sound else None, "no probabilities")


def _comparison(record: Mapping[str, Any]) -> Comparison:
    """A comparison, read back."""
    known = {name: record[name] for name in ("dims", "certainty", "raw", "fault")}
    preference = record["preference"]
    return Comparison(None if preference is None else Preference(*preference), **known)
