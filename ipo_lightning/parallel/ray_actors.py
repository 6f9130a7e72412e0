"""The Ray actors of one kind: started, given units, missed and replaced."""

import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, NamedTuple

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.computing import Elsewhere
from ipo_lightning.parallel.ray_actor import Answer, Holder, Numerics

LOOK = 0.5
"""Seconds between two looks at the cluster."""
PATIENCE = 300.0
"""Seconds without any actor after which somebody is told why."""
DEATHS = 5
"""Times that actors were lost one after another before any has loaded what it should hold."""
APART = 10.0
"""Seconds between two such times: a node that is lost takes all of its actors along."""
AT_ONCE = 2
"""Units under way for each actor: one computes, the other is finished or has its inputs read."""
CALLS = 8
"""Calls that an actor serves at the same time: one start, and what is being finished."""
LOGS = "see Ray's logs, /tmp/ray/session_latest/logs on the node"


class Demand(NamedTuple):
    """What an actor takes of its node."""

    cpus: float
    gpus: float
    resources: Mapping[str, float]

    def fits(self, node: Mapping[str, float]) -> int:
        """How many of them a node has room for, with nothing else on it."""
        needs = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        rooms = [int(node.get(name, 0) / n + 1e-6) for name, n in needs.items() if n]
        return min(rooms, default=0)


class Load(NamedTuple):
    """What actors are to hold; builder and weights are references into Ray's object store."""

    key: str
    builder: Any
    version: str
    weights: Any


class Begun(NamedTuple):
    """A unit that an actor has begun."""

    actor: Any
    token: int
    work: Callable[..., Any]
    args: tuple[Any, ...]


class Lost(Exception):
    """The actor, or its node, is gone."""


class Stopped(Exception):
    """The calls were given up."""


class Actors(Elsewhere):
    """As many actors as are wanted and fit; each computes one unit at a time.

    Args:
        most: None: as many as the cluster has room for.
        retries: how often a unit begins anew when its actor is lost.
    """

    def __init__(self, demand: Demand, most: int | None, retries: int) -> None:
        self.demand, self.most, self.retries = demand, most, retries
        self._changed = threading.Condition()
        self._nodes: dict[Any, str | None] = {}
        """Actor -> its node, once it holds what it should."""
        self._loading: dict[Any, Any] = {}
        """Reference of an answer to come -> the actor that loads."""
        self._free: deque[Any] = deque()
        self._load = Load("", None, "", None)
        self._units, self._deaths, self._last_death = 0, 0, 0.0
        self._failure: Exception | None = None
        self._tokens, self._orders = count(), count()

    # ---------------------------------------------------------------- units

    def room(self) -> int:
        """See `Elsewhere`."""
        return AT_ONCE * max(1, sum(node is not None for node in [*self._nodes.values()]))

    def start(self, work: Callable[..., Any], *args: Any) -> Begun:
        """Have an actor begin a unit; waits for one that is free.

        Raises:
            Exception: what the unit, or the loading, raises there.
            InputError: the unit was lost with its actor, time and again.
        """
        for _ in range(self.retries + 1):
            actor, token = self._take(), next(self._tokens)
            with suppress(Lost):
                answer = self._get(actor, actor.start.remote(token, work, args))
                self._give_back(actor)
                _value(answer)
                return Begun(actor, token, work, args)
        raise InputError(
            setting="stages.retries",
            value=self.retries,
            expected=f"a unit was lost with its actor {self.retries + 1} times: have its nodes "
            f"memory enough? {LOGS}",
        )

    def finish(self, started: Begun, rest: Callable[[Any], Any]) -> Any:
        """The unit's result; it begins anew on another actor where its own was lost."""
        while True:
            with suppress(Lost):
                reference = started.actor.finish.remote(started.token, rest)
                return _value(self._get(started.actor, reference))
            started = self.start(started.work, *started.args)

    def stop(self) -> None:
        """See `Elsewhere`: end the actors."""
        import ray

        with self._changed:
            self._failure = Stopped()
            for actor in self._nodes:
                with suppress(Exception):
                    ray.kill(actor)
            self._forget()
            self._changed.notify_all()

    def _forget(self) -> None:
        for known in (self._nodes, self._loading, self._free):
            known.clear()

    def _take(self) -> Any:
        """An actor that is free."""
        with self._changed:
            while True:
                if self._failure is not None:
                    raise self._failure
                if self._free:
                    return self._free.popleft()
                self._changed.wait()

    def _give_back(self, actor: Any) -> None:
        with self._changed:
            if actor in self._nodes:
                self._free.append(actor)
                self._changed.notify()

    def _get(self, actor: Any, reference: Any) -> Answer:
        """What an actor answers.

        Raises:
            Lost: it is gone.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            answer: Answer = ray.get(reference)
            return answer
        except RayTaskError:  # Ray could not hand the call over, as where a module is missing there
            raise
        except RayError as error:
            self._lose(actor)
            raise Lost from error

    def _lose(self, actor: Any) -> None:
        """Do without an actor; another one is started in its place."""
        import ray

        with self._changed:
            self._nodes.pop(actor, None)
            with suppress(ValueError):
                self._free.remove(actor)
        with suppress(Exception):
            ray.kill(actor)  # it may but be out of reach

    # ---------------------------------------------------------------- actors

    @contextmanager
    def serve(self, load: Load, units: int) -> Iterator[None]:
        """Keep actors that hold something, at most one for each unit."""
        over = threading.Event()
        with self._changed:
            self._load, self._units, self._deaths, self._failure = load, units, 0, None
            self._loading.clear()
            self._free.clear()
            for actor in self._nodes:
                self._begin_loading(actor)
        tending = threading.Thread(target=self._tend, args=(over,), daemon=True)
        tending.start()
        try:
            yield
        finally:
            over.set()
            tending.join()

    def _begin_loading(self, actor: Any) -> None:
        self._nodes[actor] = None
        self._loading[actor.hold.remote(next(self._orders), *self._load)] = actor

    def _tend(self, over: threading.Event) -> None:
        """Look at the cluster until the stage is over."""
        told, since = False, time.monotonic()
        try:
            while not over.is_set():
                self._look()
                if not told and not any(self._nodes.values()):
                    told = self._tell_of_waiting(time.monotonic() - since)
                over.wait(LOOK)
        except Exception as error:  # Ray itself is gone
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _look(self) -> None:
        """Miss actors of nodes that are gone, start others, welcome those that have loaded."""
        import ray

        nodes = {one["NodeID"]: one["Resources"] for one in ray.nodes() if one["Alive"]}
        gone = [one for one, node in [*self._nodes.items()] if node and node not in nodes]
        for actor in gone:
            self._lose(actor)
        room = sum(map(self.demand.fits, nodes.values())) if self.most is None else self.most
        with self._changed:
            while self._failure is None and len(self._nodes) < min(max(1, room), self._units):
                self._begin_loading(self._new())
            waiting = [*self._loading]
        if waiting:
            for reference in ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]:
                self._welcome(reference)

    def _new(self) -> Any:
        """An actor; Ray starts it once a node has room."""
        import ray

        kind = ray.remote(Holder).options(
            num_cpus=self.demand.cpus,
            num_gpus=self.demand.gpus,
            resources=dict(self.demand.resources),
            max_concurrency=CALLS,
        )
        return kind.remote(Numerics.here(), "cuda" if self.demand.gpus else "cpu")

    def _welcome(self, reference: Any) -> None:
        """An actor has loaded what it should hold, or failed to, or is lost."""
        actor = self._loading.pop(reference, None)
        if actor is None:
            return
        failure: Exception | None = None
        try:
            node = _value(self._get(actor, reference))
        except Lost as error:
            if time.monotonic() - self._last_death > APART:
                self._deaths, self._last_death = self._deaths + 1, time.monotonic()
            failure = _died(error) if self._deaths >= DEATHS else None
        except Exception as error:
            failure = error
        else:
            self._deaths = 0
            self._settle(actor, node)
        if failure is not None:
            with self._changed:
                self._failure = self._failure or failure
                self._changed.notify_all()

    def _settle(self, actor: Any, node: str) -> None:
        with self._changed:
            if actor in self._nodes:
                self._nodes[actor] = node
                self._free.append(actor)
                self._changed.notify()

    def _tell_of_waiting(self, seconds: float) -> bool:
        """Whether somebody was told that nothing is computed yet."""
        if seconds < PATIENCE:
            return False
        needs = f"{self.demand.cpus:g} CPUs and {self.demand.gpus:g} GPUs"
        more = f" and {dict(self.demand.resources)}" if self.demand.resources else ""
        warnings.warn(
            f"stages=ray: no actor has begun for {seconds:.0f} s; each needs {needs}{more} of one "
            "node: see `ray status`; the run waits", stacklevel=2,
        )  # fmt: skip
        return True


def _value(answer: Answer) -> Any:
    """The value of an answer.

    Raises:
        Exception: the error that it holds.
    """
    if answer.error is not None:
        raise answer.error
    return answer.value


def _died(error: Lost) -> InputError:
    return InputError(
        f"stages=ray: actors ended {DEATHS} times one after another while they loaded "
        f"({error.__cause__}): have their nodes memory enough? {LOGS}"
    )
