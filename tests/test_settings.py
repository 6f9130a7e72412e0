"""What a setting may be: each annotation, what it takes, and what is said of the rest."""

import functools
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

import pytest
import torch

from ipo_lightning.errors import InputError, within
from ipo_lightning.settings import (
    Above,
    AtLeast,
    AtMost,
    Below,
    Count,
    Endless,
    Null,
    Positive,
    Says,
    Share,
    Text,
    Word,
    check,
    checked,
)


class Part:
    """Somebody's object."""


class Asked(Protocol):
    """What an object must be able to do."""

    def rate(self) -> float: ...


P = TypeVar("P", bound=Part)
Auto = Annotated[float, Above(0), Word("auto")]
All = Annotated[Count | None, Null("all")]
PART = "give the settings of a part, as x._target_=NAME"


@pytest.mark.parametrize(
    ("hint", "sound", "wrong", "said"),
    [
        (Count, [1, 7], [0, -1, 1.0, True, "1", None], "give a whole number, at least 1"),
        (Positive, [0.1, 3], [0, -1, True, math.inf, math.nan, 10**400], "give a number, above 0"),
        (Share, [0, 0.5, 1], [1.1, -0.1], "give a number, at least 0 and at most 1"),
        (Annotated[float, AtLeast(0), Below(0.5)], [0, 0.4], [0.5], "give a number, at least 0 and "
                                                                    "below 0.5"),
        (Annotated[float, Endless()], [-math.inf, 0], [math.nan, "a"], "give a number"),
        (Annotated[float, AtMost(1), Endless()], [-math.inf], [math.inf], "give a number, at most "
                                                                          "1"),
        (All, [None, 2], [0, "all"], "give a whole number, at least 1, or null (all)"),
        (Auto, [2, "auto"], [0, "automatic", None], "give a number, above 0, or auto"),
        (Count | Literal["auto"], [2, "auto"], [0, "all"], "give a whole number, at least 1, or "
                                                           "auto"),
        (bool, [True, False], [1, 0, "true", None], "give true or false"),
        (str, ["", "a"], [None, []], "give a text"),
        (Text, ["a"], ["", None], "give a text"),
        (Text | None, ["a", None], [""], "give a text, or null"),
        (str | None, [None], [3], "give a text, or null; one that looks like a number in quotes: "
                                  "'x=\"3\"'"),
        (Path | None, ["a/b", Path("a"), None], [3, []], "give a text, or null"),
        (Literal["a", "b"], ["a"], ["c", None, 1], "choose one of a, b"),
        (Literal["a", 1] | None, [None, 1], [True, 1.0], "choose one of a, 1, or null"),
        (Sequence[str], [[], ["a"], ("a",)], ["a", 3, {"a": "b"}], "give a list"),
        (Annotated[Sequence[str], Says("names")], [["a"]], [3], "give names"),
        (tuple[float, float], [[0, 1], (0, 1)], [3], "give a list"),
        (Mapping[str, float] | None, [{}, {"a": 1}, None], [3, [1]], "give a number to each name, "
                                                                     "as {NAME: VALUE}, or null"),
        (Mapping[str, Any], [{"a": []}], [3, None], "give {NAME: VALUE}"),
        (Part, [Part(), {}, Part], [None, 3, "a", [1]], PART),
        (Part | None, [None, Part()], ["a"], f"{PART}, or null"),
        (Asked, [Part()], [None, "a"], PART),
        (P, [Part()], [3], PART),
        (Callable[[int], int], [abs], [None, "abs"], PART),
        (torch.Tensor | Literal["mean"], [torch.ones(1), "mean"], ["a", 1.0], "choose one of mean"),
        (Any, [None, 3, Part()], [], ""),
    ],
)  # fmt: skip
def test_an_annotation_says_what_is_taken(
    hint: Any, sound: list[Any], wrong: list[Any], said: str
) -> None:
    for value in sound:
        check("x", value, hint)
    for value in wrong:
        with pytest.raises(InputError) as refused:
            check("x", value, hint)
        told = str(refused.value).removeprefix(f"x={value}: ")
        assert told.partition("; one that")[0] == said.partition("; one that")[0]
        assert refused.value.value is value


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (Mapping[str, float], {"a": 1, "b": "x"}, "x.b=x: give a number"),
        (Mapping[str, float] | None, {"a": math.inf}, "x.a=inf: give a number"),
        (Sequence[Text], ["a", ""], "x.1=: give a text"),
        (tuple[int, str], [1, None], "x.1=None: give a text"),
        (Mapping[str, Mapping[str, float | None]], {"a": {"b": []}}, "x.a.b=[]: give a number, or"),
        (
            Mapping[str, Part],
            {"a": Part(), "b": 3},
            "x.b=3: give the settings of a part, as x.b._t",
        ),
    ],
)
def test_the_wrong_element_is_named(hint: Any, value: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        check("x", value, hint)
    assert str(refused.value).startswith(said)


# ---------------------------------------------------------------- what is refused, as data


def test_an_error_tells_its_parts() -> None:
    error = InputError(setting="frames", value=0, expected="give more")
    assert (error.setting, error.value, error.expected) == ("frames", 0, "give more")
    assert str(error) == "frames=0: give more"
    assert str(InputError(setting="frames", expected="give it")) == "frames: give it"
    assert str(InputError("a sentence")) == "a sentence"
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.value == 0
    bare = pickle.loads(pickle.dumps(InputError(setting="frames", expected="give it")))
    assert str(bare) == "frames: give it"


def test_a_setting_gets_its_full_key_from_those_around() -> None:
    with pytest.raises(InputError) as refused, within("critic"), within("members.clip"):
        raise InputError(setting="frames", value=0, expected="give {setting}=1")
    assert str(refused.value) == "critic.members.clip.frames=0: give critic.members.clip.frames=1"
    with pytest.raises(InputError, match="^a sentence$"), within("critic"):
        raise InputError("a sentence")


# ---------------------------------------------------------------- classes and functions


@checked
class Made:
    def __init__(self, part: Part, size: Count = 1, *, share: Share = 0.5, more: Any = None):
        self.size, self.share = size, share


@checked
@dataclass(frozen=True)
class Record:
    size: Count = 1
    of: "Literal['a', 'b']" = "a"


@checked
def function(values: Sequence[int], *, size: Count, share: Share = 0.5) -> int:
    """Adds."""
    return sum(values) * size


def test_a_class_is_checked_when_it_is_made() -> None:
    assert Made(Part(), 3).size == 3
    for given, said in (
        (lambda: Made(Part(), 0), "size=0"),
        (lambda: Made(Part(), share=2), "share=2"),
        (lambda: Made(None), "part=None"),  # type: ignore[arg-type]
        (lambda: Record(0), "size=0"),
        (lambda: Record(of="c"), "of=c: choose one of a, b"),
        (lambda: replace(Record(), size=0), "size=0"),
    ):
        with pytest.raises(InputError, match=f"^{said}"):
            given()


def test_what_is_made_of_a_checked_class_is_checked() -> None:
    class Further(Made):
        def __init__(self, size: int) -> None:
            super().__init__(Part(), size)

    assert Further(2).size == 2
    with pytest.raises(InputError, match="^size=0: "):
        Further(0)


def test_settings_of_a_function_are_checked_and_its_inputs_are_not() -> None:
    assert function([1, 2], size=2) == 6
    assert function(range(3), size=2) == 6  # type: ignore[arg-type]
    with pytest.raises(InputError, match="^size=0: "):
        function([1], size=0)
    with pytest.raises(InputError, match="^share=2: "):
        functools.partial(function, share=2)([1], size=1)
    assert (function.__name__, function.__doc__) == ("function", "Adds.")
    assert pickle.loads(pickle.dumps(function)) is function
    with pytest.raises(TypeError, match="missing"):
        function([1])  # type: ignore[call-arg]
