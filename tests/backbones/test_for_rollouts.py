"""What a network is made into for rollouts or drafts alone: a LoRA over it, other attention,
compiled blocks, rounded weights. Afterwards it is what it was, to the bit."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ipo_lightning.backbones.lora import Lora
from ipo_lightning.backbones.lora_files import METADATA
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.sharding import blocks
from ipo_lightning.policy import Sampling, trained_weights
from tests.backbones.test_lora_files import factors
from tests.helpers import tiny, tiny_wan

CPU = torch.device("cpu")
SEEDS = [3, 4]
FAMILIES = pytest.mark.parametrize("family", ["cogvideox", "wan"])
Policies = Callable[..., Any]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """(family, settings) -> a policy."""
    root = tmp_path_factory.mktemp("bases")
    folders = {
        "cogvideox": tiny.save_pipeline(root / "cogvideox"),
        "wan": tiny_wan.save_pipeline(root / "wan"),
    }
    return lambda family, **settings: (tiny if family == "cogvideox" else tiny_wan).policy(
        folders[family], **settings
    )


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory, policies: Policies) -> Callable[..., Path]:
    """(family, how) -> a LoRA's file: alpha is in its metadata, or beside each layer with biases
    and whole differences."""
    root = tmp_path_factory.mktemp("loras")

    def lora(family: str, how: str) -> Path:
        file = root / f"{family}-{how}.safetensors"
        network = policies(family).build()
        layers = [f"{name}.attn1.{one}" for name, _ in _blocks(network) for one in ("to_q", "to_v")]
        own = {
            name: 0.3 * one for name, one in factors(network, [*layers, _patches(family)]).items()
        }
        if how == "metadata":
            settings = {"r": 3, "lora_alpha": 5.0, "alpha_pattern": {layers[0]: 2.0}}
            given = {METADATA: json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
        else:
            given = {}
            own |= {f"{layer}.alpha": torch.tensor(4.0) for layer in layers}
            bias = network.get_parameter(f"{layers[0]}.bias")
            own[f"{layers[0]}.lora_B.bias"] = tiny.normal(7, *bias.shape)
            other = "proj_out.weight"
            own["proj_out.diff"] = tiny.normal(8, *network.get_parameter(other).shape)
        save_file({name: one.contiguous() for name, one in own.items()}, file, given)
        return file

    return lora


torchs_own = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
"""What torch itself does when it compiles."""


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured and run as they are: making machine code of them takes minutes."""
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))


def _patches(family: str) -> str:
    return "patch_embed.proj" if family == "cogvideox" else "patch_embedding"


def _blocks(network: nn.Module) -> list[tuple[str, nn.Module]]:
    chosen = {id(block) for block in blocks(network)}
    return [(name, part) for name, part in network.named_modules() if id(part) in chosen]


def ask(policy: Any, network: nn.Module, **choice: Any) -> Tensor:
    text = policy.embed(["a red ring"], CPU)
    latents: Tensor = policy.sample(network, SEEDS, text, None, Sampling(3, **choice))
    return latents


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in network.named_parameters()}


def assert_untouched(network: nn.Module, before: dict[str, Tensor]) -> None:
    after = state(network)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert not any(part._forward_hooks or "forward" in vars(part) for part in network.modules())
    assert all(block._compiled_call_impl is None for block in blocks(network))


# -------------------------------------------------------------------- a LoRA for drafts


@FAMILIES
@pytest.mark.parametrize("how", ["metadata", "tensors"])
@pytest.mark.parametrize("adapter", [None, Lora(2, 3.0)])
@torch.no_grad()
def test_a_lora_over_the_policy_is_a_lora_on_its_weights(
    policies: Policies, loras: Callable[..., Path], family: str, how: str, adapter: Lora | None
) -> None:
    """Over trained weights and over a trained adapter alike; both are what they were afterwards."""
    policy, file = policies(family, lora=adapter), loras(family, how)
    network = policy.build()
    for number, weight in enumerate(trained_weights(network).values()):
        weight.add_(0.05 * tiny.normal(number, *weight.shape))
    before, plain = state(network), ask(policy, network)
    drafts = ask(policy, network, lora=str(file))
    assert torch.equal(ask(policy, network, lora=str(file)), drafts)
    assert_untouched(network, before)
    assert torch.equal(ask(policy, network), plain) and not torch.allclose(drafts, plain, atol=1e-2)
    merged = policies(family)
    own = {name: one for name, one in before.items() if ".lora_" not in name}
    theirs = merged.build()
    if adapter is not None:
        from ipo_lightning.backbones.lora import merge_adapters

        merge_adapters(network)
        own = state(network)
    theirs.load_state_dict(own, strict=False)
    merged.load_lora(theirs, file)
    assert torch.allclose(ask(merged, theirs), drafts, atol=1e-4, rtol=1e-4)


@FAMILIES
def test_a_draft_knows_its_lora_by_content(
    policies: Policies, loras: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    file = loras(family, "metadata")
    drafts = Sampling(10).draft(steps=4, lora=str(file))
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(file.read_bytes())
    assert Sampling(10).draft(steps=4, lora=str(copied)).departures == drafts.departures
    other = Sampling(10).draft(steps=4, lora=str(loras(family, "tensors")))
    assert other.departures != drafts.departures
    assert drafts.independent() == Sampling(4)
    policies(family).check_sampling(drafts)
    with pytest.raises(InputError, match=r"lora=nowhere.*no such file"):
        policies(family).check_sampling(Sampling(4, lora="nowhere"))
    copied.write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"copy\.safetensors is no LoRA of this model"):
        policies(family).check_sampling(Sampling(4, lora=str(copied)))


# -------------------------------------------------------------------- attention


@FAMILIES
@pytest.mark.parametrize("name", ["native", "_native_math"])
def test_attention_of_diffusers_registry(policies: Policies, family: str, name: str) -> None:
    policy = policies(family)
    network = policy.build()
    before, plain = state(network), ask(policy, network)
    assert torch.allclose(ask(policy, network, attention=name), plain, atol=1e-4)
    assert_untouched(network, before)
    assert torch.equal(ask(policy, network), plain)
    assert Sampling(3, attention=name).departures == {"attention": name}


@FAMILIES
def test_attention_is_dispatched(
    policies: Policies, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every attention of the network, in the thread that samples alone."""
    from diffusers.models.attention_dispatch import (
        AttentionBackendName,
        _AttentionBackendRegistry,
    )

    policy, called = policies(family), list[torch.Size]()
    network = policy.build()
    own = _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE]

    def spy(query: Tensor, *rest: Any, **named: Any) -> Tensor:
        called.append(query.shape)
        result: Tensor = own(query, *rest, **named)
        return result

    monkeypatch.setitem(
        _AttentionBackendRegistry._backends, AttentionBackendName._NATIVE_CUDNN, spy
    )
    with ThreadPoolExecutor(2) as threads:
        work = [threads.submit(ask, policy, network, attention="_native_cudnn"),
                threads.submit(ask, policy, network)]  # fmt: skip
        first, second = (one.result() for one in work)
    in_a_block = 1 if family == "cogvideox" else 2
    assert len(called) == 3 * len(list(blocks(network))) * in_a_block
    assert torch.allclose(first, second, atol=1e-5)


@FAMILIES
def test_attention_that_is_not_there_is_refused_by_name(policies: Policies, family: str) -> None:
    policy = policies(family)
    for name, told in [
        ("sage", "sageattention"), ("xformers", "xformers"), ("_flash_3_hub", "kernels"),
        ("flesh", "this diffusers has .*native.*sage"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=f"attention={name}: .*{told}"):
            policy.check_sampling(Sampling(3, attention=name))
    with pytest.raises(InputError, match="attention=_native_cudnn does not compute .* on cpu"):
        ask(policy, policy.build(), attention="_native_cudnn")


# -------------------------------------------------------------------- precision


@FAMILIES
@pytest.mark.parametrize(("kind", "apart"), [("int8", 0.05), ("fp8", 0.2)])
@pytest.mark.parametrize("adapter", [None, Lora(2, 3.0)])
def test_weights_are_rounded_for_drafts_alone(
    policies: Policies, family: str, kind: Any, apart: float, adapter: Lora | None
) -> None:
    policy = policies(family, lora=adapter)
    network = policy.build()
    before, plain = state(network), ask(policy, network)
    rounded = ask(policy, network, weights=kind)
    assert 0 < (rounded - plain).abs().max() < apart
    assert torch.equal(ask(policy, network, weights=kind), rounded)
    assert_untouched(network, before)
    assert torch.equal(ask(policy, network), plain)


def test_weights_are_rounded_once(policies: Policies) -> None:
    policy = policies("wan", lora=Lora(2, 3.0), quantize="int8")
    with pytest.raises(InputError, match=r"weights=fp8 with backbone\.quantize=int8"):
        policy.check_sampling(Sampling(3, weights="fp8"))


# -------------------------------------------------------------------- compilation


@torchs_own
@pytest.mark.slow
@FAMILIES
def test_rollouts_alone_are_compiled(policies: Policies, family: str, captured: None) -> None:
    """The blocks are compiled once for all samplings, and again at most once for other batches."""
    policy = policies(family)
    network = policy.build()
    before, plain = state(network), ask(policy, network)
    compiled = ask(policy, network, compile=True)
    assert torch.allclose(compiled, plain, atol=1e-4)
    frames = torch._dynamo.utils.counters["frames"]["ok"]
    assert frames and torch.equal(ask(policy, network, compile=True), compiled)
    assert torch._dynamo.utils.counters["frames"]["ok"] == frames
    one = ask(policy, network, compile=True, batch_size=1)
    assert torch.allclose(one, plain, atol=1e-4)
    assert_untouched(network, before)
    assert torch.equal(ask(policy, network), plain)
    assert torch.allclose(ask(policy, network, compile=True, attention="native"), plain, atol=1e-4)


@torchs_own
@pytest.mark.slow
def test_a_compiled_policy_may_be_sampled_as_it_is_written(
    policies: Policies, captured: None
) -> None:
    """``compile`` of a backbone holds in rollouts too, unless the sampling says otherwise."""
    policy = policies("cogvideox", compile=True)
    network, counters = policy.build(), torch._dynamo.utils.counters["frames"]
    before = counters["total"]
    ask(policy, network, compile=False)
    ask(policy, network, weights="int8")
    assert counters["total"] == before
    ask(policy, network)
    assert counters["total"] > before


def test_drafts_may_be_cheaper_without_fewer_steps() -> None:
    plain = Sampling(4)
    for choice in [{"attention": "sage"}, {"weights": "fp8"}, {"compile": True}]:
        assert plain.draft(**choice).evaluations(1) == 4
    with pytest.raises(InputError, match="fewer steps"):
        plain.draft(steps=4)
    assert Sampling(4, compile=True).draft(steps=2, weights="int8").compile is None
    with pytest.raises(InputError, match="compile=true"):
        plain.draft(compile=True, weights="int8")
