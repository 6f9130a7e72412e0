"""Optimizers of 8 bits and of random rounding: pace, resumption, and what rounding loses."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes
import lightning as L
import pytest
import torch
import torchao.optim
from omegaconf import DictConfig
from torch import Tensor

from app.checks import check
from app.entry import build
from app.planning import memory
from ipo_lightning.errors import InputError
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.references import FrozenReference
from tests.helpers import tiny
from tests.rounds.test_rounds import Compose, Killed, crash_at, results
from train import train

HALF = ("backbone.weights=bfloat16", "trainer.precision=bf16-mixed")
CHOICES: dict[str, tuple[str, ...]] = {
    "bitsandbytes": ("optim=adamw8bit",),
    "torchao": ("optim=adamw8bit_torchao",),
    "torchao, bfloat16": (
        "optim=adamw8bit_torchao", "optim.optimizer.bf16_stochastic_round=true", *HALF,
    ),
    "random rounding": ("optim=adamw_bf16", *HALF),
    "fused": ("optim.optimizer.fused=true",),
}  # fmt: skip
choices = pytest.mark.parametrize("choice", CHOICES)


@pytest.fixture(autouse=True)
def uncompiled() -> Any:
    """torchao compiles a step for each shape, which takes a minute for a network of any size."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


def module_of(folder: Path, cfg: DictConfig) -> PreferenceModule:
    """The tiny model with the optimizer of a configuration, ready for a round."""
    module = PreferenceModule(
        tiny.policy(folder, weights=cfg.backbone.weights),
        partial(dpo_loss, beta=5.0),
        FrozenReference(),
        build(cfg.optim.optimizer, "optim.optimizer"),
        warmup_steps=cfg.optim.warmup_steps,
    )
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.configure_model()
    module.on_fit_start()
    module.begin_round(1, None)
    module.trainer.strategy.optimizers = [module.configure_optimizers()]
    return module


def update(module: PreferenceModule) -> float:
    """One update; the loss before it."""
    optimizer = module.trainer.optimizers[0]
    loss, _ = module.pair_step(tiny.pair_batch(3))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@pytest.mark.slow
@choices
def test_each_round_warms_up_with_fresh_moments(choice: str, small: Compose, folder: Path) -> None:
    cfg = small("optim.warmup_steps=2", "optim.optimizer.lr=3e-4", *CHOICES[choice])
    module = module_of(folder, cfg)
    state = module.trainer.optimizers[0].state
    for _ in range(2):
        module.on_train_epoch_start()
        assert len(state) == 0
        rates = []
        for number in range(4):
            module.on_train_batch_start(None, number)
            update(module)
            rates.append(module.learning_rate)
        assert rates == pytest.approx([1e-4, 2e-4, 3e-4, 3e-4], rel=1e-5)
        assert {float(moments["step"]) for moments in state.values()} == {4}


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["bitsandbytes", "torchao, bfloat16"])
def test_a_round_that_is_stopped_goes_on_to_the_bit(choice: str, begun: Compose) -> None:
    """From a checkpoint in the midst of warming up; weights are compared by their hash."""
    settings = ("round=1", *CHOICES[choice])
    train(begun(*settings, outputs="whole"))
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, PreferenceModule, "training_step", 4)
        with pytest.raises(Killed):
            train(begun(*settings))
    train(begun(*settings))
    assert results(begun(*settings)) == results(begun(*settings, outputs="whole"))


@pytest.mark.slow
@choices
def test_it_learns(choice: str, small: Compose, folder: Path) -> None:
    cfg = small(*CHOICES[choice], "optim.optimizer.lr=2e-3")
    check(cfg)
    module, losses = module_of(folder, cfg), []
    for number in range(12):
        torch.manual_seed(number)
        losses.append(update(module))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-7)
    assert losses[-1] < 0.95 * losses[0]


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of all moments; torchao's are made of several tensors."""
    total = 0
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.numel() > 1:
                parts = getattr(value, "tensor_attrs", None)
                tensors = [getattr(value, p) for p in parts] if parts else [value]
                total += sum(t.numel() * t.element_size() for t in tensors)
    return total


@pytest.mark.parametrize(
    ("make", "dtype", "most"),
    [
        (torch.optim.AdamW, torch.float32, 8.0),
        (bitsandbytes.optim.AdamW8bit, torch.float32, 2.05),
        (torchao.optim.AdamW8bit, torch.float32, 2.05),
        (torchao.optim._AdamW, torch.bfloat16, 4.0),
    ],
    ids=["adamw", "bitsandbytes", "torchao", "bfloat16"],
)
def test_the_memory_of_moments(make: Any, dtype: torch.dtype, most: float) -> None:
    weight = torch.nn.Parameter(torch.ones(512, 512, dtype=dtype))
    weight.grad = torch.ones_like(weight)
    optimizer = make([weight])
    optimizer.step()
    assert 0.9 * most < state_bytes(optimizer) / weight.numel() <= most


def drifted(make: Any, optimizer_steps: int = 20) -> Tensor:
    """Weights of 1 after updates of 1e-4 each, a thirtieth of the gap between two bfloat16."""
    weight = torch.nn.Parameter(torch.ones(128, 128, dtype=torch.bfloat16))
    optimizer = make([weight], lr=1e-4, weight_decay=0.0)
    torch.manual_seed(0)
    for _ in range(optimizer_steps):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    return weight.detach().float()


def test_random_rounding_keeps_what_rounding_to_the_nearest_loses() -> None:
    for make in (torch.optim.AdamW, bitsandbytes.optim.AdamW8bit, torchao.optim._AdamW):
        assert torch.equal(drifted(make), torch.ones(128, 128)), make
    for make in (torchao.optim._AdamW, torchao.optim.AdamW8bit):
        weight = drifted(partial(make, bf16_stochastic_round=True))
        assert weight.mean().item() == pytest.approx(1 - 20 * 1e-4, abs=1e-4)


def test_what_an_optimizer_draws_is_the_same_on_every_rank(
    small: Compose, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or DDP's copies part; what a step draws, such as dropout, is a rank's own."""
    steps, optimizer_steps = [], []
    module = module_of(folder, small())
    monkeypatch.setattr(module, "log", lambda *_: None)
    module.pair_step(tiny.pair_batch(3))[0].backward()
    for rank in (0, 1):
        monkeypatch.setattr(PreferenceModule, "global_rank", rank)
        module.on_train_batch_start(None, 0)
        steps.append(torch.initial_seed())
        module.on_before_optimizer_step(module.trainer.optimizers[0])
        optimizer_steps.append(torch.initial_seed())
    assert optimizer_steps[0] == optimizer_steps[1] and len({*steps, *optimizer_steps}) == 3


@pytest.mark.parametrize("choice", ["adamw8bit", "adamw8bit_torchao", "adamw_bf16"])
def test_a_missing_package_is_named(
    choice: str, small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = small(f"optim={choice}", *(HALF if choice == "adamw_bf16" else ()))
    check(cfg)
    monkeypatch.setattr(memory, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package (bitsandbytes|torchao).*extra gpu"):
        check(cfg)
