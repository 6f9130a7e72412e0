"""The critique stage of critics that compare: a tournament a prompt, each couple in both orders."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, groupby, permutations
from statistics import fmean
from typing import Any

from ipo_lightning.critics.protocols import Comparison, PairCritic, Question
from ipo_lightning.critics.stage.answer_cache import (
    AnswerCache,
    Clips,
    Unanswered,
    finite_certainty,
    finite_dims,
)
from ipo_lightning.errors import InputError
from ipo_lightning.labelling.tournaments import (
    Results,
    Schedule,
    next_round,
    opposite,
    play,
    swiss,
)
from ipo_lightning.metrics.preferences import Preference, both_orders, both_orders_of, bradley_terry
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.records import Candidate, PairVerdict, Verdict
from ipo_lightning.storage.store import Store, fingerprint
from ipo_lightning.video import Clip

BaseVideos = Mapping[tuple[int, int], str]
"""Prompt index and candidate -> name of the base model's video of the same prompt and seed."""
TWIN = 10**6
"""Added to a candidate's number: its counterpart of the base model, in an evaluation."""
ROUNDING = 1e-3
"""Tolerance of probabilities below 0 or of a sum other than 1: critics may round them."""


def refuse_nothing(gauges: Mapping[str, float]) -> str | None:
    """Every candidate is compared."""
    return None


@dataclass(frozen=True)
class Couples:
    """Which couples of a prompt's candidates a critic compares, and how often.

    Args:
        schedule: which candidates meet (`ipo_lightning.labelling.tournaments`).
        both_orders: whether each couple is shown in both orders; else in one, which its content
            chooses. A critic of people's answers swaps sides itself.
        refuse: gauges -> why a candidate is not worth a question, or None.
    """

    schedule: Schedule = swiss
    both_orders: bool = True
    refuse: Callable[[Mapping[str, float]], str | None] = refuse_nothing

    def meetings(self, count: int) -> int:
        """How many couples meet among ``count`` candidates, if none tie."""
        return len(play(self.schedule, count, lambda couples: dict.fromkeys(couples, 1.0)))


AGAINST_BASE = Couples(opposite)
"""Each video and its twin of the base model, in both orders."""
Comparisons = AnswerCache[Question, Comparison]
"""The comparisons of one critic, each order of two videos a question of its own."""


def comparisons_of(critic: PairCritic, store: Store) -> Comparisons:
    """The critic's comparisons: those in the store, and those that it must yet be asked for."""
    return AnswerCache(critic, store, put_comparisons, sound_comparison, _comparison)


def put_comparisons(
    critic: PairCritic, questions: Sequence[Question], clips: Clips
) -> list[Comparison]:
    """Have a critic compare the videos that are asked about."""
    return critic.compare(
        [clips[question.first] for question in questions],
        [clips[question.second] for question in questions],
        [question.prompt for question in questions],
    )


def compare(
    comparisons: Comparisons,
    candidates: Sequence[Candidate],
    couples: Couples,
    workers: Workers,
    device: str,
    label: str,
) -> list[PairVerdict]:
    """Compare a round's candidates, a round of a tournament in one call.

    Returns:
        The verdicts by prompt, in the order in which the couples met.
    """
    tournaments = tournaments_of(comparisons, couples)
    comparisons.fill(candidates, tournaments.unanswered, workers, device, label)
    return workers.agree(lambda: tournaments.verdicts(candidates))


def tournaments_of(comparisons: Comparisons, couples: Couples) -> "Tournaments":
    """Tournaments that are played by a critic's comparisons."""

    def orders(one: Candidate, other: Candidate) -> tuple[Question | None, Question | None]:
        return orders_of(one, other, couples.both_orders)

    def questions(one: Candidate, other: Candidate) -> list[Question]:
        return [question for question in orders(one, other) if question is not None]

    def verdict(one: Candidate, other: Candidate) -> PairVerdict:
        said = [question and comparisons.recall(question) for question in orders(one, other)]
        return pair_verdict(one, other, comparisons.critic.identity, *said)

    return Tournaments(couples, questions, verdict)


@dataclass(frozen=True)
class Tournaments:
    """The candidates of each prompt in a tournament: who meets next depends on the verdicts so far.

    Args:
        couples: who meets.
        questions: what must be answered before two candidates have a verdict; nothing where their
            videos are the same.
        verdict: what the answers say of two candidates.
    """

    couples: Couples
    questions: Callable[[Candidate, Candidate], list[Question]]
    verdict: Callable[[Candidate, Candidate], PairVerdict]

    def unanswered(
        self, candidates: Sequence[Candidate], answered: Callable[[Question], bool]
    ) -> list[Unanswered[Question]]:
        """The prompts whose tournament waits for answers."""
        played = ((some, self._play(some, answered)[1]) for some in self._prompts(candidates))
        return [Unanswered(some, questions) for some, questions in played if questions]

    def verdicts(
        self,
        candidates: Sequence[Candidate],
        answered: Callable[[Question], bool] = lambda question: True,
    ) -> list[PairVerdict]:
        """The verdicts of all prompts, of each as far as its tournament got."""
        prompts = self._prompts(candidates)
        return [one for some in prompts for one in self._play(some, answered)[0]]

    def _prompts(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """The candidates that are not refused, by prompt, in order."""
        kept = [one for one in candidates if self.couples.refuse(one.gauges) is None]
        kept.sort(key=lambda one: (one.prompt_index, one.candidate))
        return [list(some) for _, some in groupby(kept, key=lambda one: one.prompt_index)]

    def _play(
        self, siblings: Sequence[Candidate], answered: Callable[[Question], bool]
    ) -> tuple[list[PairVerdict], list[Question]]:
        """A prompt's verdicts so far, and what must be answered before its tournament goes on."""
        verdicts: list[PairVerdict] = []
        rounds: list[Results] = []
        while places := next_round(self.couples.schedule, len(siblings), rounds):
            meeting = [(siblings[i], siblings[j]) for i, j in places]
            wanted = [question for two in meeting for question in self.questions(*two)]
            open_ones = [one for one in dict.fromkeys(wanted) if not answered(one)]
            if open_ones:
                return verdicts, open_ones
            found = [self.verdict(*two) for two in meeting]
            rounds.append({two: one.outcome for two, one in zip(places, found, strict=True)})
            verdicts += found
        return verdicts, []


def orders_of(
    one: Candidate, other: Candidate, both: bool
) -> tuple[Question | None, Question | None]:
    """The questions (one, other) and (other, one); None where an order is not asked."""
    if one.video == other.video:
        return None, None
    there = Question(one.video, other.video, one.prompt)
    back = Question(other.video, one.video, one.prompt)
    if both:
        return there, back
    # By content, so that no candidate is first because of its number.
    chosen = int(fingerprint([*sorted([one.video, other.video]), one.prompt]), 16) % 2
    return (there, None) if (one.video < other.video) == bool(chosen) else (None, back)


# -------------------------------------------------------------------- scores of an evaluation


def against_base(
    candidates: Sequence[Candidate],
    base: BaseVideos,
    store: Store,
    compare_all: Callable[[Sequence[Candidate]], list[PairVerdict]],
) -> list[Verdict]:
    """The chance of each video to beat the base model's of the same prompt and seed, as a score.

    Args:
        compare_all: compares candidates, the `AGAINST_BASE` couples of each prompt.

    Raises:
        InputError: the base model's videos are no longer in the store.
    """
    twins = [twin(one, base, store) for one in candidates]
    found = {(one.prompt_index, one.first): one for one in compare_all([*candidates, *twins])}
    return [score_of(found[one.prompt_index, one.candidate]) for one in candidates]


def twin(one: Candidate, base: BaseVideos, store: Store) -> Candidate:
    """The base model's video of the same prompt and seed, as another candidate.

    Raises:
        InputError: it is no longer in the store.
    """
    video = base[one.prompt_index, one.candidate]
    if not store.lists("videos", video, ".mp4"):
        raise InputError(
            f"{store.root}: the base model's evaluation videos are gone, and a critic that "
            "compares needs them; give another name=NAME, whose round 0 makes them anew"
        )
    return replace(one, candidate=TWIN + one.candidate, video=video)


def score_of(found: PairVerdict) -> Verdict:
    """The verdict on a video and its twin as a score of the video; a tie counts half."""
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


def score_of_base(one: Candidate, critic: str) -> Verdict:
    """The score of the base model's own video: 1/2, without asking."""
    return Verdict(one.prompt_index, one.candidate, one.video, critic, 0.5)


def strengths(critic: PairCritic, clips: Sequence[Clip], prompt: str) -> list[float]:
    """Bradley-Terry strengths of one prompt's videos, in logits: all couples in both orders.

    A couple without a verdict does not count.
    """
    couples = list(permutations(range(len(clips)), 2))
    said = critic.compare(
        [clips[i] for i, _ in couples], [clips[j] for _, j in couples], [prompt] * len(couples)
    )
    answers = dict(zip(couples, said, strict=True))
    outcomes = {}
    for i, j in combinations(range(len(clips)), 2):
        one, other = (Candidate(0, prompt, k, 0, "", "") for k in (i, j))
        found = pair_verdict(one, other, critic.identity, answers[i, j], answers[j, i])
        if found.outcome is not None:
            outcomes[i, j] = found.outcome
    return list(bradley_terry(len(clips), outcomes).values)


# -------------------------------------------------------------------- answers to verdicts


def pair_verdict(
    one: Candidate,
    other: Candidate,
    critic: str,
    shown: Comparison | None,
    swapped: Comparison | None,
) -> PairVerdict:
    """The row of verdicts.jsonl that the answers about two candidates make.

    Args:
        shown: the answer to (one, other). swapped: the answer to (other, one). None: not asked;
            where neither was, the videos are the same, and tie.
    """
    answers = (shown, swapped)
    unanswered = PairVerdict(
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
    fault = _fault(shown, swapped)
    return replace(unanswered, fault=fault) if fault else _answered(unanswered, shown, swapped)


def _answered(
    verdict: PairVerdict, shown: Comparison | None, swapped: Comparison | None
) -> PairVerdict:
    """The verdict with what the answers say; none of those that were asked for is missing."""
    preference, consistent = _preference(shown, swapped)
    asked = [said for said in (shown, swapped) if said is not None]
    return replace(
        verdict,
        p_first=preference.first,
        p_tie=preference.tie,
        p_second=preference.second,
        dims=_dims(shown, swapped),
        certainty=fmean(said.certainty for said in asked) if asked else 1.0,
        consistent=consistent,
    )


def _fault(*answers: Comparison | None) -> str:
    """Why there is no verdict: an order was asked and has none. "" where there is one."""
    faults = [said.fault or "unreadable" for said in answers if said and said.preference is None]
    return faults[0] if faults else ""


def _preference(shown: Comparison | None, swapped: Comparison | None) -> tuple[Preference, bool]:
    """The preference about (one, other), and whether the two orders agree."""
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


def sound_comparison(said: Comparison) -> Comparison:
    """The comparison with finite numbers alone; without a distribution it has a fault."""
    preference, fault = said.preference, ""
    if preference is not None:
        preference = Preference(*(float(chance) for chance in preference))
    if preference is None or not _is_distribution(preference):
        fault = said.fault or ("unreadable" if preference is None else "no probabilities")
        preference = None
    return said._replace(
        preference=preference,
        dims=finite_dims(said.dims),
        certainty=finite_certainty(said.certainty),
        fault=fault,
    )


def _is_distribution(chances: Preference) -> bool:
    return min(chances) >= -ROUNDING and abs(sum(chances) - 1) <= ROUNDING


def _comparison(record: Mapping[str, Any]) -> Comparison:
    """A comparison, read back."""
    chances = record["preference"]
    preference = None if chances is None else Preference(*chances)
    return Comparison(**{**record, "preference": preference})
