"""The protocol of a VLM client: a vision-language model that is shown videos and asked questions.

A VLM critic is a client and a prompt template. The client reaches the model (weights in this
process, or a server); the template says what is asked and how an answer is read. Every template
works with every client. A question without an answer is a `Fault`, never an exception or a default.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from ipo_lightning.critics.protocols import Critic
from ipo_lightning.video import Clip

VIDEO = "<video>"
"""The place of the next video in a turn's text."""
SEVERAL = "several replies need a temperature above 0; at 0 they would all be the same"
"""Why ``samples`` is refused."""


class Turn(NamedTuple):
    """One question about videos, asked in a conversation of its own."""

    videos: tuple[Clip, ...]
    text: str
    """With `VIDEO` once for each video, in their order. Insert prompts with `quoted`: they may hold
    the mark."""
    opening: str = ""
    """The beginning of the answer, which the model continues."""


class Fault(NamedTuple):
    """Why there is no answer."""

    reason: str
    """In a few words, by which failures are counted: "timeout", "unreadable", "no such token"."""
    transient: bool = False
    """Whether asking again later may help."""


class Token(NamedTuple):
    """A token of an answer."""

    text: str
    top: Mapping[str, float]
    """Text -> log probability of the likeliest tokens at this place, before temperature and
    penalties."""


class Reply(NamedTuple):
    """An answer in words."""

    text: str
    tokens: tuple[Token, ...] = ()
    """Its tokens; empty where the server does not send them."""


@runtime_checkable
class VLMClient(Critic, Protocol):
    """A model that answers questions about videos. Batch, order and rank must not change an answer.

    ``identity`` is all that determines an answer, except the turn: model, revision, how videos are
    shown, sampling.
    """

    def choose(
        self, turns: Sequence[Turn], options: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Fault]:
        """Option -> probability that the answer begins with it, normalised over the options.

        Args:
            options: name -> spellings, such as ``{"yes": ("yes", "Yes", "YES")}``; only spellings
                that are a single token count. Probabilities are those of the raw logits.

        Raises:
            InputError: an option has no spelling that is a single token of the model.
        """
        ...

    def reply(self, turns: Sequence[Turn]) -> list[list[Reply | Fault]]:
        """Answers in words: as many a turn as ``samples``.

        An answer that was cut off at ``max_tokens`` is a fault, "cut short": a number at its end
        might be incomplete.
        """
        ...


def quoted(prompt: str) -> str:
    """A prompt for a turn's text, with the marks in it broken up by a space.

    Marks are `VIDEO`, special tokens (``<|im_end|>``) and the tags of answers (``<answer>``).
    """
    return re.sub(r"<(?=[|/A-Za-z])", "< ", prompt)


def parts(turn: Turn) -> list[str | Clip]:
    """A turn's text and videos in the order in which they are shown.

    Raises:
        ValueError: the text has not one mark for each video.
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
