"""A Ray actor's side: it holds a network or a critic, and computes units with it."""

import pickle
from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple

import torch

from ipo_lightning.parallel.computing import Builder


class Numerics(NamedTuple):
    """What the bits of a result depend on in a process, beside its device."""

    threads: int
    matmul: str

    @classmethod
    def here(cls) -> "Numerics":
        """Those of this process."""
        return cls(torch.get_num_threads(), torch.get_float32_matmul_precision())

    def set(self) -> None:
        """Have them here, too."""
        torch.set_num_threads(self.threads)
        torch.set_float32_matmul_precision(self.matmul)


class Answer(NamedTuple):
    """What a call came to."""

    value: Any = None
    error: Exception | None = None


class Holder:
    """Holds one thing at a time that units are computed with.

    Errors are answers: one that is raised would reach the asking process as Ray's own.
    """

    def __init__(self, numerics: Numerics, device: str) -> None:
        numerics.set()
        self.device = device
        self._key, self._version = "", ""
        self._builder: Builder | None = None
        self._held: Any = None
        self._started: dict[int, Any] = {}
        self._turn, self._newest = Lock(), -1

    def hold(self, order: int, key: str, builder: Builder, version: str, weights: Any) -> Answer:
        """Build what is not held yet, and give it weights that it has not; the node's id.

        Args:
            order: counts up. Orders may come to be served in any order, as where an actor was
                started for an earlier stage: an older one is passed over.
        """
        with self._turn:
            if order < self._newest:
                return Answer()
            self._newest = order
            return answered(lambda: self._hold(key, builder, version, weights))

    def start(self, token: int, work: Callable[..., Any], args: tuple[Any, ...]) -> Answer:
        """Begin a unit; its result stays here until it is finished."""

        def begin() -> None:
            self._started[token] = work(self._held, *args)

        return answered(begin)

    def finish(self, token: int, rest: Callable[[Any], Any]) -> Answer:
        """The result of a unit."""
        return answered(lambda: rest(self._started.pop(token)))

    def _hold(self, key: str, builder: Builder, version: str, weights: Any) -> str:
        if key != self._key:
            self._release()
            self._held, self._builder, self._key = builder.build(self.device), builder, key
        if weights is not None and version != self._version:
            builder.put(self._held, weights)
        self._version = version
        return node_id()

    def _release(self) -> None:
        """Make room for something else."""
        if self._builder is not None:
            self._builder.release(self._held)
        self._held, self._builder, self._key, self._version = None, None, "", ""
        if self.device == "cuda":
            torch.cuda.empty_cache()


def answered(work: Callable[[], Any]) -> Answer:
    """What some work gives or raises."""
    try:
        return Answer(work())
    except Exception as error:
        return Answer(error=portable(error))


def portable(error: Exception) -> Exception:
    """An error that arrives as it is in another process, or as its words."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    try:
        same = pickle.loads(pickle.dumps(error))
        if type(same) is type(error) and str(same) == str(error):
            return error
    except Exception:
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")


def node_id() -> str:
    """Of the node that this actor is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())
