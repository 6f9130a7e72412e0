"""``stages=ray``: units are computed by Ray actors, on any number of machines.

The training process gives each unit to the next actor that is free. A unit brings its inputs, and
its result comes back whole: actors need the code and the base model, and no disk that is shared.
What was under way on a node that is lost begins anew on another one; nodes that join are used.
"""

import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.computing import Role, Sent
from ipo_lightning.parallel.ray_actors import Actors, Demand, Load
from ipo_lightning.settings import AtLeast, Count, NotNegative, Null, Text, checked

Whole = Annotated[int, AtLeast(0)]
Gpus = Annotated[NotNegative | None, Null("1 where the cluster has any")]


@checked
@dataclass(frozen=True)
class CriticActors:
    """Actors that hold critics alone."""

    workers: Whole = 0
    """Most of them; 0: the others hold critics in turn."""
    cpus: NotNegative = 1.0
    gpus: Gpus = None
    resources: Annotated[Mapping[str, float] | None, Null("nothing more")] = None
    """Further ones of Ray's that a node must offer."""


@checked
class RayEngine:
    """An `Engine` of Ray actors.

    Args:
        address: of a cluster to join, ``auto`` or ``HOST:PORT``; None starts Ray here.
        workers: most actors; None: as many as the cluster has room for.
        cpus, gpus: of an actor; a part of a GPU may be enough.
        critics: actors that hold critics alone.
        retries: how often a unit begins anew when its actor is lost.

    Raises:
        InputError: Ray is not installed, or critics would wait for actors that have all the room.
    """

    def __init__(
        self,
        address: Annotated[Text | None, Null("started here")] = None,
        workers: Annotated[Count | None, Null("as many as fit")] = None,
        cpus: NotNegative = 1.0,
        gpus: Gpus = None,
        critics: CriticActors = CriticActors(),  # noqa: B008 - frozen
        retries: Whole = 5,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise InputError(
                'stages=ray needs the extra "ray": make extras EXTRAS=ray, or pip install '
                '"ipo_lightning[ray]"'
            )
        if critics.workers and workers is None:
            raise InputError(
                setting="workers",
                value="null",
                expected="would leave critics.workers no room: give a number",
            )
        self.address, self.workers, self.critics = address, workers, critics
        self.cpus, self.gpus, self.retries = cpus, gpus, retries
        self._actors: dict[Role, Actors] = {}
        self._started = False
        self._kept: dict[str, tuple[tuple[str, ...], Any]] = {}
        """What lies in the object store, the last of each kind: by what, and its reference."""

    @contextmanager
    def serving(self, sent: Sent, units: int) -> Iterator[Actors]:
        """See `Engine`."""
        self._connect()
        load = self._load(sent)
        actors = self._actors_of(sent.role)
        with actors.serve(load, units):
            yield actors

    def close(self) -> None:
        """See `Engine`."""
        import ray

        for actors in {id(one): one for one in self._actors.values()}.values():
            actors.stop()
        self._actors, self._kept = {}, {}
        if self._started:
            ray.shutdown()
            self._started = False

    def _load(self, sent: Sent) -> Load:
        """What actors are to hold; weights are put into the object store once a version."""
        builder = self._put(f"{sent.role} builder", (sent.key,), lambda: sent.builder)
        weights = None
        if sent.weights is not None:
            weights = self._put("weights", (sent.key, sent.version), sent.weights)
        return Load(sent.key, builder, sent.version, weights)

    def _put(self, kind: str, key: tuple[str, ...], make: Any) -> Any:
        import ray

        if kind not in self._kept or self._kept[kind][0] != key:
            self._kept.pop(kind, None)  # room for the next
            try:
                self._kept[kind] = key, ray.put(make())
            except TypeError as error:
                raise InputError(
                    f"stages=ray: the {kind} cannot be sent to actors ({error}); an object of your "
                    "own must be picklable before it is loaded, or give stages=ranks"
                ) from error
        return self._kept[kind][1]

    def _actors_of(self, role: Role) -> Actors:
        if not self._actors:
            usual = Actors(self._demand(self.cpus, self.gpus, {}), self.workers, self.retries)
            self._actors = {"policy": usual, "critic": usual}
            if own := self.critics.workers:
                asked = self.critics
                demand = self._demand(asked.cpus, asked.gpus, asked.resources or {})
                self._actors["critic"] = Actors(demand, own, self.retries)
        return self._actors[role]

    def _demand(self, cpus: float, gpus: float | None, resources: Mapping[str, float]) -> Demand:
        """What an actor takes; without a number, a GPU where the cluster has one.

        Raises:
            InputError: it takes nothing, or a part of a GPU beside a whole one.
        """
        import ray

        if gpus is None:
            gpus = float(ray.cluster_resources().get("GPU", 0) >= 1)
        if gpus > 1 and gpus != int(gpus):
            raise InputError(setting="stages.gpus", value=gpus,
                             expected="give a whole number, or a part of one GPU")  # fmt: skip
        if not (cpus or gpus or any(resources.values())):
            raise InputError(
                setting="stages.cpus", value=cpus, expected="an actor takes nothing; give a number"
            )
        return Demand(cpus, gpus, resources)

    def _connect(self) -> None:
        """Join the cluster, or start one, where this process has not."""
        import ray

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to its makers
        more: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            more["include_dashboard"] = False
        try:
            with own_signals():
                ray.init(self.address or "local", **more)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise InputError(
                setting="stages.address",
                value=self.address,
                expected=f"no Ray cluster can be joined or started so ({error}): give HOST:PORT of "
                "`ray start --head`, with the same releases of Python and Ray, or null",
            ) from error
        self._started = True


@contextmanager
def own_signals() -> Iterator[None]:
    """Keep this process's way to leave on SIGTERM; Ray sets its own when it starts."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
