"""The critique stage of critics that rate one video at a time."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ipo_lightning.critics.protocols import PointCritic, Rating
from ipo_lightning.critics.stage.answer_cache import (
    AnswerCache,
    Clips,
    Unanswered,
    finite_certainty,
    finite_dims,
)
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.records import Candidate, Verdict
from ipo_lightning.storage.store import Store


class RatingQuestion(NamedTuple):
    """A video of a prompt that is to be rated."""

    video: str
    """Name (sha256) of its mp4 file."""
    prompt: str


Ratings = AnswerCache[RatingQuestion, Rating]
"""The ratings of one critic."""


def ratings_of(critic: PointCritic, store: Store) -> Ratings:
    """The critic's ratings: those in the store, and those that it must yet be asked for."""

    return AnswerCache(critic, store, put_ratings, sound_rating, lambda record: Rating(**record))


def put_ratings(
    critic: PointCritic, questions: Sequence[RatingQuestion], clips: Clips
) -> list[Rating]:
    """Have a critic rate the videos that are asked about."""
    videos = [clips[question.video] for question in questions]
    return critic.rate(videos, [question.prompt for question in questions])


def rate(
    ratings: Ratings, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
) -> list[Verdict]:
    """Rate a round's candidates: one verdict each, in order."""
    ratings.fill(candidates, unrated, workers, device, label)
    critic = ratings.critic.identity
    return workers.agree(
        lambda: [verdict(one, critic, ratings.recall(question_of(one))) for one in candidates]
    )


def unrated(
    candidates: Sequence[Candidate], answered: Callable[[RatingQuestion], bool]
) -> list[Unanswered[RatingQuestion]]:
    """The candidates without a rating, by prompt; of equal videos of a prompt the first alone."""
    prompts: dict[str, Unanswered[RatingQuestion]] = {}
    seen: set[RatingQuestion] = set()
    for one in candidates:
        question = question_of(one)
        if question not in seen and not answered(question):
            seen.add(question)
            siblings = prompts.setdefault(one.prompt, Unanswered([], []))
            siblings.candidates.append(one)
            siblings.questions.append(question)
    return list(prompts.values())


def verdict(candidate: Candidate, critic: str, rating: Rating) -> Verdict:
    """The row of verdicts.jsonl that a rating makes."""
    return Verdict(
        prompt_index=candidate.prompt_index,
        candidate=candidate.candidate,
        video=candidate.video,
        critic=critic,
        score=rating.score,
        dims=rating.dims,
        certainty=rating.certainty,
        raw=rating.raw,
        fault=rating.fault,
    )


def sound_rating(rating: Rating) -> Rating:
    """The rating with finite numbers alone; without a finite score it has a fault."""
    score, fault = rating.score, ""
    if score is None or not math.isfinite(score):
        fault = rating.fault or ("unreadable" if score is None else "not a number")
        score = None
    return rating._replace(
        score=None if score is None else float(score),
        dims=finite_dims(rating.dims),
        certainty=finite_certainty(rating.certainty),
        fault=fault,
    )


def question_of(candidate: Candidate) -> RatingQuestion:
    """The question that rates a candidate."""
    return RatingQuestion(candidate.video, candidate.prompt)
