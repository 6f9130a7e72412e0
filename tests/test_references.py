"""The frozen reference: what it answers, before and after training, and what it leaves alone."""

import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from ipo_lightning.backbones.cogvideox import CogVideoX, Lora
from ipo_lightning.draws.batch import Videos
from ipo_lightning.errors import InputError
from ipo_lightning.losses import dpo_loss, kto_loss, nft_loss, simpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.objectives import squared_error
from ipo_lightning.policy import trained_weights
from ipo_lightning.references import (
    AdapterReference,
    CachedReference,
    FrozenReference,
    MovingReference,
    NoReference,
    Reference,
)
from tests.helpers import tiny

Weights = dict[str, Tensor]

KINDS = {
    "frozen, full": (FrozenReference, "round_start", None),
    "frozen, base, full": (FrozenReference, "base", None),
    "moving, full": (MovingReference, "round_start", None),
    "frozen, lora": (FrozenReference, "round_start", Lora(rank=2, alpha=3)),
    "adapter, base": (AdapterReference, "base", Lora(rank=2, alpha=3)),
    "adapter, round_start": (AdapterReference, "round_start", Lora(rank=2, alpha=3)),
}
kinds = pytest.mark.parametrize("kind", KINDS)
round_start = pytest.mark.parametrize(
    "kind", [k for k, v in KINDS.items() if v[1] == "round_start"]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny", "5b")


def ready(kind: str, folder: Path) -> tuple[CogVideoX, nn.Module, Reference]:
    """A policy with its network and a reference that has been attached."""
    make, of, lora = KINDS[kind]
    policy = tiny.policy(folder, lora=lora)
    network = policy.build()
    reference: Reference = make(of)
    reference.attach(policy, network)
    return policy, network, reference


def kept(network: nn.Module) -> Weights:
    return {name: weight.clone() for name, weight in trained_weights(network).items()}


@torch.no_grad()
def train(network: nn.Module, by: float = 0.1, seed: int = 0) -> None:
    """Move every trained weight."""
    for i, weight in enumerate(trained_weights(network).values()):
        weight.add_(by * tiny.normal(seed + i, *weight.shape))


QUESTION = (
    tiny.normal(100, 2, *tiny.LATENT_SHAPE),
    torch.tensor([20, 800]),
    tiny.normal(101, 2, *tiny.TEXT_SHAPE),
)


@torch.no_grad()
def answer(policy: CogVideoX, network: nn.Module) -> Tensor:
    return policy.predict(network, *QUESTION)


@kinds
def test_a_fresh_policy_is_its_reference_bit_by_bit(kind: str, folder: Path) -> None:
    policy, network, reference = ready(kind, folder)
    reference.refresh(None)
    assert torch.equal(reference.predict(*QUESTION), answer(policy, network))


@kinds
def test_the_first_loss_is_exactly_log_2(kind: str, folder: Path) -> None:
    make, of, lora = KINDS[kind]
    module = PreferenceModule(
        tiny.policy(folder, lora=lora), partial(dpo_loss, beta=1000.0), make(of), torch.optim.SGD
    )
    module.configure_model()
    module.network.train()
    module.on_fit_start()
    module.reference.refresh(None)
    loss, values = module.pair_step(tiny.pair_batch(3))
    assert torch.equal(values["margin"], torch.zeros(3))
    assert torch.equal(values["loss"], torch.full((3,), math.log(2)))
    assert not values["error_win_change"].any()
    loss.backward()
    grads = [p.grad for p in module.network.parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in grads) > 0  # it can leave that point


@kinds
def test_training_does_not_move_the_reference(kind: str, folder: Path) -> None:
    policy, network, reference = ready(kind, folder)
    reference.refresh(None)
    before = reference.predict(*QUESTION)
    train(network)
    assert torch.equal(reference.predict(*QUESTION), before)
    assert not torch.allclose(answer(policy, network), before, atol=1e-3)


@round_start
def test_a_refreshed_reference_is_the_policy_of_the_rounds_start(kind: str, folder: Path) -> None:
    policy, network, reference = ready(kind, folder)
    base = answer(policy, network)
    train(network)
    start = answer(policy, network)
    reference.refresh(kept(network))
    assert torch.equal(reference.predict(*QUESTION), start)
    train(network, seed=50)
    assert torch.equal(reference.predict(*QUESTION), start)
    assert not torch.allclose(answer(policy, network), start, atol=1e-3)
    reference.refresh(None)
    assert torch.equal(reference.predict(*QUESTION), base)


@round_start
def test_the_weights_given_are_not_the_networks_own(kind: str, folder: Path) -> None:
    """A caller may hand over the module's own tensors; training must not reach the reference."""
    policy, network, reference = ready(kind, folder)
    train(network)
    reference.refresh(trained_weights(network))
    before = reference.predict(*QUESTION)
    train(network, seed=50)
    assert torch.equal(reference.predict(*QUESTION), before)


@kinds
def test_asking_changes_nothing_of_the_policy(kind: str, folder: Path) -> None:
    policy, network, reference = ready(kind, folder)
    train(network)
    reference.refresh(kept(network) if "round_start" in kind else None)
    train(network, seed=50)
    weights, graph = kept(network), {n: p.requires_grad for n, p in network.named_parameters()}
    before, mode = answer(policy, network), network.training
    asked = reference.predict(*QUESTION)
    assert not asked.requires_grad
    assert {n: p.requires_grad for n, p in network.named_parameters()} == graph
    assert all(torch.equal(w, weights[n]) for n, w in trained_weights(network).items())
    assert torch.equal(answer(policy, network), before)
    assert network.training == mode


@pytest.mark.parametrize("of", ["base", "round_start"])
def test_the_adapter_is_back_after_an_exception(of: Any, folder: Path) -> None:
    policy, network, reference = ready(
        "adapter, base" if of == "base" else "adapter, round_start", folder
    )
    train(network)
    reference.refresh(None if of == "base" else kept(network))
    train(network, seed=50)
    before, weights = answer(policy, network), kept(network)
    sample, timestep, text = QUESTION
    with pytest.raises(RuntimeError):
        reference.predict(sample, timestep, text[..., :-1])  # too narrow for the network
    assert torch.equal(answer(policy, network), before)
    assert all(torch.equal(w, weights[n]) for n, w in trained_weights(network).items())


@kinds
def test_gradients_of_the_policy_do_not_depend_on_the_reference(kind: str, folder: Path) -> None:
    policy, network, reference = ready(kind, folder)
    reference.refresh(None)
    train(network)
    grads = []
    for ask_first in (False, True):
        network.zero_grad()
        if ask_first:
            reference.predict(*QUESTION)
        policy.predict(network, *QUESTION).square().mean().backward()
        grads.append({n: p.grad.clone() for n, p in network.named_parameters() if p.requires_grad})
    assert all(torch.equal(grads[0][n], grads[1][n]) for n in grads[0])


@kinds
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_the_reference_leaves_no_trace_in_autocast(kind: str, precision: str, folder: Path) -> None:
    """Autocast caches casts of weights, also those made without gradients."""
    policy, network, reference = ready(kind, folder)
    reference.refresh(kept(network))
    train(network)
    mixed = precision == "bf16"
    context = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    with context:
        alone = policy.predict(network, *QUESTION)
    alone.float().square().mean().backward()
    wanted = {n: p.grad.clone() for n, p in network.named_parameters() if p.requires_grad}
    network.zero_grad()
    with context:
        asked = reference.predict(*QUESTION)
        after = policy.predict(network, *QUESTION)
    after.float().square().mean().backward()
    assert torch.equal(after, alone)
    assert not torch.equal(asked, after)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, wanted[name]), name


@kinds
def test_a_reference_lies_outside_the_module(kind: str, folder: Path) -> None:
    make, of, lora = KINDS[kind]
    policy = tiny.policy(folder, lora=lora)
    module = PreferenceModule(policy, partial(dpo_loss, beta=1.0), make(of), torch.optim.SGD)
    module.configure_model()
    names, count = set(module.state_dict()), len(list(module.parameters()))
    module.on_fit_start()
    module.reference.refresh(None)
    assert set(module.state_dict()) == names
    assert len(list(module.parameters())) == count
    assert not [n for n, _ in module.named_modules() if n.startswith("reference")]


def test_impossible_references_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="^of=start: "):
        FrozenReference("start")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="^of=start: "):
        AdapterReference("start")  # type: ignore[arg-type]
    full = tiny.policy(folder)
    with pytest.raises(InputError, match="needs a policy with an adapter"):
        AdapterReference().attach(full, full.build())


@pytest.mark.parametrize("make", [FrozenReference, AdapterReference])
def test_a_reference_that_knows_no_policy_says_so(make: Any) -> None:
    with pytest.raises(RuntimeError, match="attach"):
        make().predict(*QUESTION)
    with pytest.raises(RuntimeError, match="attach"):
        make().refresh(None)


# -------------------------------------------------------------------- references that are not asked


def module_of(folder: Path, loss: Any, reference: Reference, **settings: Any) -> PreferenceModule:
    module = PreferenceModule(
        tiny.policy(folder), loss, reference, partial(torch.optim.SGD, lr=0.1), **settings
    )
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.configure_model()
    module.on_fit_start()
    module.reference.refresh(None)
    return module


@torch.no_grad()
def base_errors(module: PreferenceModule, videos: Videos) -> Tensor:
    noised = module.objective.noise(videos.latents, videos.noise, videos.u)
    seen = module.policy.predict(module.policy.build(), noised.sample, noised.timestep, videos.text)
    return squared_error(seen, noised)


@pytest.mark.parametrize("label_kind", ["pairs", "points"])
def test_precomputed_errors_train_as_an_online_reference(label_kind: str, folder: Path) -> None:
    loss = partial(dpo_loss if label_kind == "pairs" else kto_loss, beta=50.0)
    batch = tiny.pair_batch(3) if label_kind == "pairs" else tiny.point_batch([True, False, True])
    gradients = []
    for reference in (FrozenReference(), CachedReference()):
        module = module_of(folder, loss, reference)
        train(module.network)
        known = base_errors(module, batch.videos())
        if label_kind == "pairs":
            batch = batch._replace(ref_win=known[:3], ref_lose=known[3:])
        else:
            batch = batch._replace(ref=known)
        step = module.pair_step if label_kind == "pairs" else module.point_step
        step(batch)[0].backward()
        gradients.append({n: p.grad for n, p in module.network.named_parameters()})
    for name, online in gradients[0].items():
        assert torch.allclose(gradients[1][name], online, rtol=1e-4, atol=1e-6), name


def test_a_cached_reference_is_refused_where_numbers_are_not_enough(folder: Path) -> None:
    for loss in (nft_loss, partial(kto_loss, beta=1.0, baseline="mismatched")):
        with pytest.raises(InputError, match="choose reference=frozen"):
            module_of(folder, loss, CachedReference())
        module_of(folder, loss, FrozenReference())


def test_no_reference_is_refused_where_the_loss_learns_from_one(folder: Path) -> None:
    with pytest.raises(InputError, match="this loss learns from a reference"):
        module_of(folder, partial(dpo_loss, beta=1.0), NoReference())
    with pytest.raises(InputError, match="^batch_size=0: "):
        CachedReference(batch_size=0)
    with pytest.raises(InputError, match="^decay=1: "):
        MovingReference(decay=1)


def test_a_loss_without_reference_trains_without_one(folder: Path) -> None:
    batch, gradients = tiny.pair_batch(3), []
    for reference in (FrozenReference(), NoReference()):
        module = module_of(folder, partial(simpo_loss, beta=2.0), reference, winner_weight=0.5)
        train(module.network)
        total, values = module.pair_step(batch)
        total.backward()
        gradients.append({n: p.grad for n, p in module.network.named_parameters()})
    assert all(torch.equal(gradients[0][name], g) for name, g in gradients[1].items())
    assert values["margin"].isnan().all() and values["error_win_change"].isnan().all()
    assert values["loss"].isfinite().all() and values["error_win"].isfinite().all()


# -------------------------------------------------------------------- a reference that moves


def test_a_moving_reference_is_the_average_by_hand(folder: Path) -> None:
    policy = tiny.policy(folder)
    network, reference = policy.build(), MovingReference(decay=0.75)
    reference.attach(policy, network)
    reference.refresh(None)
    start = kept(network)
    train(network, seed=1)
    first = kept(network)
    reference.follow(network)
    train(network, seed=2)
    second = kept(network)
    reference.follow(network)
    for name, average in reference.state().items():
        wanted = 0.75 * (0.75 * start[name] + 0.25 * first[name]) + 0.25 * second[name]
        assert torch.allclose(average, wanted, atol=1e-6), name


def test_a_moving_reference_goes_on_where_its_round_was_stopped(folder: Path) -> None:
    policy = tiny.policy(folder)
    network = policy.build()
    stopped, resumed = MovingReference(decay=0.5), MovingReference(decay=0.5)
    for reference in (stopped, resumed):
        reference.attach(policy, network)
        reference.refresh(None)
    start = kept(network)
    train(network)
    stopped.follow(network)
    resumed.refresh(start)
    resumed.resume(stopped.state())
    train(network, seed=9)
    for reference in (stopped, resumed):
        reference.follow(network)
    there = resumed.state()
    assert all(torch.equal(weight, there[name]) for name, weight in stopped.state().items())
    stopped.refresh(None)  # the next round starts anew
    assert all(torch.equal(weight, start[name]) for name, weight in stopped.state().items())
