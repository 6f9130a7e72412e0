"""What a critic is.

A critic sees pixels and prompts, never latents, seeds or file names. Adding one takes a class with
these methods and a YAML that names it in ``_target_``; nothing is inherited or registered.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from ipo_lightning.video import Clip


class Rating(NamedTuple):
    """What a pointwise critic said of one video."""

    score: float | None
    """Higher is better; comparable within one critic only. None: no verdict could be read out.
    A missing score is counted and reported, never replaced by a default."""
    dims: Mapping[str, float] = {}
    """Named parts of the judgement (``{"motion": 0.9}``), higher is better."""
    certainty: float = 1.0
    """How sure the critic is of its score, in [0, 1]."""
    raw: str = ""
    """The critic's own words or logits, kept for whoever audits a verdict."""


@runtime_checkable
class PointCritic(Protocol):
    """Rates one video at a time; batch, order and rank must not change a score.

    A critic that asks others for its answers, or that leaves the device alone, may say so with an
    attribute ``beside = True``: it is then asked while the next videos are made, in a thread of its
    own, and the critique stage finds its verdicts in the store.
    """

    @property
    def identity(self) -> str:
        """``model@revision#prompt-version#sampling``: all that determines a verdict but the video
        and its prompt. It is part of the verdict's key, so a change here asks the critic again."""
        ...

    def load(self, device: str) -> None:
        """Take the memory that rating needs; called before the critique stage."""
        ...

    def release(self) -> None:
        """Give that memory back; called after the stage, before training."""
        ...

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip, in order."""
        ...
