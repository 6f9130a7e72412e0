"""What units of work are computed with, a network or a critic, and where: here or by an engine.

A unit's heavy part is a function of tensors: it takes what it is computed with first, and reads and
writes no store. So it may run in any process; files are read and written by the process that asks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

Role = Literal["policy", "critic"]


class Builder(Protocol):
    """Makes in another process what units are computed with; it can be pickled."""

    def build(self, device: str) -> Any:
        """What the functions get as their first argument, on ``cpu`` or ``cuda``."""
        ...

    def put(self, built: Any, weights: Any) -> None:
        """Give it the weights that were sent."""
        ...

    def release(self, built: Any) -> None:
        """Give back its memory."""
        ...


class Sent(NamedTuple):
    """What another process needs, so that it can compute units."""

    role: Role
    key: str
    """Of what is built: it is kept as long as the next has the same one."""
    builder: Builder
    version: str = ""
    """Of the weights: they are sent again once it is another one."""
    weights: Callable[[], Any] | None = None
    """Gives those that differ from what is built, on the CPU; None: there are none."""


class Use(Protocol):
    """A network or a critic that units are computed with."""

    def here(self) -> AbstractContextManager[Any]:
        """What the functions get as their first argument, in this process."""
        ...

    def sent(self) -> Sent:
        """What another process needs in its place; every rank calls it."""
        ...


class Calls(Protocol):
    """Calls functions with what units are computed with."""

    def start(self, work: Callable[..., Any], *args: Any) -> Any:
        """Begin a unit: ``work(what it is computed with, *args)``, where it needs the device."""
        ...

    def finish(self, started: Any, rest: Callable[[Any], Any]) -> Any:
        """``rest(what work gave)``: what needs the CPU alone, beside the next unit's start."""
        ...


@dataclass(frozen=True)
class Here:
    """Calls in this process."""

    held: Any

    def start(self, work: Callable[..., Any], *args: Any) -> Any:
        """See `Calls`."""
        return work(self.held, *args)

    def finish(self, started: Any, rest: Callable[[Any], Any]) -> Any:
        """See `Calls`."""
        return rest(started)


class Waiting(Here):
    """Of a rank that waits while the leading one has all units computed; it is given none."""

    def __init__(self) -> None:
        super().__init__(None)


class Elsewhere(ABC):
    """Calls in other processes, each from a thread that waits for its answer."""

    @abstractmethod
    def room(self) -> int:
        """How many units may be under way now."""

    @abstractmethod
    def stop(self) -> None:
        """Let all calls under way fail at once."""

    @abstractmethod
    def start(self, work: Callable[..., Any], *args: Any) -> Any:
        """See `Calls`."""

    @abstractmethod
    def finish(self, started: Any, rest: Callable[[Any], Any]) -> Any:
        """See `Calls`."""


class Engine(Protocol):
    """Computes units in processes elsewhere; the leading rank alone asks it."""

    def serving(self, sent: Sent, units: int) -> AbstractContextManager[Elsewhere]:
        """Calls for so many units, as long as the context is open."""
        ...

    def close(self) -> None:
        """End the processes elsewhere; a later `serving` starts others."""
        ...


def ranks() -> None:
    """``stages=ranks``: the trainer's own processes do all work, without an engine."""


def itself(value: Any) -> Any:
    """A unit that is finished with its start."""
    return value
