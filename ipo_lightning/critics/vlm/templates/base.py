"""What a form is, and the words that it asks with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, NamedTuple, Protocol

from ipo_lightning.critics.pretrained.published_texts import PROMPT, PublishedText, given
from ipo_lightning.critics.vlm.client import VIDEO, Reply, Turn, quoted
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.preferences import Preference
from ipo_lightning.settings import Says, Text
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip

Questions = Mapping[str, Annotated[str, Says("a question")]]
"""Dimension -> what is asked about it."""
OwnText = Annotated[Text, Says("own or a file")]
AnyText = Annotated[Text, Says("own, original or a file")]
"""Where a template's words come from, see `prompt_text_of`; of one with a published original."""
QUOTED = "{quoted}"
"""In a wording: here comes the prompt as a JSON string, whose quotation marks nothing in the prompt
can end. `PROMPT` is the same on one line as it is."""


class Unreadable(ValueError):
    """An answer that gives no verdict; the message says why, for whoever audits it."""


class PairVote(NamedTuple):
    """What one answer says of two videos."""

    preference: Preference
    dims: Mapping[str, float] = {}
    """By dimension: chance that the first is better, a tie counting half."""


class PointVote(NamedTuple):
    """What one answer says of a video."""

    score: float
    dims: Mapping[str, float] = {}
    certainty: float = 1.0


class PairTemplate(Protocol):
    """Asks which of two videos is better."""

    version: str
    """Part of a critic's identity: it changes with the words, the settings and the reading."""
    dims: tuple[str, ...]
    """The dimensions that every vote has."""

    def load(self) -> None:
        """Get what it needs before it asks; what cannot be had is refused here.

        Raises:
            InputError: see `PublishedText.read`.
        """
        ...

    def ask(self, first: Clip, second: Clip, prompt: str) -> Turn:
        """The question about two videos in the order in which they are shown."""
        ...

    def read(self, reply: Reply) -> PairVote:
        """What an answer says.

        Raises:
            Unreadable: it says nothing, or not exactly what was asked.
        """
        ...


class PointTemplate(Protocol):
    """Asks how good one video is."""

    version: str
    """As a `PairForm`'s."""
    dims: tuple[str, ...]
    span: tuple[float, float]
    """The lowest and the highest score that a vote can have."""

    def load(self) -> None:
        """As a `PairForm`'s."""
        ...

    def ask(self, clip: Clip, prompt: str) -> Turn:
        """The question about a video."""
        ...

    def read(self, reply: Reply) -> PointVote:
        """What an answer says; see `PairForm.read`."""
        ...


@dataclass(frozen=True)
class PromptText:
    """The words of a question."""

    words: str | PublishedText
    """With `PROMPT` or `QUOTED`, and a `VIDEO` for each video; without any, videos come first."""
    origin: str = "own"
    """"own": written for this project; "original": those a model was tuned with; "file": others."""
    file: str | None = None
    """Where an original is, if not upstream."""

    @cached_property
    def text(self) -> str:
        """The words; an original is had when they are first asked for, see `PublishedText.read`."""
        return self.words if isinstance(self.words, str) else self.words.read(self.file)

    def turn(self, prompt: str, *videos: Clip) -> Turn:
        """The question about ``videos`` of a prompt."""
        line = quoted(" ".join(prompt.split()))
        ahead = "" if VIDEO in self.text else VIDEO * len(videos)
        # One pass: a prompt that holds the place-holder itself is not filled in again.
        words = [part.replace(PROMPT, line) for part in self.text.split(QUOTED)]
        return Turn(videos, ahead + json.dumps(line, ensure_ascii=False).join(words))

    def version(self, name: str, settings: Any = None) -> str:
        """``name.origin.hash``, over the words and what else an answer's meaning depends on.

        An original counts by its hash, so that it need not be there.

        Args:
            name: with a number that is raised whenever the reading changes.
            settings: plain JSON.
        """
        words = self.words if isinstance(self.words, str) else self.words.sha256
        return f"{name}.{self.origin}.{fingerprint([words, settings])[:8]}"


class TextTemplate:
    """A form that asks in a `PromptText`."""

    _words: PromptText

    def load(self) -> None:
        """See `PairForm`."""
        _ = self._words.text


def prompt_text_of(
    own: str, videos: int, prompt_text: str, original: PublishedText | None = None
) -> PromptText:
    """A form's words.

    Args:
        own: the form's own wording.
        videos: how many videos it is about.
        wording: "own"; "original"; or a file: a text in UTF-8 that takes the form's place, or the
            authors' script with the original in it.
        original: the words of the models that the form is for, where they are known.

    Raises:
        InputError: there is no original or no such file, or the file lacks the original or the
            place of the prompt or of a video.
    """
    if prompt_text == "own":
        return PromptText(own)
    if prompt_text == "original" and original:
        return PromptText(original, "original")
    if prompt_text == "original" or not isinstance(prompt_text, str):
        choices = "own, original" if original else "own"
        kinds = f"give {choices} or a file"
        raise InputError(setting="prompt_text", value=prompt_text, expected=kinds)
    text = given(prompt_text)
    if original and original.within(text) is not None:
        return PromptText(original, "original", prompt_text)
    if original and prompt_text.endswith(".py"):
        raise original.absent(prompt_text)
    if PROMPT not in text and QUOTED not in text:
        place = f"write {PROMPT} where the prompt goes"
        raise InputError(setting="prompt_text", value=prompt_text, expected=place)
    if text.count(VIDEO) not in (0, videos):
        raise InputError(
            setting="prompt_text",
            value=prompt_text,
            expected=f"{text.count(VIDEO)} marks {VIDEO}, but {videos} videos are shown; mark "
            "each, or none (they come first)",
        )
    return PromptText(text, "file")


def check_questions(what: str, asked: Questions) -> None:
    """Refuse what is not a question to each of some dimensions.

    Raises:
        InputError: one is blank, or a dimension's name will not do.
    """
    check_names(what, list(asked))
    for name, question in asked.items():
        if not question.strip():
            place = f"{what}.{name}"
            raise InputError(setting=place, value=question, expected="give a question")


def check_names(what: str, names: Sequence[str]) -> None:
    """Refuse names of dimensions that an answer could not be read by.

    Raises:
        InputError: there is none, or one is no plain word.
    """
    if not names:
        raise InputError(setting=what, expected="give at least one")
    for name in names:
        if not isinstance(name, str):
            raise InputError(setting=what, value=name, expected="give a name")
        if not (name.isascii() and name.replace("_", "").isalnum() and name == name.lower()):
            plain = "name it with small letters, digits and _"
            raise InputError(setting=f"{what}.{name}", expected=plain)
