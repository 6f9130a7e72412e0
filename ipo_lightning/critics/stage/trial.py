"""A critic is tried on one video before any is made for it: it loads, fits, and answers."""

import warnings
from typing import Any

import torch

from ipo_lightning.critics.protocols import Comparison, Rating, kind_of
from ipo_lightning.critics.stage.answer_cache import CriticUse, memory_named
from ipo_lightning.critics.stage.costs import Watched, cost_of
from ipo_lightning.parallel.computing import Waiting, itself
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.video import Clip

SQUARE = 4
"""A moving square is this part of the height."""


def drawn(video: Watched) -> Clip:
    """A bright square that moves over a grey ground: uint8 (T, H, W, 3)."""
    frames = torch.full((video.frames, video.height, video.width, 3), 96, dtype=torch.uint8)
    side = max(1, video.height // SQUARE)
    for number, frame in enumerate(frames):
        left = (video.width - side) * number // max(1, video.frames - 1)
        frame[:side, left : left + side] = 200
    return Clip(frames, video.fps)


def to_try(critic: Any, video: Watched) -> list[Any]:
    """What is to be tried: the critic, or its members; not one without a model, or of people.

    Nor one on a server: it takes no memory here, its key is checked at the start, and each question
    to it may cost money.
    """
    if kind_of(critic) == "recorded":
        return []
    members = getattr(critic, "members", None)
    if isinstance(members, dict) and kind_of(critic) == "rates":
        return [one for member in members.values() for one in to_try(member, video)]
    return [critic] if cost_of(critic, video).place == "device" else []


def tried(
    critic: Any, video: Watched, prompt: str, device: str, workers: Workers | None = None
) -> None:
    """Load a critic, ask it about one video, and release it; its answer is not kept.

    Args:
        workers: each of them does, or their engine once; None: this process.

    Raises:
        InputError: it lacks something, or memory.
    """
    with (
        memory_named(critic, device),
        (workers or Workers()).computing(CriticUse(critic, device), 1) as calls,
        torch.random.fork_rng(),
    ):
        if isinstance(calls, Waiting):
            return
        answer = calls.finish(calls.start(first_answer, drawn(video), prompt), itself)
    if answer.fault:
        warnings.warn(
            f"{critic.identity} gave no verdict on a trial video ({answer.fault}); others may be "
            "missing too", stacklevel=2,
        )  # fmt: skip


def first_answer(critic: Any, clip: Clip, prompt: str) -> Rating | Comparison:
    """What a critic says of a video, or of it and its reverse."""
    if kind_of(critic) == "rates":
        (rating,) = critic.rate([clip], [prompt])
        return rating
    (comparison,) = critic.compare([clip], [Clip(clip.frames.flip(0), clip.fps)], [prompt])
    return comparison
