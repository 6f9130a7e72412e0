"""What a critic is: the protocols that a critic's class follows.

A critic sees pixels and prompts, never seeds or file names; a `LatentCritic`, which sees latents,
gives no labels: it foresees what a critic will say. To add one, write a class with these methods
and a YAML that names it in ``_target_``; nothing is inherited or registered.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn, Protocol, runtime_checkable

from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.metrics.preferences import Preference
from ipo_lightning.video import Clip


class Rating(NamedTuple):
    """What a pointwise critic said of one video."""

    score: float | None
    """Higher is better; comparable within one critic only. None: the critic's answer has no score.
    A missing score is counted and reported, never replaced by a default."""
    dims: Mapping[str, float] = {}
    """Scores by dimension (``{"motion": 0.9}``), higher is better."""
    certainty: float = 1.0
    """How sure the critic is of its score, in [0, 1]."""
    raw: str = ""
    """The critic's own words or logits, kept for whoever audits a verdict."""
    fault: str = ""
    """Why there is no score, in a few words ("unreadable"): failures are counted by it."""
    transient: bool = False
    """Whether asking again may help, as after a time-out, even if only a part of the answer is
    missing. The answer counts in this stage; the next stage that needs it asks again."""


class Comparison(NamedTuple):
    """What a pairwise critic said of two videos, in the order in which it saw them."""

    preference: Preference | None
    """None: the critic's answer has no verdict."""
    dims: Mapping[str, float] = {}
    """By dimension: chance that the first is better, in [0, 1]; a tie counts half."""
    certainty: float = 1.0
    """How sure the critic is, in [0, 1]; of several votes, the share of the majority."""
    raw: str = ""
    """The critic's own words or logits."""
    fault: str = ""
    """Why there is no verdict, as in `Rating`."""
    transient: bool = False
    """Whether asking again may help, as in `Rating`."""


class Identified(Protocol):
    """Anything with an identity: critics, and the models that they ask."""

    @property
    def identity(self) -> str:
        """All that determines the answers, see `Critic`."""
        ...


class Critic(Protocol):
    """What pointwise and pairwise critics have in common.

    Optional members of a critic:

    - ``during_rollout = True``: it is asked during the rollout, in a thread of its own, while the
      next videos are made. For critics that do not use the device, such as a remote server.
    - ``prompts_per_call = N``: the stage asks it about the videos of N prompts in one call. Its
      answers must not depend on N.
    - ``ready()``: called before videos are made for it; raises `InputError` where it lacks
      something (a file, a key, a network).
    - ``cost(video)``: what it takes of a device, as ``ipo_lightning.critics.stage.costs.Cost``,
      for the plan of a run; without it the plan says that it is unknown.
    """

    @property
    def identity(self) -> str:
        """``model@revision#prompt-version#sampling``: all that determines a verdict, except the
        video and its prompt. It is part of a verdict's key: under another identity the critic is
        asked again."""
        ...

    def load(self, device: str) -> None:
        """Load the critic's model; called before the critique stage."""
        ...

    def release(self) -> None:
        """Free the memory; called after the stage, before training, and also after a failure of
        `load` or of the stage."""
        ...


@runtime_checkable
class PointCritic(Critic, Protocol):
    """Rates one video at a time; batch, order and rank must not change a score."""

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip, in order."""
        ...


class CombinedCritic(PointCritic, Protocol):
    """Combines the ratings of several critics, its members.

    The critique stage asks one member after the other about all videos, so that the weights of one
    are in memory at a time. Each member's ratings are kept under its own identity: another
    combination of the same members asks nothing again.
    """

    @property
    def members(self) -> Mapping[str, PointCritic]:
        """The members by name."""
        ...

    def combine(self, ratings: Mapping[str, Rating]) -> Rating:
        """The members' ratings of one video, by name, as one rating. It asks no model."""
        ...


@runtime_checkable
class PairCritic(Critic, Protocol):
    """Compares two videos of one prompt; batch and rank must not change a comparison.

    It may have a position bias: the critique stage shows both orders, see
    `ipo_lightning.metrics.preferences.both_orders`.
    """

    def compare(
        self, first: Sequence[Clip], second: Sequence[Clip], prompts: Sequence[str]
    ) -> list[Comparison]:
        """One comparison a prompt, in order."""
        ...


@runtime_checkable
class LatentCritic(Critic, Protocol):
    """Rates videos that are not finished, by their foreseen clean latents; nothing is decoded.

    Its ratings choose which candidates are finished, and become no labels.
    """

    def rate_latents(
        self, latents: Tensor, noise_level: float, prompts: Sequence[str]
    ) -> list[Rating]:
        """One rating a video, in order; batch, order and rank must not change a score.

        Args:
            latents: (B, ...) the clean latents that the network foresees at one step, float32, in
                the layout of its family: CogVideoX (B, F, C, H, W), Wan (B, C, F, H, W).
            noise_level: of the latents that the network saw at that step: the share of noise,
                ``sigma / (alpha + sigma)`` in [0, 1], the same for all; 0 for finished videos.
            prompts: (B,) of the videos.
        """
        ...


class Question(NamedTuple):
    """Two videos of one prompt, by the names (sha256) of their mp4 files."""

    first: str
    second: str
    prompt: str


@runtime_checkable
class RecordedCritic(Protocol):
    """Looks its verdicts up: they were recorded elsewhere, mostly by people.

    It shows the two videos on random sides itself, so that each question is asked once. An optional
    method ``notes()`` returns lines that are shown at the end of a run, such as how annotators
    worked.
    """

    @property
    def identity(self) -> str:
        """As of a `Critic`."""
        ...

    def recall(self, question: Question) -> Comparison | None:
        """The recorded comparison of (first, second), in whichever order it was made; None: there
        is none."""
        ...

    def request(self, unanswered: Sequence[Question], find: Callable[[str], Path]) -> NoReturn:
        """Request the missing answers, all at once.

        Args:
            find: name of a video -> its file.

        Raises:
            AnswersPending: always; its message says what to do and how to go on.
        """
        ...


class AnswersPending(Exception):
    """The run stops, without an error, until people have answered."""


class CriticGone(Exception):
    """A critic cannot be reached: the stage stops, and keeps the answers that it has."""


def check_ready(critic: Identified) -> None:
    """Check that a critic can be asked: call its ``ready()``, and read its identity, which may
    need a file.

    Raises:
        InputError: says what the critic lacks.
    """
    ready = getattr(critic, "ready", None)
    if ready is not None:
        ready()
    _ = critic.identity


Kind = Literal["rates", "compares", "recorded"]


def kind_of(critic: object) -> Kind:
    """The kind of a critic, by its methods. A critic that has several is of the first of them.

    ``isinstance`` is not used: Python 3.11 would read the identity, which may need the network.

    Raises:
        InputError: the object is not a critic.
    """
    methods: dict[str, Kind] = {"rate": "rates", "compare": "compares", "recall": "recorded"}
    for method, kind in methods.items():
        if hasattr(critic, method):
            return kind
    raise InputError(
        f"critic: {type(critic).__name__} is not a critic: it has no method rate, compare or "
        "recall (docs/extending.md)"
    )
