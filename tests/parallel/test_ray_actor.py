"""What a Ray actor holds; Ray is not needed."""

import threading
from typing import Any

import pytest

from ipo_lightning.errors import InputError
from ipo_lightning.parallel import ray_actor
from ipo_lightning.parallel.ray_actor import Holder, Numerics, portable
from ipo_lightning.storage.store import LostBlob


class Named:
    """Builds its name, once it may."""

    def __init__(self, name: str, may: threading.Event | None = None) -> None:
        self.name, self.may, self.released = name, may, False

    def build(self, device: str) -> str:
        if self.may is not None:
            self.may.wait(20)
        return self.name

    def put(self, built: Any, weights: Any) -> None:
        weights.append(built)

    def release(self, built: Any) -> None:
        self.released = True


@pytest.fixture
def holder(monkeypatch: pytest.MonkeyPatch) -> Holder:
    monkeypatch.setattr(ray_actor, "node_id", lambda: "here")
    return Holder(Numerics.here(), "cpu")


def held(holder: Holder) -> Any:
    assert holder.start(0, lambda held: held, ()).error is None
    return holder.finish(0, str).value


def test_the_newest_order_counts_however_long_an_older_one_takes(holder: Holder) -> None:
    may = threading.Event()
    old = threading.Thread(target=holder.hold, args=(0, "a", Named("old", may), "", None))
    new = threading.Thread(target=holder.hold, args=(1, "b", Named("new"), "", None))
    old.start()
    new.start()
    may.set()
    old.join()
    new.join()
    assert held(holder) == "new"
    assert holder.hold(0, "a", Named("old"), "", None).value is None
    assert held(holder) == "new"


def test_weights_are_taken_once_a_version(holder: Holder) -> None:
    taken: list[str] = []
    builder = Named("policy")
    for order, version in enumerate(["1", "1", "2"]):
        assert holder.hold(order, "policy", builder, version, taken).value == "here"
    assert taken == ["policy", "policy"]
    holder.hold(3, "critic", Named("critic"), "", None)
    assert builder.released


@pytest.mark.parametrize(
    "error",
    [InputError(setting="a", value=1, expected="give 2"), InputError("b"), LostBlob("c"),
     FloatingPointError("d")],
)  # fmt: skip
def test_an_error_arrives_as_it_is(error: Exception) -> None:
    found = portable(error)
    assert (type(found), str(found)) == (type(error), str(error))


def test_an_error_that_cannot_be_sent_arrives_as_its_words() -> None:
    class Odd(Exception):
        """Of a class that no other process knows."""

    assert str(portable(Odd("why"))) == "Odd: why"
