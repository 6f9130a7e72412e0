"""Units are dealt to the ranks one by one, each to the next rank that is free."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")

Counter = Callable[[str], int]
"""Raises the number of that name, which all ranks share, and gives it as it was; from 0 on."""

_jobs = count()


def new_job() -> int:
    """A number that this process has given to no job before."""
    return next(_jobs)


def shared_counter() -> Counter | None:
    """Numbers in the store by which the ranks of ``torch.distributed`` found each other; None where
    there is none.

    The store's server is a thread of the leading rank, which answers whatever that rank computes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    store = dist.distributed_c10d._get_default_store()
    return lambda name: int(store.add(f"ipo_lightning/{name}", 1)) - 1


def claimed(units: Sequence[T], claim: Callable[[], int]) -> Iterator[tuple[int, T]]:
    """The units that this rank gets, with their places: each when the last one is given away."""
    while (place := claim()) < len(units):
        yield place, units[place]


def in_turn(units: Sequence[T], rank: int, world: int) -> Iterator[tuple[int, T]]:
    """Every world-th unit with its place, where ranks share no numbers."""
    return islice(enumerate(units), rank, None, world)
