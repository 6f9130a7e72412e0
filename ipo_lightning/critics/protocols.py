"""What a critic is.

A critic sees pixels and prompts, never latents, seeds or file names. Adding one takes a class with
these methods and a YAML that names it in ``_target_``; nothing is inherited or registered.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, Protocol, runtime_checkable

from ipo_lightning.errors import InputError
from ipo_lightning.metrics.preferences import Preference
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
    fault: str = ""
    """Why there is no score, in a few words that failures can be counted by ("unreadable")."""
    transient: bool = False
    """Whether asking again may help, as after a time-out, be it of all or of a part: the answer
    counts for now, and the next stage that wants it asks again."""


class Comparison(NamedTuple):
    """What a pairwise critic said of two videos in the order in which it saw them."""

    preference: Preference | None
    """None: no verdict could be read out."""
    dims: Mapping[str, float] = {}
    """By dimension: chance that the first is better, a tie counting half, in [0, 1]."""
    certainty: float = 1.0
    """How sure the critic is, in [0, 1]; the share of its votes, where it has several."""
    raw: str = ""
    """The critic's own words or logits."""
    fault: str = ""
    """Why there is no verdict, as in `Rating`."""
    transient: bool = False
    """Whether asking again may help, as in `Rating`."""


class Identified(Protocol):
    """Whatever has an identity: critics, and the models that they ask."""

    @property
    def identity(self) -> str:
        """See `Critic`."""
        ...


class Critic(Protocol):
    """What pointwise and pairwise critics have in common.

    A critic that asks others for its answers, or that leaves the device alone, may say so with an
    attribute ``beside = True``: it is then asked while the next videos are made, in a thread of its
    own, and the critique stage finds its verdicts in the store. One that works on many questions
    at the same time may say with ``at_once = N`` that the stage is to put N prompts to it in a
    call; its answers must not depend on it. One that may lack something (a file, a key, a network)
    may have a method ``ready()``, which is called before videos are made for it and raises
    `InputError` where it does.
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
        """Give that memory back; called after the stage, before training, and also where `load`
        or the stage failed."""
        ...


@runtime_checkable
class PointCritic(Critic, Protocol):
    """Rates one video at a time; batch, order and rank must not change a score."""

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip, in order."""
        ...


class CombinedCritic(PointCritic, Protocol):
    """Rates by what its members say: the critique stage asks each in its own name, over all videos,
    so that one member's weights are in memory at a time and its verdicts serve other combinations.
    """

    @property
    def members(self) -> Mapping[str, PointCritic]:
        """The members by name."""
        ...

    def combine(self, ratings: Mapping[str, Rating]) -> Rating:
        """What the members' ratings of one video say together. Must be quick and ask nobody."""
        ...


@runtime_checkable
class PairCritic(Critic, Protocol):
    """Compares two videos of one prompt as they are shown; batch and rank must not matter.

    It need not be fair to both places: whoever asks shows both orders, see
    `ipo_lightning.metrics.preferences.both_orders`.
    """

    def compare(
        self, first: Sequence[Clip], second: Sequence[Clip], prompts: Sequence[str]
    ) -> list[Comparison]:
        """One comparison a prompt, in order."""
        ...


class Question(NamedTuple):
    """Two videos of one prompt, by the names (sha256) of their mp4 files."""

    first: str
    second: str
    prompt: str


@runtime_checkable
class RecordedCritic(Protocol):
    """Has its verdicts from elsewhere, from people above all: looked up, never computed.

    It takes care of the order itself (people see random sides), so each question is asked once.
    What it has to say besides, such as how its annotators worked, may be the lines of a method
    ``notes()``; they are shown at the end of a run.
    """

    @property
    def identity(self) -> str:
        """As a `Critic`'s."""
        ...

    def recall(self, question: Question) -> Comparison | None:
        """What is known of (first, second), or of (second, first) turned round; None: nothing."""
        ...

    def request(self, unanswered: Sequence[Question], find: Callable[[str], Path]) -> NoReturn:
        """Ask for what is missing, all at once. ``find`` gives the file of a video.

        Raises:
            AnswersPending: always; it tells what to do and how to go on.
        """
        ...


class AnswersPending(Exception):
    """The run stops politely until somebody has answered."""


class CriticGone(Exception):
    """A critic cannot be reached at all: the stage stops, what was answered is kept."""


def check_ready(critic: Identified) -> None:
    """Let a critic refuse for want of something, which also its identity may tell; see `Critic`.

    Raises:
        InputError: it lacks something.
    """
    ready = getattr(critic, "ready", None)
    if ready is not None:
        ready()
    _ = critic.identity


Kind = Literal["rates", "compares", "recorded"]


def kind_of(critic: object) -> Kind:
    """What a critic is asked for, by its methods; one that can rate is asked to.

    Not by ``isinstance``: Python 3.11 would ask for the identity, which may want the network.

    Raises:
        InputError: it is no critic.
    """
    methods: dict[str, Kind] = {"rate": "rates", "compare": "compares", "recall": "recorded"}
    for method, kind in methods.items():
        if hasattr(critic, method):
            return kind
    raise InputError(
        f"critic: {type(critic).__name__} is no critic: it has neither rate, compare nor recall "
        "(docs/extending.md)"
    )
