"""A round may end with its average: exported, resumed to the bit, the start of the next round."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from app import assembly, claiming, process
from ipo_lightning.backbones.cogvideox import Lora
from ipo_lightning.errors import InputError
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.averages import MovingAverage
from ipo_lightning.references import FrozenReference, MovingReference
from ipo_lightning.rounds.training import TrainingStage
from tests.helpers import tiny
from tests.rounds.test_reference_runs import Watch
from tests.rounds.test_rounds import Compose, Killed, crash_at, results
from train import fit, train

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


def kept(weights: Weights) -> Weights:
    return {name: weight.clone() for name, weight in weights.items()}


# -------------------------------------------------------------------- an average


def test_an_average_is_that_by_hand() -> None:
    average = MovingAverage({"a": torch.tensor([1.0, 2.0])}, decay=0.75)
    average.follow({"a": torch.tensor([5.0, 2.0])})
    average.follow({"a": torch.tensor([0.0, 10.0])})
    assert torch.allclose(average.weights["a"], torch.tensor([1.5, 4.0]))


def test_an_average_of_bfloat16_is_float32() -> None:
    """In bfloat16 a hundredth of a step would be lost in every update."""
    start = {"a": torch.ones(4, dtype=torch.bfloat16)}
    average, other = MovingAverage(start, decay=0.99), start["a"].clone()
    moved = {"a": torch.full((4,), 1.0625, dtype=torch.bfloat16)}
    for _ in range(200):
        average.follow(moved)
        other.lerp_(moved["a"], 0.01)
    assert average.weights["a"].dtype == torch.float32
    wanted = 1.0625 - 0.0625 * 0.99**200
    assert torch.allclose(average.weights["a"], torch.full((4,), wanted), atol=1e-5)
    assert torch.equal(other, start["a"]) and start["a"].eq(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_goes_on_from_its_state(dtype: torch.dtype) -> None:
    draws = [{"a": tiny.normal(seed, 3, 5).to(dtype)} for seed in range(6)]
    whole, first, second = (MovingAverage(kept(draws[0]), decay=0.9) for _ in range(3))
    for draw in draws[1:]:
        whole.follow(draw)
    for draw in draws[1:3]:
        first.follow(draw)
    second.resume(first.state())
    for draw in draws[3:]:
        second.follow(draw)
    assert torch.equal(second.weights["a"], whole.weights["a"])


def test_a_moving_reference_of_bfloat16_goes_on_to_the_bit(folder: Path) -> None:
    policy = tiny.policy(folder, weights="bfloat16")
    network = policy.build()
    whole, first, second = (MovingReference(decay=0.9) for _ in range(3))
    for reference in (whole, first, second):
        reference.attach(policy, network)
        reference.refresh(None)
    asked = (tiny.normal(1, 1, *tiny.LATENT_SHAPE), torch.tensor([20]),
             tiny.normal(2, 1, *tiny.TEXT_SHAPE))  # fmt: skip
    before = whole.predict(*asked)
    for number in range(6):
        with torch.no_grad():
            for i, weight in enumerate(network.parameters()):
                weight.add_(0.1 * tiny.normal(10 * number + i, *weight.shape).to(weight.dtype))
        if number == 3:
            second.resume(first.state())
        for reference in (whole, first, second):
            reference.follow(network)
    assert torch.equal(second.predict(*asked), whole.predict(*asked))
    assert not torch.equal(whole.predict(*asked), before)
    state = whole.state()
    assert all(torch.equal(w, state[name]) for name, w in second.state().items())


# -------------------------------------------------------------------- a round


def rounds(
    folder: Path, ema: float | None, optimizer_steps: int = 5, **settings: Any
) -> tuple[PreferenceModule, Weights, list[Weights]]:
    """A module at the end of its round, where it started, and its weights after each update."""
    module = PreferenceModule(
        tiny.policy(folder, **settings),
        partial(dpo_loss, beta=5.0),
        FrozenReference(),
        partial(torch.optim.SGD, lr=0.5),
        ema=ema,
    )
    module.configure_model()
    module.on_fit_start()
    module.begin_round(1, None)
    optimizer, seen = module.configure_optimizers(), []
    start = kept(module.trained())
    for number in range(optimizer_steps):
        module.pair_step(tiny.pair_batch(3, seed=number))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(kept(module.trained()))
        if module.average is not None:
            module.average.follow(module.trained())
    module.finish_round()
    return module, start, seen


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=3)], ids=["full", "lora"])
def test_a_round_ends_with_the_average_by_hand(folder: Path, lora: Lora | None) -> None:
    module, start, seen = rounds(folder, 0.5, lora=lora)
    for name, weight in module.trained().items():
        wanted = start[name].double() * 0.5**5
        for place, weights in enumerate(seen):
            wanted += weights[name].double() * 0.5 ** (5 - place)
        assert torch.allclose(weight.double(), wanted, atol=1e-6), name
    moved = [not torch.allclose(w, seen[-1][n], atol=1e-7) for n, w in module.trained().items()]
    assert any(moved)


def test_without_an_average_a_round_ends_with_its_last_update(folder: Path) -> None:
    for ema in (None, 0.0):
        module, _, seen = rounds(folder, ema)
        assert all(torch.equal(w, seen[-1][n]) for n, w in module.trained().items())


def test_impossible_averages_are_refused(folder: Path) -> None:
    for decay in (1.0, -0.1):
        with pytest.raises(
            InputError, match=rf"^ema={decay}: give a number, at least 0 and below 1"
        ):
            rounds(folder, decay)


# -------------------------------------------------------------------- a run


class Followed(L.Callback):
    """Every weight after every update, and what each round ended with."""

    def __init__(self) -> None:
        self.optimizer_steps: dict[int, list[Weights]] = {}
        self.starts: dict[int, Weights] = {}

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.starts.setdefault(module.round, kept(module.trained()))

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        self.optimizer_steps.setdefault(module.round, []).append(kept(module.trained()))


@pytest.mark.slow
def test_the_average_is_exported_and_the_next_round_starts_from_it(begun: Compose) -> None:
    cfg = begun(
        "round=2", "until=training", "optim.ema=0.6", "reference=frozen", "data.optimizer_steps=3"
    )
    process.settle(cfg)
    parts, followed, watch = assembly.assemble(cfg), Followed(), Watch()
    trainer = assembly.build_trainer(cfg, parts.iteration)
    trainer.callbacks[:0] = [followed, watch]  # type: ignore[attr-defined]
    claiming.claim(parts.run, cfg)
    fit(parts, cfg, trainer)
    for number in (1, 2):
        exported = parts.policy.load_export(parts.run.round(number).policy)
        for name, weight in exported.items():
            wanted = followed.starts[number][name].double() * 0.6**3
            for place, weights in enumerate(followed.optimizer_steps[number]):
                wanted += weights[name].double() * 0.4 * 0.6 ** (2 - place)
            assert torch.allclose(weight.double(), wanted, atol=1e-6), name
        if number == 1:
            assert all(torch.equal(w, followed.starts[2][n]) for n, w in exported.items())
    # and it is the reference of round 2
    assert watch.seen[3][0] == pytest.approx(math.log(2), abs=1e-6)
    assert watch.seen[3][1] == 0


CRASHES = {
    "between two checkpoints": (PreferenceModule, "training_step", 4),
    "averaged and saved, not yet exported": (TrainingStage, "run", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("crash", CRASHES)
def test_a_round_that_is_stopped_ends_with_the_same_average(
    crash: str, begun: Compose, whole: dict[str, Any]
) -> None:
    settings = ("round=1", "optim.ema=0.7", "evaluation.prompts=2")
    if not whole:
        train(begun(*settings, outputs="whole"))
        whole["results"] = results(begun(*settings, outputs="whole"))
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, *CRASHES[crash])
        with pytest.raises(Killed):
            train(begun(*settings))
    train(begun(*settings))
    assert results(begun(*settings)) == whole["results"]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """Results of the run that was let alone, computed once."""
    return {}
