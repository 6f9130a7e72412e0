"""Who does which part of a stage: the ranks of a run, or one process alone."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar, cast

from tqdm import tqdm

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.computing import Calls, Elsewhere, Engine, Here, Use, Waiting
from ipo_lightning.parallel.dealing import Counter, claimed, in_turn, new_job
from ipo_lightning.storage.store import LostBlob

T = TypeVar("T")
M = TypeVar("M")

WAITING = 2
"""Units that may wait to be finished: each holds its videos in memory."""
LOOK = 1.0
"""Seconds after which an engine is asked again how many units may be under way."""
MOST = 4096
"""Units that may be under way elsewhere."""


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
    does not depend on how many there are, nor on who does it: each goes to the next that is free.
    Units done are seen by all through the store, which lies on a disk that all ranks share.
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
    counter: Counter | None = None
    """Numbers that all ranks share; None: units are dealt in turn, whoever is slow."""
    engine: Engine | None = None
    """Computes units elsewhere; None: the ranks do."""

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

    @contextmanager
    def computing(self, use: Use, units: int) -> Iterator[Calls]:
        """Calls for the heavy parts of so many units: in this process, or by the engine.

        With an engine the leading rank makes them all, see `run`; the others must enter as well.
        """
        if self.engine is None or not units:
            with use.here() as held:
                yield Here(held)
            return
        sent = use.sent()  # of a network in shards by all ranks
        if not self.leads:
            yield Waiting()
            return
        with self.engine.serving(sent, units) as calls:
            yield calls

    def run(
        self,
        todo: Sequence[T],
        work: Callable[[T], None],
        label: str,
        unit: str,
        *,
        together: bool = False,
        forwards: bool = False,
        calls: Calls | None = None,
    ) -> None:
        """Do this rank's part of the work, with a progress bar on the leading rank.

        All ranks must hold the same ``todo``, see `agree`. ``together`` lets the threads share the
        units; the work must then allow it. ``forwards``: the work takes forwards of the network,
        which a group of ranks makes together. A unit that meets a `LostBlob` is left undone: the
        file is gone from the disk that all ranks see, and what was to be made is missing there.

        Args:
            calls: by which the work is computed, see `computing`; of an engine's the leading rank
                makes all, and the others wait.
        """
        threads = self.threads if together else 1

        def results(units: Iterator[T]) -> Iterator[None]:
            if isinstance(calls, Elsewhere):
                return _elsewhere(units, work, calls)
            return _shared(units, work, threads)

        self._run(todo, results, label, unit, self.peers if forwards else 1, calls)

    def run_finishing(
        self,
        todo: Sequence[T],
        work: Callable[[T], M],
        finish: Callable[[M], None],
        label: str,
        unit: str,
        calls: Calls | None = None,
    ) -> None:
        """As `run` with ``together`` and ``forwards``, for work in two parts.

        Where threads share the units, each works on its own and finishes it. A single one works on
        the next unit while another finishes the last: the device need not wait for the disk.
        """

        def both(one: T) -> None:
            finish(work(one))

        def results(units: Iterator[T]) -> Iterator[None]:
            if isinstance(calls, Elsewhere):
                return _elsewhere(units, both, calls)
            if self.threads == 1:
                return _overlapped(units, work, finish)
            return _shared(units, both, self.threads)

        self._run(todo, results, label, unit, self.peers, calls)

    def _run(
        self,
        todo: Sequence[T],
        results: Callable[[Iterator[T]], Iterator[None]],
        label: str,
        unit: str,
        peers: int,
        calls: Calls | None,
    ) -> None:
        """``peers``: neighbouring ranks that do each unit together."""
        self.barrier()  # every rank knows the units before anyone finishes one
        elsewhere = isinstance(calls, Elsewhere | Waiting)
        mine = self._leads_all(todo) if elsewhere else self._mine(todo, peers)
        alone = elsewhere or self.world == peers
        bar = tqdm(total=len(todo), desc=label, unit=f" {unit}", disable=not (self.shows and todo))
        with bar:
            for _ in results(mine.units()):
                bar.update(1 if alone else max(1, mine.given - bar.n))
            self.barrier()
            bar.update(len(todo) - bar.n)

    def _leads_all(self, todo: Sequence[T]) -> "_Share[T]":
        """All units are the leading rank's."""
        return _Share(enumerate(todo if self.leads else todo[:0]))

    def _mine(self, todo: Sequence[T], peers: int) -> "_Share[T]":
        """This rank's units: each that is not given away when it is free."""
        if self.counter is None or self.world == peers:
            return _Share(in_turn(todo, self.rank // peers, self.world // peers))
        job, counter, group = self.agree(new_job), self.counter, self.group

        def claim() -> int:
            if peers == 1:
                return counter(f"units/{job}")
            return group.agree(lambda: counter(f"units/{job}"))

        return _Share(claimed(todo, claim))


class _Share(Generic[T]):
    """Units that are given to this rank one by one."""

    def __init__(self, source: Iterator[tuple[int, T]]) -> None:
        self._source = source
        self.given = 0
        """How many units all ranks were given, as far as this one knows."""

    def units(self) -> Iterator[T]:
        """The units."""
        for place, one in self._source:
            self.given = place + 1
            yield one


def _shared(units: Iterator[T], work: Callable[[T], None], threads: int) -> Iterator[None]:
    """One result a finished unit."""
    if threads == 1:
        yield from map(_attempting(work), units)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from _dealt(pool, units, work, lambda: threads, None)


def _elsewhere(units: Iterator[T], work: Callable[[T], None], calls: Elsewhere) -> Iterator[None]:
    """As `_shared`, by a thread for each unit under way elsewhere, as many as there is room for.

    After a failure nothing is begun, and what is under way is finished; a signal ends it.
    """
    with ThreadPoolExecutor(MOST) as pool:
        try:
            yield from _dealt(pool, units, work, calls.room, LOOK)
        except Exception:
            raise
        except BaseException:
            calls.stop()  # or the threads, for which the pool waits, would wait for their answers
            raise


def _dealt(
    pool: ThreadPoolExecutor,
    units: Iterator[T],
    work: Callable[[T], None],
    room: Callable[[], int],
    look: float | None,
) -> Iterator[None]:
    """Keep as many units under way as there is room for, looked up every so many seconds."""
    attempt = _attempting(work)
    busy: set[Future[None]] = set()
    while True:
        busy |= {pool.submit(attempt, one) for one in islice(units, max(0, room() - len(busy)))}
        if not busy:
            return
        done, busy = wait(busy, look, FIRST_COMPLETED)
        for job in done:
            yield job.result()


def _attempting(work: Callable[[T], None]) -> Callable[[T], None]:
    """The work; a unit that meets a `LostBlob` is left undone."""

    def attempt(one: T) -> None:
        with suppress(LostBlob):
            work(one)

    return attempt


def _overlapped(
    units: Iterator[T], work: Callable[[T], M], finish: Callable[[M], None]
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
