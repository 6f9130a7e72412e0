"""The critique stage of critics that rate one video at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from ipo_lightning.critics.protocols import LatentCritic, PointCritic, Rating
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
    """Name (sha256) of its mp4 file; for a critic of latents, of their blob."""
    prompt: str


def question_of(candidate: Candidate) -> RatingQuestion:
    """The question that rates a candidate."""
    return RatingQuestion(candidate.video, candidate.prompt)


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


def latent_ratings_of(critic: LatentCritic, store: Store) -> Ratings:
    """The ratings of a critic that sees foreseen latents."""
    return AnswerCache(critic, store, put_latents, sound_rating, lambda record: Rating(**record),
                       shown=latents_file)  # fmt: skip


def put_latents(
    critic: LatentCritic, questions: Sequence[RatingQuestion], found: Mapping[str, Any]
) -> list[Rating]:
    """Have a critic rate the drafts that are asked about, which were all foreseen alike."""
    drafts = [found[question.video] for question in questions]
    level = float(drafts[0].get("noise_level", 0.0))
    latents = torch.stack([one["latents"] for one in drafts])
    return critic.rate_latents(latents, level, [question.prompt for question in questions])


class LatentsFile(NamedTuple):
    """A blob of latents that can be sent to another process."""

    content: bytes

    def read(self) -> dict[str, Tensor]:
        """Its tensors."""
        return tensors_from_bytes(self.content)


def latents_file(store: Store, name: str) -> LatentsFile:
    """A draft's latents as a critic of latents sees them.

    Raises:
        LostBlob: they are gone, or were damaged.
    """
    return LatentsFile(store.check("latents", name, ".safetensors").read_bytes())


def rate(
    ratings: Ratings,
    candidates: Sequence[Candidate],
    workers: Workers,
    device: str,
    label: str,
    question: Callable[[Candidate], RatingQuestion] = question_of,
) -> list[Verdict]:
    """Rate a round's candidates: one verdict each, in order."""
    ratings.fill(candidates, partial(unrated, question=question), workers, device, label)
    critic = ratings.critic.identity
    return workers.agree(
        lambda: [verdict(one, critic, ratings.recall(question(one))) for one in candidates]
    )


def unrated(
    candidates: Sequence[Candidate],
    answered: Callable[[RatingQuestion], bool],
    question: Callable[[Candidate], RatingQuestion] = question_of,
) -> list[Unanswered[RatingQuestion]]:
    """The candidates without a rating, by prompt; of equal videos of a prompt the first alone."""
    prompts: dict[str, Unanswered[RatingQuestion]] = {}
    seen: set[RatingQuestion] = set()
    for one in candidates:
        asked = question(one)
        if asked not in seen and not answered(asked):
            seen.add(asked)
            siblings = prompts.setdefault(one.prompt, Unanswered([], []))
            siblings.candidates.append(one)
            siblings.questions.append(asked)
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


def latent_question_of(candidate: Candidate) -> RatingQuestion:
    """The question that rates a candidate by its latents."""
    return RatingQuestion(candidate.latents, candidate.prompt)
