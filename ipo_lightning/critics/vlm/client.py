"""What a multimodal chat model is to a critic: it sees videos, is asked, and answers.

A critic of this kind is a model and a form. The model says how it is reached (weights in this
process, an endpoint), the form what is asked and how an answer is read; every form goes with every
model. A question that got no answer is a `Fault`, never an exception and never a default.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from ipo_lightning.critics.protocols import Critic
from ipo_lightning.video import Clip

VIDEO = "<video>"
"""In a turn's text: here comes the next of its videos."""
SEVERAL = "several replies need a temperature above 0; at 0 they would all be the same"
"""Why ``samples`` is refused."""


class Turn(NamedTuple):
    """One question about videos, put to a model in a conversation of its own."""

    videos: tuple[Clip, ...]
    text: str
    """With `VIDEO` once for each video, in their order. A prompt that holds the mark itself must be
    put in by `quoted`."""
    opening: str = ""
    """Words put in the model's mouth: its answer goes on from them."""


class Fault(NamedTuple):
    """Why there is no answer."""

    reason: str
    """A few words that failures can be counted by: "timeout", "unreadable", "no such token"."""
    transient: bool = False
    """Whether asking again later may help."""


class Token(NamedTuple):
    """A token of an answer."""

    text: str
    top: Mapping[str, float]
    """Text -> natural logarithm of its probability, of the likeliest tokens at this place, before
    temperature and penalties."""


class Reply(NamedTuple):
    """An answer in words."""

    text: str
    tokens: tuple[Token, ...] = ()
    """Its tokens, where the model tells; empty where it does not."""


@runtime_checkable
class VLMClient(Critic, Protocol):
    """A model that answers questions about videos. Batch, order and rank must not change an answer.

    ``identity`` is all that determines an answer but the turn: model, revision, how videos are
    shown to it, sampling.
    """

    def choose(
        self, turns: Sequence[Turn], options: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Fault]:
        """How likely the answer begins with each option: option -> probability, normalised over
        the options.

        Args:
            options: name -> spellings, such as ``{"yes": ("yes", "Yes", "YES")}``; a spelling
                counts where it is a single token. Probabilities are those of the raw logits.

        Raises:
            InputError: an option has no spelling that is a single token of the model.
        """
        ...

    def reply(self, turns: Sequence[Turn]) -> list[list[Reply | Fault]]:
        """Answers in words: a turn has as many as the model is set to sample.

        One that was cut off at the longest allowed is a fault, "cut short": of a number at its end
        a part would be another number.
        """
        ...


def quoted(prompt: str) -> str:
    """A prompt as part of a turn's text: marks in it stay words.

    The mark of a video, a model's own (``<|im_end|>``) and tags that an answer is read by
    (``<answer>``) are broken up by a space.
    """
    return re.sub(r"<(?=[|/A-Za-z])", "< ", prompt)


def parts(turn: Turn) -> list[str | Clip]:
    """A turn's text and videos in the order in which they are shown.

    Raises:
        ValueError: the text does not mark the place of each video.
    """
    words = turn.text.split(VIDEO)
    if len(words) != len(turn.videos) + 1:
        raise ValueError(
            f"{len(turn.videos)} videos, but {len(words) - 1} marks {VIDEO} in the text"
        )
    shown: list[str | Clip] = []
    for text, video in zip(words, (*turn.videos, None), strict=True):
        shown += [part for part in (text, video) if part]
    return shown
