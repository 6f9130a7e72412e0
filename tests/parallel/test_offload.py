"""CPU offload of a reference: its blocks are copied to the device for each forward.

Here the device is the CPU too; a copy is made all the same, so that its use can be seen.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ipo_lightning.backbones.cogvideox import Lora
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.sharding import blocks
from ipo_lightning.policy import trained_weights
from ipo_lightning.references import FrozenReference, MovingReference
from tests.helpers import tiny, tiny_wan
from tests.rounds.test_rounds import Compose, results
from train import train

FAMILIES: dict[str, Any] = {"cogvideox": tiny, "wan": tiny_wan}
families = pytest.mark.parametrize("family", FAMILIES)
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "bfloat16": {"weights": "bfloat16"},
    "lora": {"lora": Lora(rank=2, alpha=3)},
    "rounded base": {"lora": Lora(rank=2, alpha=3), "quantize": "nf4"},
}
settings = pytest.mark.parametrize("setting", SETTINGS)
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: kind.save_pipeline(root / name) for name, kind in FAMILIES.items()}


def question(family: str) -> tuple[Tensor, Tensor, Tensor]:
    shape, text = FAMILIES[family].LATENT_SHAPE, tiny.normal(101, 2, *tiny.TEXT_SHAPE)
    return tiny.normal(100, 2, *shape), torch.tensor([20, 800]), text


@torch.no_grad()
def move(network: nn.Module, seed: int = 0) -> None:
    for i, weight in enumerate(trained_weights(network).values()):
        weight.add_(0.1 * tiny.normal(seed + i, *weight.shape).to(weight.dtype))


def places(network: nn.Module) -> dict[str, int]:
    """Addresses of everything in a network's blocks."""
    return {
        f"{number}.{name}": tensor.data_ptr()
        for number, block in enumerate(blocks(network))
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]
    }


@pytest.mark.slow
@families
@settings
@pytest.mark.parametrize("make", [FrozenReference, MovingReference])
@pytest.mark.parametrize("mixed", [False, True])
def test_answers_are_the_same_bits(
    mixed: bool, make: Any, setting: str, family: str, folders: dict[str, Path]
) -> None:
    policy = FAMILIES[family].policy(folders[family], **SETTINGS[setting])
    answers = []
    for offload in (False, True):
        network, reference = policy.build(), make(offload=offload)
        reference.attach(policy, network)
        found = []
        for round_start in (False, True):
            move(network)
            reference.refresh(trained_weights(network) if round_start else None)
            for update in range(2):
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    found.append(reference.predict(*question(family)))
                move(network, seed=50 + update)
                reference.follow(network)
        answers.append(found)
    for kept, visiting in zip(*answers, strict=True):
        assert torch.equal(kept, visiting)
    assert not torch.equal(answers[0][0], answers[0][-1])


@families
@pytest.mark.parametrize("setting", ["full", "rounded base"])
def test_only_the_block_at_work_is_away(
    setting: str, family: str, folders: dict[str, Path]
) -> None:
    policy = FAMILIES[family].policy(folders[family], **SETTINGS[setting])
    reference = FrozenReference(offload=True)
    reference.attach(policy, policy.build())
    network = reference._attached[1]
    home, away = places(network), []

    def look(*_: object) -> None:
        now = places(network)
        away.append({name.split(".")[0] for name, place in now.items() if place != home[name]})
        moved = {name for name, place in now.items() if place != home[name]}
        number = name_of(moved)
        assert moved == {name for name in home if name.startswith(f"{number}.")}

    for block in blocks(network):
        block.register_forward_hook(look, prepend=True)  # before the hook that brings it home
    reference.predict(*question(family))
    assert away == [{str(number)} for number in range(len(list(blocks(network))))]
    assert places(network) == home


def name_of(moved: set[str]) -> str:
    (number,) = {name.split(".")[0] for name in moved}
    return number


def test_blocks_are_home_again_after_an_exception(folders: dict[str, Path]) -> None:
    policy = tiny.policy(folders["cogvideox"])
    reference = FrozenReference(offload=True)
    reference.attach(policy, policy.build())
    network = reference._attached[1]
    home, wanted = places(network), reference.predict(*question("cogvideox"))
    block = next(blocks(network))
    inner = block.attn1.register_forward_pre_hook(lambda *_: 1 / 0)  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError):
        reference.predict(*question("cogvideox"))
    inner.remove()
    assert places(network) == home
    assert torch.equal(reference.predict(*question("cogvideox")), wanted)


def test_shards_are_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipo_lightning.references.mesh_of", lambda network: object())
    policy = tiny.policy(folders["cogvideox"])
    with pytest.raises(InputError, match=r"reference\.offload=true: the network is in shards"):
        FrozenReference(offload=True).attach(policy, policy.build())


@pytest.mark.slow
def test_a_run_with_its_reference_in_cpu_memory(begun: Compose) -> None:
    common = ("round=1", "reference=frozen", "data.optimizer_steps=3", "evaluation.prompts=2")
    train(begun(*common, outputs="there"))
    train(begun(*common, "reference.offload=true"))
    assert results(begun(*common)) == results(begun(*common, outputs="there"))
