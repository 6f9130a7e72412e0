"""The step in two passes: the gradients of the plain one, at half the activations."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipo_lightning.losses import dpo_loss, kto_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.references import FrozenReference
from tests.helpers import tiny
from tests.helpers.ranks import ranks
from tests.helpers.two_pass_ranks import write
from tests.test_module import fit, make, quiet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


def gradients(module: PreferenceModule, batch: Any) -> dict[str, Tensor]:
    step = module.pair_step if hasattr(batch, "win") else module.point_step
    total = step(batch)[0]
    if batch.real is not None:
        total = total + module.real_weight * module.real_errors(batch.real).mean()
    total.backward()
    return {n: p.grad.clone() for n, p in module.network.named_parameters() if p.grad is not None}


BATCHES = {
    "pairs": tiny.pair_batch(3),
    "one pair": tiny.pair_batch(1),
    "pairs and real clips": tiny.pair_batch(2)._replace(real=tiny.real_batch(2)),
    "points": tiny.point_batch([True, False, False]),
    "one point": tiny.point_batch([True]),
}


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", BATCHES)
def test_gradients_are_those_of_the_plain_step(
    folder: Path, kind: str, mixed: bool, checkpointing: bool
) -> None:
    found = []
    for two_pass in (False, True):
        loss = partial(dpo_loss if "pair" in kind else kto_loss, beta=20.0)
        module = make(folder, loss, two_pass=two_pass, winner_weight=0.5, real_weight=2.0)
        if checkpointing:
            module.network.enable_gradient_checkpointing()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            found.append(gradients(module, BATCHES[kind]))
    scale = max(float(g.abs().max()) for g in found[0].values())
    for name, plain in found[0].items():
        assert torch.allclose(found[1][name], plain, atol=(2e-2 if mixed else 1e-5) * scale), name


def test_the_safeguard_holds_in_two_passes_too(folder: Path) -> None:
    found = [
        gradients(make(folder, two_pass=two_pass, safeguard=0.5), tiny.pair_batch(3))
        for two_pass in (False, True)
    ]
    plain = gradients(make(folder), tiny.pair_batch(3))
    assert all(torch.allclose(found[1][n], g, atol=1e-5) for n, g in found[0].items())
    assert not all(torch.allclose(found[0][n], g, atol=1e-4) for n, g in plain.items())


class Kept:
    """Bytes that autograd keeps for the backward pass, each storage counted once."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


def test_half_the_activations_are_kept(folder: Path) -> None:
    kept = []
    for two_pass in (False, True):
        module, seen = make(folder, two_pass=two_pass), Kept()
        weights = sum(p.untyped_storage().nbytes() for p in module.network.parameters())
        with torch.autograd.graph.saved_tensors_hooks(seen.pack, lambda tensor: tensor):
            module.pair_step(tiny.pair_batch(8))
        kept.append(sum(seen.sizes.values()) - weights)
    assert kept[1] < 0.6 * kept[0]


@quiet
def test_clipping_and_accumulation_are_those_of_the_plain_step(
    folder: Path, tmp_path: Path
) -> None:
    trained = []
    for two_pass in (False, True):
        module = PreferenceModule(
            tiny.policy(folder), partial(dpo_loss, beta=20.0), FrozenReference(),
            partial(torch.optim.SGD, lr=0.5), two_pass=two_pass,
        )  # fmt: skip
        batches = [tiny.pair_batch(2, seed=s) for s in range(4)]
        fit(module, tmp_path, batches, accumulate_grad_batches=2, gradient_clip_val=0.1)
        trained.append({n: w.clone() for n, w in module.trained().items()})
    base = dict(tiny.policy(folder).build().named_parameters())
    for name, plain in trained[0].items():
        assert torch.allclose(trained[1][name], plain, atol=1e-6), name
    assert any(not torch.equal(plain, base[name]) for name, plain in trained[0].items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_gradients_are_those_of_the_plain_step_on_two_ranks(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    assert ranks(write, folder, kind, tmp_path / "found.pt") == 0
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, plain in found["plain"].items():
        for other in ("two_pass", "checkpointing"):
            assert torch.allclose(found[other][name], plain, atol=1e-5), (other, name)
    assert any(plain.abs().max() > 1e-2 for plain in found["plain"].values())
