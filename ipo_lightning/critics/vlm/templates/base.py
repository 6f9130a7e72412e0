"""The protocols of prompt templates, and the texts that they ask with."""

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
"""The place of the prompt as a JSON string, from which no prompt can break out. `PROMPT` is the
place of the prompt itself, on one line."""


class Unreadable(ValueError):
    """An answer that has no verdict; the message says why, and is kept with the answer."""


class PairVote(NamedTuple):
    """The verdict of one answer on two videos."""

    preference: Preference
    dims: Mapping[str, float] = {}
    """By dimension: chance that the first is better; a tie counts half."""


class PointVote(NamedTuple):
    """The verdict of one answer on a video."""

    score: float
    dims: Mapping[str, float] = {}
    certainty: float = 1.0


class PairTemplate(Protocol):
    """Asks which of two videos is better."""

    version: str
    """Part of a critic's identity: it changes with the text, the settings and the reading."""
    dims: tuple[str, ...]
    """The dimensions that every vote has."""

    def load(self) -> None:
        """Read the prompt text, before the first question.

        Raises:
            InputError: it cannot be read, see `PublishedText.read`.
        """
        ...

    def ask(self, first: Clip, second: Clip, prompt: str) -> Turn:
        """The question about two videos in the order in which they are shown."""
        ...

    def read(self, reply: Reply) -> PairVote:
        """The verdict of an answer.

        Raises:
            Unreadable: it has none, or not in the format that was asked for.
        """
        ...


class PointTemplate(Protocol):
    """Asks how good one video is."""

    version: str
    """As of a `PairTemplate`."""
    dims: tuple[str, ...]
    span: tuple[float, float]
    """The lowest and the highest score of a vote."""

    def load(self) -> None:
        """As of a `PairTemplate`."""
        ...

    def ask(self, clip: Clip, prompt: str) -> Turn:
        """The question about a video."""
        ...

    def read(self, reply: Reply) -> PointVote:
        """The verdict of an answer, as `PairTemplate.read`."""
        ...


@dataclass(frozen=True)
class PromptText:
    """The text of a question."""

    words: str | PublishedText
    """With `PROMPT` or `QUOTED`, and a `VIDEO` for each video; without one, videos come first."""
    origin: str = "own"
    """"own": written for this project; "original": the text that a model was tuned with; "file":
    another text."""
    file: str | None = None
    """A file with the original text; None: it is downloaded."""

    @cached_property
    def text(self) -> str:
        """The text; an original one is read at the first use, see `PublishedText.read`."""
        return self.words if isinstance(self.words, str) else self.words.read(self.file)

    def turn(self, prompt: str, *videos: Clip) -> Turn:
        """The question about ``videos`` of a prompt."""
        line = quoted(" ".join(prompt.split()))
        ahead = "" if VIDEO in self.text else VIDEO * len(videos)
        # One pass: a placeholder within the prompt is not replaced.
        words = [part.replace(PROMPT, line) for part in self.text.split(QUOTED)]
        return Turn(videos, ahead + json.dumps(line, ensure_ascii=False).join(words))

    def version(self, name: str, settings: Any = None) -> str:
        """``name.origin.hash``, of the text and the settings of the template.

        An original text is known by its hash, so that it need not be read for this.

        Args:
            name: with a number that is raised when the reading of answers changes.
            settings: plain JSON.
        """
        words = self.words if isinstance(self.words, str) else self.words.sha256
        return f"{name}.{self.origin}.{fingerprint([words, settings])[:8]}"


class TextTemplate:
    """A template that asks with a `PromptText`."""

    _words: PromptText

    def load(self) -> None:
        """Read the prompt text."""
        _ = self._words.text


def prompt_text_of(
    own: str, videos: int, prompt_text: str, original: PublishedText | None = None
) -> PromptText:
    """The text of a template, by a setting.

    Args:
        own: the template's own text.
        videos: how many videos it is about.
        prompt_text: "own"; "original"; or a file: a text in UTF-8 that replaces the template's, or
            the authors' script, which has the original text.
        original: the text that the template's models were tuned with, if it is known.

    Raises:
        InputError: there is no original text or no such file, or the file has neither the original
            text nor places for the prompt and the videos.
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
        place = f"write {PROMPT} in the place of the prompt"
        raise InputError(setting="prompt_text", value=prompt_text, expected=place)
    if text.count(VIDEO) not in (0, videos):
        raise InputError(
            setting="prompt_text",
            value=prompt_text,
            expected=f"{text.count(VIDEO)} marks {VIDEO}, but {videos} videos are shown; write one "
            "mark for each, or none (then videos come first)",
        )
    return PromptText(text, "file")


def check_questions(what: str, asked: Questions) -> None:
    """Check a setting that gives each of some dimensions a question.

    Raises:
        InputError: a question is blank, or a dimension's name is not allowed.
    """
    check_names(what, list(asked))
    for name, question in asked.items():
        if not question.strip():
            place = f"{what}.{name}"
            raise InputError(setting=place, value=question, expected="give a question")


def check_names(what: str, names: Sequence[str]) -> None:
    """Check names of dimensions: an answer has them as labels.

    Raises:
        InputError: there is none, or one has other characters than a label may have.
    """
    if not names:
        raise InputError(setting=what, expected="give at least one")
    for name in names:
        if not isinstance(name, str):
            raise InputError(setting=what, value=name, expected="give a name")
        if not (name.isascii() and name.replace("_", "").isalnum() and name == name.lower()):
            allowed = "use lower-case letters, digits and _"
            raise InputError(setting=f"{what}.{name}", expected=allowed)
