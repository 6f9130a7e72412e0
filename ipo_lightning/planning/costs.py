"""Costs of pieces of work, a cache of them, and how small pieces are extrapolated to larger."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Step(NamedTuple):
    """A training step: bytes, but for ``parameters``, ``trained`` and ``flops``."""

    parameters: int
    """Number of parameters; two of 4 bits share a byte."""
    trained: int
    """Number of trained parameters."""
    weights: int
    reference: int
    gradients: int
    forward: int
    """Peak of the forward beyond weights, reference and gradients; with ``forward_casts``."""
    forward_casts: int
    """Of this peak: autocast's copies of weights."""
    backward: int
    backward_casts: int
    block: int
    """Weights of the largest block."""
    flops: int
    """Floating-point operations."""

    @property
    def peak(self) -> tuple[int, int]:
        """Peak bytes, and how many of them are autocast's copies of weights."""
        return max((self.forward, self.forward_casts), (self.backward, self.backward_casts))


class Forward(NamedTuple):
    """A forward without gradients."""

    held: int
    """Peak bytes."""
    casts: int
    """Of these: autocast's copies of weights."""
    flops: int
    """Floating-point operations."""


_CACHE: dict[tuple[Any, ...], Any] = {}
"""Costs by what they depend on: a sweep, or a search for what fits, plans one network often."""


def cached(key: tuple[Any, ...], work: Callable[[], T]) -> T:
    """The cost of a key, from the cache or from the work."""
    if key not in _CACHE:
        _CACHE[key] = work()
    found: T = _CACHE[key]
    return found


def extrapolated(few: Sequence[int], more: Sequence[int], times: float) -> tuple[int, ...]:
    """``more + times (more - few)``, element by element."""
    return tuple(round(b + times * (b - a)) for a, b in zip(few, more, strict=True))
