"""Who does which part of a stage: the ranks of a run, or one process alone."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

from tqdm import tqdm

from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import LostBlob

T = TypeVar("T")
M = TypeVar("M")

WAITING = 2
"""Units that may wait to be finished: each holds its videos in memory."""


def no_barrier() -> None:
    """One process waits for no other."""


def own_value(value: Any) -> Any:
    """What one process hears of itself."""
    return value


class Failed(NamedTuple):
    """What the leading rank sends in place of what it could not find."""

    lost: bool
    """Whether it is a `LostBlob` that is to be made anew."""
    said: str


@dataclass(frozen=True)
class Workers:
    """The processes that share a stage's units of work, and the threads of each.

    A unit (a prompt with its candidates) is done whole by one thread of one process, so a result
    does not depend on how many there are. Units done are seen by all through the store, which lies
    on a disk that all ranks share.
    """

    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = no_barrier
    broadcast: Callable[[Any], Any] = own_value
    """Gives every rank the leading rank's value."""
    threads: int = 1
    """Units that this process works on at the same time, where a stage allows it."""
    bars: bool = True
    """Whether progress bars are shown."""
    peers: int = 1
    """Ranks that make each forward together, side by side (context parallelism): a group."""
    share: Callable[[Any], Any] = own_value
    """Gives every rank of a group the value of the group's leading rank."""

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def keeps(self) -> bool:
        """Whether this process keeps what its group computes."""
        return self.rank % self.peers == 0

    @property
    def group(self) -> "Workers":
        """The ranks of this one's group among themselves."""
        return replace(
            self,
            rank=self.rank % self.peers,
            world=self.peers,
            barrier=no_barrier,
            broadcast=self.share,
        )

    @property
    def shows(self) -> bool:
        """Whether this process shows progress bars."""
        return self.leads and self.bars

    def agree(self, find: Callable[[], T]) -> T:
        """What the leading rank finds on disk, for all; the others do not look.

        Ranks that looked for themselves could see different things, on a network disk or beside a
        damaged file, and would then wait for each other at different places. They would also read
        the same files as often as there are ranks.

        Raises:
            Exception: what ``find`` raises on the leading rank; on the others `LostBlob` or
                `InputError` with the same words.
        """
        if not self.leads and self.broadcast is not own_value:
            found = self.broadcast(None)
            if isinstance(found, Failed):
                raise (LostBlob if found.lost else InputError)(found.said)
            return cast(T, found)
        try:
            found = find()
        except Exception as error:
            self.broadcast(Failed(isinstance(error, LostBlob), str(error)))
            raise
        return cast(T, self.broadcast(found))

    def lead(self, todo: Sequence[T], work: Callable[[T], None], label: str, unit: str) -> None:
        """Do all of the work on the leading rank, while the others wait: for little work that
        needs much memory."""
        alone = replace(self, world=1, barrier=no_barrier)
        if self.leads:
            alone.run(todo, work, label, unit)
        self.barrier()

    def run(
        self,
        todo: Sequence[T],
        work: Callable[[T], None],
        label: str,
        unit: str,
        *,
        together: bool = False,
        forwards: bool = False,
    ) -> None:
        """Do this rank's part of the work, with a progress bar on the leading rank.

        All ranks must hold the same ``todo``, see `agree`. ``together`` lets the threads share the
        units; the work must then allow it. ``forwards``: the work takes forwards of the network,
        which a group of ranks makes together. A unit that meets a `LostBlob` is left undone: the
        file is gone from the disk that all ranks see, and what was to be made is missing there.
        """
        threads = self.threads if together else 1
        peers = self.peers if forwards else 1
        self._run(todo, lambda units: _shared(units, work, threads), label, unit, peers)

    def run_finishing(
        self,
        todo: Sequence[T],
        work: Callable[[T], M],
        finish: Callable[[M], None],
        label: str,
        unit: str,
    ) -> None:
        """As `run` with ``together`` and ``forwards``, for work in two parts.

        Where threads share the units, each works on its own and finishes it. A single one works on
        the next unit while another finishes the last: the device need not wait for the disk.
        """
        if self.threads == 1:
            overlapped = partial(_overlapped, work=work, finish=finish)
            self._run(todo, overlapped, label, unit, self.peers)
            return

        def both(one: T) -> None:
            finish(work(one))

        self._run(todo, lambda units: _shared(units, both, self.threads), label, unit, self.peers)

    def _run(
        self,
        todo: Sequence[T],
        results: Callable[[Sequence[T]], Iterator[None]],
        label: str,
        unit: str,
        peers: int,
    ) -> None:
        """``peers``: neighbouring ranks that do each unit together."""
        self.barrier()  # every rank knows its part before anyone finishes a unit
        mine = todo[self.rank // peers :: self.world // peers]
        bar = tqdm(total=len(mine), desc=label, unit=f" {unit}", disable=not (self.shows and mine))
        with bar:
            for _ in results(mine):
                bar.update()
        self.barrier()


def _shared(units: Sequence[T], work: Callable[[T], None], threads: int) -> Iterator[None]:
    def attempt(one: T) -> None:
        with suppress(LostBlob):
            work(one)

    if threads == 1:
        yield from map(attempt, units)
        return
    with ThreadPoolExecutor(threads) as pool:
        jobs = [pool.submit(attempt, one) for one in units]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure nobody starts another unit


def _overlapped(
    units: Sequence[T], work: Callable[[T], M], finish: Callable[[M], None]
) -> Iterator[None]:
    """One result a finished unit; where the work fails, what was made before is finished first."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "finishing") as pool:
        for one in units:
            with suppress(LostBlob):
                waiting.append(pool.submit(finish, work(one)))
            while len(waiting) > WAITING or (waiting and waiting[0].done()):
                yield waiting.popleft().result()
        for job in waiting:
            yield job.result()
