"""A base in 4 or 8 bits stays as it was rounded, and an adapter learns over it."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from ipo_lightning.backbones import quantised
from ipo_lightning.backbones.cogvideox import Lora
from ipo_lightning.backbones.quantised import QuantisedLinear, quantise
from ipo_lightning.errors import InputError
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.policy import trained_weights
from ipo_lightning.references import AdapterReference
from ipo_lightning.storage.layout import RunDir
from tests.helpers import tiny, tiny_wan
from tests.rounds.test_rounds import Compose, Killed, crash_at, results
from train import train

LORA = Lora(rank=2, alpha=3)
FAMILIES: dict[str, Any] = {"cogvideox": tiny, "wan": tiny_wan}
families = pytest.mark.parametrize("family", FAMILIES)
kinds = pytest.mark.parametrize("kind", ["nf4", "int8"])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: kind.save_pipeline(root / name) for name, kind in FAMILIES.items()}


def layer(seed: int = 0, inputs: int = 96, outputs: int = 48, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias)
    with torch.no_grad():
        for i, parameter in enumerate(linear.parameters()):
            parameter.copy_(tiny.normal(seed + i, *parameter.shape) / math.sqrt(inputs))
    return linear


def plain(rounded: QuantisedLinear) -> nn.Linear:
    """An ordinary layer with the rounded weight."""
    linear = nn.Linear(rounded.in_features, rounded.out_features, rounded.bias is not None)
    with torch.no_grad():
        linear.weight.copy_(rounded.dequantised(torch.float32))
        if rounded.bias is not None:
            linear.bias.copy_(rounded.bias)
    return linear


# -------------------------------------------------------------------- a layer


def test_int8_rounds_each_output_to_its_own_grid() -> None:
    linear = layer()
    rounded = QuantisedLinear(linear, "int8")
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    assert ((rounded.dequantised(torch.float32) - linear.weight).abs() <= step * 0.5001).all()
    assert rounded.weight.dtype == torch.int8


def test_nf4_rounds_to_16_values_of_each_block() -> None:
    linear = layer()
    whole = QuantisedLinear(linear, "nf4").dequantised(torch.float32).detach()
    for block, original in zip(
        whole.view(-1, 64), linear.weight.detach().view(-1, 64), strict=True
    ):
        assert len((block / original.abs().max()).unique()) <= 16
        # The widest gap between two values of nf4 is 0.304 of the largest in the block.
        assert ((block - original).abs() <= 0.153 * original.abs().max()).all()
    # 96 values a row are one and a half blocks: a block may end in mid-row.
    error = (whole - linear.weight).norm() / linear.weight.norm()
    assert 0.05 < error < 0.12


@pytest.mark.parametrize(("kind", "bytes_a_weight"), [("nf4", 0.5 + 4 / 64), ("int8", 1 + 4 / 256)])
def test_the_memory_of_a_weight(kind: Any, bytes_a_weight: float) -> None:
    rounded = QuantisedLinear(layer(inputs=256, outputs=128, bias=False), kind)
    size = sum(p.numel() * p.element_size() for p in rounded.parameters())
    assert size / (256 * 128) == bytes_a_weight


@kinds
@pytest.mark.parametrize("bias", [True, False])
def test_answers_and_gradients_are_those_of_the_rounded_weight(kind: Any, bias: bool) -> None:
    rounded = QuantisedLinear(layer(bias=bias), kind)
    found = []
    for module in (rounded, plain(rounded)):
        x = tiny.normal(5, 2, 7, 96).requires_grad_()
        y = module(x)
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-5)


@kinds
def test_autocast_reaches_a_rounded_layer(kind: Any) -> None:
    rounded = QuantisedLinear(layer(), kind)
    x = tiny.normal(5, 4, 96).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, wanted = rounded(x), plain(rounded)(x)
    assert y.dtype == wanted.dtype == torch.bfloat16
    assert torch.equal(y, wanted)
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


@kinds
def test_no_graph_holds_the_whole_weight(kind: Any) -> None:
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    rounded, x = QuantisedLinear(layer(), kind), tiny.normal(5, 4, 96).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        plain(rounded)(x)
        assert max(saved) == 96 * 48
        saved.clear()
        rounded(x)
    assert saved == []


@kinds
def test_the_answer_does_not_depend_on_what_was_asked_before(kind: Any) -> None:
    """As it does of bitsandbytes' layers."""
    fresh, used = (QuantisedLinear(layer(), kind) for _ in range(2))
    x = tiny.normal(5, 4, 96)
    used(x.bfloat16())
    used.eval()(x)
    assert torch.equal(fresh(x), used.train()(x))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"quantize=nf4.* needs the package bitsandbytes.*extra gpu"
    ):
        quantised.check_quantisation("nf4")
    quantised.check_quantisation("int8")


# -------------------------------------------------------------------- a network


def rounded_layers(network: nn.Module) -> Iterator[tuple[str, QuantisedLinear]]:
    for name, module in network.named_modules():
        if isinstance(module, QuantisedLinear):
            yield name, module


@families
def test_the_blocks_are_rounded_and_nothing_else(family: str, folders: dict[str, Path]) -> None:
    policy = FAMILIES[family].policy(folders[family], quantize="int8", lora=LORA)
    network = policy.build()
    lists = ("transformer_blocks.", "blocks.")
    assert all(name.startswith(lists) for name, _ in rounded_layers(network))
    left = [
        name for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and not isinstance(module, QuantisedLinear)
        and name.startswith(lists) and "lora_" not in name
    ]  # fmt: skip
    assert left == [] and len(list(rounded_layers(network))) >= 16
    assert {name.split(".")[-3] for name in trained_weights(network)} == {"lora_A", "lora_B"}
    assert all(w.dtype == torch.float32 for w in trained_weights(network).values())


def test_rounding_reaches_layers_at_any_depth() -> None:
    block = nn.ModuleDict({"a": nn.Sequential(nn.GELU(), layer()), "b": layer()})
    quantise(block, "int8")
    assert len(list(rounded_layers(block))) == 2


def module_of(folder: Path, family: str, **settings: Any) -> PreferenceModule:
    module = PreferenceModule(
        FAMILIES[family].policy(folder, lora=LORA, **settings),
        partial(dpo_loss, beta=20.0),
        AdapterReference("base"),
        partial(torch.optim.AdamW, lr=0.02, weight_decay=0.0),
    )
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.configure_model()
    module.on_fit_start()
    module.reference.refresh(None)
    return module


@families
@kinds
def test_an_adapter_learns_over_a_rounded_base(
    kind: str, family: str, folders: dict[str, Path]
) -> None:
    module, batch = (
        module_of(folders[family], family, quantize=kind),
        FAMILIES[family].pair_batch(3),
    )
    optimizer, losses = module.configure_optimizers(), []
    for _ in range(8):
        loss, values = module.pair_step(batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(2), abs=1e-7)
    assert losses[-1] < 0.9 * losses[0]


@families
@kinds
def test_gradients_survive_recomputation(kind: str, family: str, folders: dict[str, Path]) -> None:
    found = []
    for checkpointing in (False, True):
        module = module_of(folders[family], family, quantize=kind, checkpointing=checkpointing)
        module.pair_step(FAMILIES[family].pair_batch(3))[0].backward()
        found.append({n: p.grad for n, p in module.network.named_parameters() if p.requires_grad})
    assert all(torch.allclose(g, found[1][n], atol=1e-6) for n, g in found[0].items())


@families
def test_the_adapter_fits_the_plain_base(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """As anybody would load it, in plain diffusers; no weight of it differs."""
    policy = FAMILIES[family].policy(folders[family], quantize="nf4", lora=LORA)
    network = policy.build()
    with torch.no_grad():
        for i, weight in enumerate(trained_weights(network).values()):
            weight.add_(0.3 * tiny.normal(i, *weight.shape))
    policy.export(network, tmp_path)
    pipe = FAMILIES[family].pipeline()
    pipe.load_lora_weights(tmp_path)
    theirs = dict(pipe.transformer.named_parameters())
    for name, weight in trained_weights(network).items():
        found = [w for n, w in theirs.items() if n.replace("default_0", "default") == name]
        assert len(found) == 1 and torch.equal(found[0], weight), name
    loaded = policy.load_export(tmp_path)
    assert all(torch.equal(loaded[name], w) for name, w in trained_weights(network).items())


@pytest.mark.slow
def test_a_run_over_a_rounded_base_is_resumed(small: Compose) -> None:
    common = ("round=1", "experiment=shapes_lora", "reference=adapter", "backbone.quantize=nf4",
              "backbone.weights=bfloat16", "trainer.precision=bf16-mixed")  # fmt: skip
    line = train(small(*common, outputs="whole"))
    assert line is not None and line["train"]["margin"] != 0
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, PreferenceModule, "training_step", 4)
        with pytest.raises(Killed):
            train(small(*common))
    train(small(*common))
    assert results(small(*common)) == results(small(*common, outputs="whole"))
    folder = RunDir(Path(small().paths.outputs) / "run").round(1).checkpoints
    (file,) = folder.glob("*.ckpt")
    state = torch.load(file, weights_only=True)["state_dict"]
    assert state and all(".lora_" in name for name in state)
