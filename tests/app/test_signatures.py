"""Bounds are declared on signatures, and read from files as Python would read them."""

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hydra.utils import get_object

from app.checks import check
from app.entry import CONF, REPO, build
from app.keys import KEYS, make
from app.signatures import read_signature
from ipo_lightning.errors import InputError
from ipo_lightning.module import PreferenceModule
from ipo_lightning.settings import Signature, signature_of
from ipo_lightning.settings import check as check_value
from tests.conftest import ComposeTrain

OURS = ("ipo_lightning.", "data.", "callbacks.")
TARGETS = sorted(
    {
        target
        for file in CONF.rglob("*.yaml")
        for target in re.findall(r"_target_: ([\w.]+)", file.read_text())
        if target.startswith(OURS)
    }
    | set(KEYS)
)
MINE = '''
"""A critic and a loss of somebody's own, beside the configuration."""
import torch
from typing import Annotated, Any, Literal
from dataclasses import dataclass
from ipo_lightning.settings import AtLeast, Count

Over = Literal["mean", "min"]
Odd = print("this module was run")

class Base:
    def __init__(self, frames: Count, over: Over = "mean", model: torch.nn.Module = None) -> None:
        self.frames, self.over = frames, over

class Critic(Base):
    identity = "mine"
    def rate(self, clips, prompts): ...

@dataclass
class Plain:
    share: Annotated[float, AtLeast(0)] = 0.5
    anything: Any = None

class Bare:
    def __init__(self, frames, **others): ...

class Parent:
    def __init__(self, part: Critic, parts: "dict[str, Critic] | None" = None): ...

def my_loss(policy_win, policy_lose, ref_win, ref_lose, *, beta: Annotated[float, AtLeast(2)]):
    ...
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of somebody's own that Python can import."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def refusal(value: Any, hint: Any) -> str:
    """What is said of a value; "" where it is taken."""
    try:
        check_value("x", value, hint)
    except InputError as error:
        return error.expected
    return ""


# ---------------------------------------------------------------- reading a signature


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_tells_what_python_does(target: str) -> None:
    """Every shipped class: its settings, and what each of them takes."""
    read, known = read_signature(target), signature_of(get_object(target))
    assert read is not None and known is not None
    assert (list(read.hints), read.takes_more) == (list(known.hints), known.takes_more)
    for name, hint in read.hints.items():
        for odd in (1j, None, "", -1, [], {"a": 1j}):  # where a file says less, more is let through
            assert refusal(odd, hint) in ("", refusal(odd, known.hints[name])), (name, odd)


def test_reading_imports_nothing(mine: str) -> None:
    code = (
        f"import sys; from app.signatures import read_signature as read; "
        f"found = [read(one) for one in {TARGETS!r}]; assert None not in found; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert read_signature(f"{mine}.Critic") is not None
    assert mine not in sys.modules


@pytest.mark.parametrize(
    ("name", "names"),
    [("Critic", ["frames", "over", "model"]), ("Plain", ["share", "anything"]),
     ("Bare", ["frames"]), ("Parent", ["part", "parts"])],
)  # fmt: skip
def test_signatures_of_ones_own_are_read(mine: str, name: str, names: list[str]) -> None:
    read = read_signature(f"{mine}.{name}")
    assert read is not None and list(read.hints) == names
    assert read.takes_more == (name == "Bare")


@pytest.mark.parametrize(
    "target", ["nope.Critic", "itertools.chain", "diffusers.FirstBlockCacheConfig", "torch.Size",
               "ipo_lightning.losses.NOTHING", "ipo_lightning.losses.Baseline", "print"],
)  # fmt: skip
def test_what_a_file_does_not_tell_is_left_to_python(target: str) -> None:
    assert read_signature(target) is None


# ---------------------------------------------------------------- settings of one's own classes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frames": 0}, "critic.frames=0: give a whole number, at least 1"),
        ({"frames": 2, "over": "max"}, "critic.over=max: choose one of mean, min"),
        ({"frames": 2, "frame": 3}, "critic.frame=3: Critic has no such setting"),
    ],
)
def test_ones_own_annotations_count(
    compose_train: ComposeTrain, mine: str, settings: dict[str, Any], said: str
) -> None:
    """Before the module is imported, and again where the part is built."""
    cfg = compose_train()
    cfg.critic = {"_target_": f"{mine}.Critic", **settings}
    with pytest.raises(InputError) as early:
        check(cfg)
    assert str(early.value) == said
    assert mine not in sys.modules
    with pytest.raises(InputError) as late:
        build(cfg.critic, "critic")
    assert str(late.value) == said


def test_without_annotations_anything_goes(compose_train: ComposeTrain, mine: str) -> None:
    cfg = compose_train()
    cfg.critic = {"_target_": f"{mine}.Bare", "frames": "all", "more": [1]}
    check(cfg)
    build(cfg.critic, "critic")


def test_parts_stand_by_their_full_keys(mine: str) -> None:
    """However deep, in mappings and lists; each is checked before what takes it."""
    part = {"_target_": f"{mine}.Critic", "frames": 2}
    whole = {"_target_": f"{mine}.Parent", "part": part, "parts": {"a": part, "b": part}}
    assert build(whole, "critic") is not None
    whole["parts"] = {"a": part, "b": {**part, "frames": 0}}
    with pytest.raises(InputError, match=r"^critic\.parts\.b\.frames=0: give a whole number"):
        build(whole, "critic")
    with pytest.raises(InputError, match=r"^many\.1\.part=3: give the settings of a part, as "
                                         r"many\.1\.part\._target_=NAME$"):  # fmt: skip
        build([part, {"_target_": f"{mine}.Parent", "part": 3}], "many")
    with pytest.raises(InputError, match=r"^critic: .*missing 1 required .*'frames'"):
        build({"_target_": f"{mine}.Critic"}, "critic")


def test_a_function_is_checked_when_it_is_bound(mine: str) -> None:
    node = {"_target_": f"{mine}.my_loss", "_partial_": True, "beta": 1}
    with pytest.raises(InputError, match=r"^loss\.beta=1: give a number, at least 2$"):
        build(node, "loss")
    made = build({**node, "beta": 3}, "loss")
    assert isinstance(made, functools.partial) and made.keywords == {"beta": 3}


def test_hydras_own_keys_keep_their_meaning(mine: str) -> None:
    part = {"_target_": f"{mine}.Critic", "_args_": [5], "over": "min", "_convert_": "none"}
    assert build(part, "critic").frames == 5
    whole = {"_target_": "builtins.dict", "_recursive_": False, "part": part}
    assert build(whole, "x") == {"part": part}


def test_a_part_of_several_places_names_them(compose_train: ComposeTrain) -> None:
    cfg = compose_train()
    cfg.optim.ema = 1.5
    sound: list[Any] = [object(), object(), object(), object()]
    with pytest.raises(InputError, match=r"^optim\.ema=1\.5: give a number, at least 0 and below"):
        make(PreferenceModule, cfg, *sound)


# ---------------------------------------------------------------- shipped functions, early


@pytest.mark.slow
@pytest.mark.parametrize(
    "word",
    ["+loss.gamma=3", "loss.label_smoothing=0.7", "labelling.filters.max_frozen=1.2",
     "reference.of=moon", "backbone.density=odd", "rollout.shared=1", "optim.ema=1"],
)  # fmt: skip
def test_what_signatures_say_is_refused_before_an_import(
    compose_train: ComposeTrain, word: str
) -> None:
    with pytest.raises(InputError) as refused:
        check(compose_train(word))
    assert str(refused.value).startswith(f"{word.lstrip('+')}: ")


def signature(function: Callable[..., Any]) -> Signature:
    found = signature_of(function)
    assert found is not None
    return found


def test_names_that_only_a_type_checker_knows_take_anything() -> None:
    def function(one: "Nowhere", two: "Annotated[int, 3] | None", three: Literal[1] = None): ...  # type: ignore # noqa: E501, F821

    hints = signature(function).hints
    assert hints["one"] is Any
    assert refusal(None, hints["two"]) == refusal(None, hints["three"]) == ""
    assert refusal(2, hints["three"]) == "choose one of 1, or null"
