"""What a form is, and the words that it asks with."""

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ipo_lightning.critics.chat import VIDEO, Reply, Turn, quoted
from ipo_lightning.errors import InputError
from ipo_lightning.preferences import Preference
from ipo_lightning.store import fingerprint
from ipo_lightning.video import Clip

PROMPT = "{prompt}"
"""In a wording: here comes the prompt, on one line."""
QUOTED = "{quoted}"
"""The same as a JSON string: nothing in the prompt can end the quotation marks about it."""


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


class PairForm(Protocol):
    """Asks which of two videos is better."""

    version: str
    """Part of a critic's identity: it changes with the words, the settings and the reading."""
    dims: tuple[str, ...]
    """The dimensions that every vote has."""

    def ask(self, first: Clip, second: Clip, prompt: str) -> Turn:
        """The question about two videos in the order in which they are shown."""
        ...

    def read(self, reply: Reply) -> PairVote:
        """What an answer says.

        Raises:
            Unreadable: it says nothing, or not exactly what was asked.
        """
        ...


class PointForm(Protocol):
    """Asks how good one video is."""

    version: str
    """As a `PairForm`'s."""
    dims: tuple[str, ...]
    span: tuple[float, float]
    """The lowest and the highest score that a vote can have."""

    def ask(self, clip: Clip, prompt: str) -> Turn:
        """The question about a video."""
        ...

    def read(self, reply: Reply) -> PointVote:
        """What an answer says; see `PairForm.read`."""
        ...


class Original(NamedTuple):
    """The words that a model was tuned with, known by their hash: they are not shipped."""

    sha256: str
    """Of the text in UTF-8, with `PROMPT` in the prompt's place."""
    source: str
    """Repository, commit, file and licence, for whoever looks the text up."""
    mark: str = PROMPT
    """What stands in the prompt's place there."""


@dataclass(frozen=True)
class Wording:
    """The words of a question."""

    text: str
    """With `PROMPT` or `QUOTED`, and a `VIDEO` for each video; without any, videos come first."""
    origin: str = "own"
    """"own": written for this project; "original": those a model was tuned with; "file": others."""

    def turn(self, prompt: str, *videos: Clip) -> Turn:
        """The question about ``videos`` of a prompt."""
        line = quoted(" ".join(prompt.split()))
        ahead = "" if VIDEO in self.text else VIDEO * len(videos)
        # One pass: a prompt that holds the place-holder itself is not filled in again.
        words = [part.replace(PROMPT, line) for part in self.text.split(QUOTED)]
        return Turn(videos, ahead + json.dumps(line, ensure_ascii=False).join(words))

    def version(self, name: str, settings: Any = None) -> str:
        """``name.origin.hash``, over the words and what else an answer's meaning depends on.

        Args:
            name: with a number that is raised whenever the reading changes.
            settings: plain JSON.
        """
        return f"{name}.{self.origin}.{fingerprint([self.text, settings])[:8]}"


def worded(
    own: str, videos: int, file: str | None = None, original: Original | None = None
) -> Wording:
    """A form's words: its own, or those of a file.

    Args:
        own: the form's own wording.
        videos: how many videos it is about.
        file: path of a text in UTF-8 that takes its place, or of the authors' script with the
            original in it, which is read and not run.
        original: what the text of that file is, if its hash says so.

    Raises:
        InputError: there is no such file, or it lacks the original or the place of the prompt or
            of a video.
    """
    if file is None:
        return Wording(own)
    try:
        text = Path(file).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"wording={file}: {error}") from error
    if original and file.endswith(".py"):
        return Wording(scripted(file, text, original), "original")
    if PROMPT not in text and QUOTED not in text:
        raise InputError(f"wording={file}: write {PROMPT} where the prompt goes")
    if text.count(VIDEO) not in (0, videos):
        raise InputError(
            f"wording={file}: {text.count(VIDEO)} marks {VIDEO}, but {videos} videos are shown; "
            "mark each, or none (they come first)"
        )
    for whole in (text, text.removesuffix("\n")):  # which editors add
        if original and sha256(whole) == original.sha256:
            return Wording(whole, "original")
    return Wording(text, "file")


def scripted(file: str, source: str, original: Original) -> str:
    """The original's text out of a Python script, with `PROMPT` in the prompt's place.

    Raises:
        InputError: no text in the script has its hash.
    """
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"wording={file}: {error}") from error
    for node in nodes:
        text = _literal(node).replace(original.mark, PROMPT)
        if sha256(text) == original.sha256:
            return text
    raise InputError(f"wording={file} does not hold the original; it is in {original.source}")


def _literal(node: ast.AST) -> str:
    """The text that a string of a script stands for, ``{name}`` where it fills something in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(part) for part in node.values)
    return ""


def sha256(text: str) -> str:
    """Of a text in UTF-8, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_names(what: str, names: Sequence[str]) -> None:
    """Refuse names of dimensions that an answer could not be read by.

    Raises:
        InputError: there is none, or one is no plain word.
    """
    if not names:
        raise InputError(f"{what}: give at least one")
    for name in names:
        if not (name.isascii() and name.replace("_", "").isalnum() and name == name.lower()):
            raise InputError(f"{what}.{name}: name it with small letters, digits and _")
