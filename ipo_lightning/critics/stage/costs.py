"""What a critic takes of a device, computed before anything is loaded, for the plan of a run.

A critic says it by an optional method ``cost(video)``; of one that has none nothing is known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from ipo_lightning.critics.protocols import kind_of

Place = Literal["device", "server", "none"]
"""Where a critic's weights are: beside the policy, at an address, or it has none."""
GIVE = "give the class of the critic a method cost (docs/extending.md)"


class Watched(NamedTuple):
    """A video as critics are shown it."""

    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Cost:
    """Memory and work of a critic; None: unknown, and ``unknown`` says why."""

    name: str
    """Of its model."""
    place: Place = "device"
    weights: float | None = 0.0
    """Bytes."""
    activations: float | None = 0.0
    """Bytes at the fullest moment of an answer, its inputs included."""
    flops: float | None = 0.0
    """Operations of an answer: the rating of a video, or a comparison in one order."""
    written: int = 0
    """Tokens that an answer has at most; each of them reads all weights."""
    source: str = ""
    """Where its sizes come from, in a few words."""
    unknown: str = ""
    """What to give for what is not known."""
    address: str = ""
    """Of the server."""
    members: tuple["Cost", ...] = ()
    """Of several critics as one: each by itself."""
    member: str = ""
    """Its name among the members."""

    @property
    def held(self) -> float | None:
        """Bytes at the fullest moment."""
        if self.weights is None or self.activations is None:
            return None
        return self.weights + self.activations

    @property
    def read(self) -> float | None:
        """Bytes of weights that the tokens of an answer read."""
        if self.members:
            return added(one.read for one in self.members)
        return None if self.weights is None else self.weights * self.written

    def several(self, answers: int) -> "Cost":
        """The same, where an answer takes several forwards one after the other."""
        flops = None if self.flops is None else self.flops * answers
        members = tuple(one.several(answers) for one in self.members)
        return replace(self, flops=flops, written=self.written * answers, members=members)


def cost_of(critic: Any, video: Watched) -> Cost:
    """What a critic says that it costs; of one that says nothing all is unknown.

    Args:
        critic: of any kind.
        video: what it is asked about.
    """
    told = getattr(critic, "cost", None)
    if told is not None:
        found: Cost = told(video)
        return found
    if kind_of(critic) == "recorded":
        return Cost(type(critic).__name__, "none")
    return unknown_cost(type(critic).__name__, GIVE)


def unknown_cost(name: str, instead: str) -> Cost:
    """The cost of a critic of which nothing is known."""
    return Cost(name, weights=None, activations=None, flops=None, unknown=instead)


def combined(members: Sequence[Cost], *, together: bool) -> Cost:
    """The cost of several critics that are asked as one.

    Args:
        together: whether all are in memory at the same time; else one after the other.
    """
    name, flops = f"{len(members)} critics", added(one.flops for one in members)
    held = [one.held for one in members if one.place == "device"]
    known = [size for size in held if size is not None]
    whole = sum(known) if together else max(known, default=0.0)
    weights = whole if len(known) == len(held) else None
    place: Place = "device" if held else members[0].place
    return Cost(name, place, weights=weights, flops=flops, members=tuple(members))


def added(sizes: Iterable[float | None]) -> float | None:
    """A sum; None where a part of it is unknown."""
    total = 0.0
    for size in sizes:
        if size is None:
            return None
        total += size
    return total
