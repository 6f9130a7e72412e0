"""bfloat16 weights, attention kernels and compiled blocks change results by rounding alone."""

import gc
import math
import weakref
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from torch import Tensor, nn

from app import assembly, claiming, process
from app.checks import check
from app.entry import settings
from app.planning import memory
from ipo_lightning.backbones.cogvideox import Lora
from ipo_lightning.errors import InputError
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.runtime import arithmetic
from ipo_lightning.planning.frozen_parts import decoding_cost
from ipo_lightning.policy import put_weights, trained_weights
from ipo_lightning.references import (
    AdapterReference,
    FrozenReference,
    MovingReference,
    Reference,
)
from ipo_lightning.storage.store import fingerprint_tensors
from tests.conftest import ComposeTrain
from tests.helpers import tiny, tiny_wan
from tests.rounds.test_reference_runs import watched
from tests.rounds.test_rounds import Compose
from train import fit

LORA = Lora(rank=2, alpha=3)
BFLOAT16 = ("backbone.weights=bfloat16", "trainer.precision=bf16-mixed")
FAMILIES: dict[str, Any] = {"cogvideox": tiny, "wan": tiny_wan}
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: kind.save_pipeline(root / name) for name, kind in FAMILIES.items()}


def question(family: str) -> tuple[Tensor, Tensor, Tensor]:
    shape = FAMILIES[family].LATENT_SHAPE
    text = tiny.normal(101, 2, *tiny.TEXT_SHAPE)
    return tiny.normal(100, 2, *shape), torch.tensor([20, 800]), text


def answer(policy: Any, network: nn.Module, family: str) -> Tensor:
    with torch.no_grad():
        return policy.predict(network, *question(family)).float()


@torch.no_grad()
def move(network: nn.Module, by: float = 0.1) -> None:
    for i, weight in enumerate(trained_weights(network).values()):
        weight.add_(by * tiny.normal(i, *weight.shape).to(weight.dtype))


# -------------------------------------------------------------------- weights


@families
def test_weights_are_bfloat16_but_for_what_diffusers_keeps(
    family: str, folders: dict[str, Path]
) -> None:
    policy = FAMILIES[family].policy(folders[family], weights="bfloat16")
    types = {name: p.dtype for name, p in policy.build().named_parameters()}
    kept = WanTransformer3DModel._keep_in_fp32_modules if family == "wan" else []
    for name, dtype in types.items():
        whole = any(part in name.split(".") for part in kept)
        assert dtype == (torch.float32 if whole else torch.bfloat16), name
    assert torch.bfloat16 in types.values()


@families
def test_answers_are_near_those_of_float32(family: str, folders: dict[str, Path]) -> None:
    make = FAMILIES[family].policy
    whole, half = make(folders[family]), make(folders[family], weights="bfloat16")
    wanted, found = (answer(p, p.build(), family) for p in (whole, half))
    assert not torch.equal(wanted, found)
    assert torch.allclose(wanted, found, atol=0.05)


@families
def test_an_adapter_is_float32_over_a_base_of_bfloat16(
    family: str, folders: dict[str, Path]
) -> None:
    policy = FAMILIES[family].policy(folders[family], weights="bfloat16", lora=LORA)
    network = policy.build()
    assert {w.dtype for w in trained_weights(network).values()} == {torch.float32}
    policy.predict(network, *question(family)).float().square().mean().backward()
    grads = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.float32 for g in grads)
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)


KINDS = {
    "frozen": (FrozenReference(), None, False),
    "moving": (MovingReference(), None, False),
    "frozen, moved": (FrozenReference(), None, True),
    "frozen, lora": (FrozenReference(), LORA, True),
    "adapter": (AdapterReference("base"), LORA, False),
    "adapter, moved": (AdapterReference("round_start"), LORA, True),
}


@pytest.mark.slow
@families
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_exactly_log_2(kind: str, family: str, folders: dict[str, Path]) -> None:
    reference, lora, moved = KINDS[kind]
    assert isinstance(reference, Reference)
    policy = FAMILIES[family].policy(folders[family], weights="bfloat16", lora=lora)
    module = PreferenceModule(policy, partial(dpo_loss, beta=1000.0), reference, torch.optim.SGD)
    module.configure_model()
    module.on_fit_start()
    if moved:
        move(module.network)
    start = {name: w.clone() for name, w in module.trained().items()}
    reference.refresh(start if moved else None)
    with torch.autocast("cpu", torch.bfloat16):
        loss, values = module.pair_step(FAMILIES[family].pair_batch(3))
    assert torch.equal(values["margin"], torch.zeros(3))
    assert torch.equal(values["loss"], torch.full((3,), math.log(2)))
    loss.backward()
    norms = [float(p.grad.abs().sum()) for p in module.network.parameters() if p.grad is not None]
    assert sum(norms) > 0


@pytest.mark.slow
def test_the_first_loss_is_log_2_with_errors_computed_before(small: Compose) -> None:
    common = ("round=1", "until=training", "data.optimizer_steps=2", *BFLOAT16)
    for number, more in enumerate(("optim=adamw_bf16", "experiment=shapes_lora")):
        with torch.compiler.set_stance("force_eager"):
            steps, weights = watched(
                small(
                    *common, more, "reference=cached", "reference.batch_size=2", outputs=f"{number}"
                )
            )
        assert steps[0] == (pytest.approx(math.log(2), abs=1e-7), 0)
        assert steps[1][1] != 0
        dtype = torch.bfloat16 if number == 0 else torch.float32
        assert {w.dtype for w in weights.values()} == {dtype}


@families
def test_an_export_is_the_policy_to_the_bit(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    policy = FAMILIES[family].policy(folders[family], weights="bfloat16")
    network = policy.build()
    move(network)
    policy.export(network, tmp_path)
    mine = trained_weights(network)
    loaded = policy.load_export(tmp_path)
    assert fingerprint_tensors(loaded) == fingerprint_tensors(mine)
    plain = CogVideoXTransformer3DModel if family == "cogvideox" else WanTransformer3DModel
    theirs = plain.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert all(torch.equal(w, mine[name]) for name, w in theirs.named_parameters())
    assert torch.equal(answer(policy, theirs, family), answer(policy, network, family))
    again = policy.build()
    put_weights(again, loaded)
    assert torch.equal(answer(policy, again, family), answer(policy, network, family))


@families
def test_what_changes_answers_changes_the_identity(family: str, folders: dict[str, Path]) -> None:
    def identity(**settings: Any) -> str:
        return str(FAMILIES[family].policy(folders[family], **settings).identity)

    plain = {"weights": "float32", "quantize": None, "compile": False, "attention": None}
    assert identity() == identity(**plain, text_dtype="float32") == identity(checkpointing=True)
    others = [{"weights": "bfloat16"}, {"quantize": "nf4"}, {"quantize": "int8"},
              {"compile": True}, {"attention": "math"}, {"text_dtype": "bfloat16"},
              {"vae_dtype": "bfloat16"}, {"vae_dtype": "float16"}]  # fmt: skip
    assert len({identity(), *(identity(**other) for other in others)}) == len(others) + 1


def test_unknown_settings_are_refused(folders: dict[str, Path]) -> None:
    for name, value in (("weights", "float16"), ("quantize", "int4"), ("attention", "fast"),
                        ("text_dtype", "half")):  # fmt: skip
        with pytest.raises(InputError, match=rf"^{name}={value}: choose"):
            tiny.policy(folders["cogvideox"], **{name: value})


FROM_SHARDS = "trainer=fsdp trainer.strategy.gather_to_sample=false"
REFUSED = {
    "trainer.precision=bf16-true": "casts the batch as well",
    "trainer.precision=16-true": "give backbone.weights=bfloat16",
    "backbone.weights=bfloat16 optim=adamw_bf16": "give trainer.precision=bf16-mixed",
    " ".join(BFLOAT16): "choose optim=adamw_bf16",
    " ".join([*BFLOAT16, "optim=adamw8bit"]): "below 1/256 of a weight is lost",
    " ".join([*BFLOAT16, "optim=adamw8bit_torchao"]): "bf16_stochastic_round=true",
    "trainer=fsdp optim=adamw8bit": "does not know shards",
    "trainer=fsdp optim=adamw8bit_torchao": "sharded_checkpoints=true",
    "backbone.quantize=nf4": "rounded weights do not train",
    f"{FROM_SHARDS} rollout.batch_size=auto": "give a number",
    f"{FROM_SHARDS} rollout.cache={{_target_:diffusers.FirstBlockCacheConfig}}": "leave blocks out",
    f"{FROM_SHARDS} rollout.draft.weights=int8": "rounds whole weights",
    "trainer=fsdp rollout.compile=true": "blocks are compiled before they are sharded",
    "trainer=fsdp rollout.draft.compile=true": "give backbone.compile=true",
    f"{FROM_SHARDS} callbacks.iteration.parallel_prompts=2": "several prompts at a time",
    "reference=frozen reference.offload=true trainer=fsdp": "no whole blocks to move",
    "reference=frozen reference.offload=true backbone.compile=true": "give one of them",
    "optim.ema=-1": "optim.ema=-1: give a number",
}


@pytest.mark.slow
@pytest.mark.parametrize("overrides", REFUSED)
def test_what_excludes_each_other_is_refused_at_once(small: Compose, overrides: str) -> None:
    with pytest.raises(InputError, match=REFUSED[overrides]):
        check(small(*overrides.split()))


ACCEPTED = (
    " ".join([*BFLOAT16, "optim=adamw_bf16"]),
    " ".join([*BFLOAT16, "experiment=shapes_lora"]),
    " ".join([*BFLOAT16, "optim=adamw8bit_torchao", "optim.optimizer.bf16_stochastic_round=true"]),
    "trainer=ddp optim=adamw8bit",
    "trainer=fsdp optim=adamw8bit_torchao trainer.strategy.sharded_checkpoints=true",
    "experiment=shapes_lora backbone.quantize=int8 trainer=ddp",
    "experiment=shapes_lora backbone.quantize=int8 trainer=fsdp",
    " ".join([*BFLOAT16, "backbone=wan_1_3b trainer=fsdp optim=adamw_bf16"]),
    f"{FROM_SHARDS} rollout.batch_size=2",
    "reference=ema reference.offload=true",
    "optim.ema=0.9",
)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", ACCEPTED)
def test_what_goes_together_is_not_refused(small: Compose, overrides: str) -> None:
    check(small(*overrides.split()))


@pytest.mark.slow
def test_a_torch_that_cannot_shard_integers_is_named(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "version", lambda _: "2.11.0+cu128")
    with pytest.raises(InputError, match="take torch 2.12 or newer, or trainer=ddp"):
        check(small("experiment=shapes_lora", "backbone.quantize=int8", "trainer=fsdp"))


# -------------------------------------------------------------------- text encoder and VAE


@families
def test_the_text_encoder_may_be_half_as_large(family: str, folders: dict[str, Path]) -> None:
    make = FAMILIES[family].policy
    whole, half = make(folders[family]), make(folders[family], text_dtype="bfloat16")
    wanted, found = (p.embed(["a red ring"], torch.device("cpu")) for p in (whole, half))
    assert found.dtype == torch.float32
    assert not torch.equal(wanted, found) and torch.allclose(wanted, found, atol=0.1)

    def size(policy: Any) -> int:
        return sum(p.numel() * p.element_size() for p in policy._text_encoder.parameters())

    assert size(half) == size(whole) / 2


@families
def test_the_vae_may_compute_in_half_the_memory(family: str, folders: dict[str, Path]) -> None:
    make = FAMILIES[family].policy
    whole, half = make(folders[family]), make(folders[family], vae_dtype="bfloat16")
    latents = torch.randn(1, *whole.latent_shape, generator=torch.Generator().manual_seed(1))
    videos = [one.decode(latents)[0].frames for one in (whole, half)]
    assert videos[0].dtype == videos[1].dtype == torch.uint8
    difference = (videos[0].float() - videos[1].float()).abs()
    assert difference.max() > 0 and difference.mean() < 3, "other rounding, the same video"
    again = [one.encode(videos[0][None]) for one in (whole, half)]
    assert again[1].dtype == torch.float32 and not torch.equal(*again)
    assert torch.allclose(*again, atol=0.1)
    computed = [decoding_cost(one, 1).held for one in (whole, half)]
    assert 0.45 < computed[1] / computed[0] < 0.75, "the plan knows it"


class Alive(L.Callback):
    """Refuses text encoders and VAEs that live while the network trains."""

    def __init__(self, made: list[weakref.ref[nn.Module]]) -> None:
        self.made, self.steps = made, 0

    def on_train_batch_start(self, *_: Any) -> None:
        gc.collect()
        self.steps += 1
        assert not [type(one()).__name__ for one in self.made if one() is not None]


def test_text_encoder_and_vae_are_gone_while_the_network_trains(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = small(
        "round=1", "until=training", "data.optimizer_steps=1", "regularise.real=1", "data.real.n=4"
    )
    process.settle(cfg)
    parts = assembly.assemble(cfg)
    made: list[weakref.ref[nn.Module]] = []
    for name in ("text_encoder_class", "vae_class"):
        kind = getattr(type(parts.policy), name)

        def remember(*args: Any, load: Any = kind.from_pretrained, **kwargs: Any) -> nn.Module:
            part = load(*args, **kwargs)
            # with the report of its loading, where that is asked for
            made.append(weakref.ref(part[0] if isinstance(part, tuple) else part))
            return part

        monkeypatch.setattr(kind, "from_pretrained", remember)
    trainer, alive = assembly.build_trainer(cfg, parts.iteration), Alive(made)
    trainer.callbacks.append(alive)  # type: ignore[attr-defined]
    claiming.claim(parts.run, cfg)
    fit(parts, cfg, trainer)
    assert alive.steps == 1 and len(made) >= 4


# -------------------------------------------------------------------- kernels


def learnt(policy: Any, family: str) -> tuple[Tensor, dict[str, Tensor], set[str]]:
    """An answer in training mode, its gradients, and the names of the network's state."""
    network = policy.build().train()
    move(network)
    found = policy.predict(network, *question(family))
    found.float().square().mean().backward()
    grads = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    return found.detach(), grads, set(network.state_dict())


def same(one: tuple[Tensor, dict[str, Tensor], set[str]], other: Any) -> None:
    assert torch.allclose(one[0], other[0], atol=1e-5)
    assert one[1].keys() == other[1].keys() and one[2] == other[2]
    for name, grad in one[1].items():
        assert torch.allclose(grad, other[1][name], rtol=1e-3, atol=1e-6), name


@families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_kernels_of_attention_agree(
    checkpointing: bool, family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a block's forward is made again in the backward."""
    make = partial(FAMILIES[family].policy, folders[family], checkpointing=checkpointing)
    wanted = learnt(make(), family)
    same(learnt(make(attention="math"), family), wanted)
    same(learnt(make(attention="flash"), family), wanted)
    calls: list[bool] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        calls.append(torch.backends.cuda.flash_sdp_enabled())
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    learnt(make(attention="math"), family)
    assert calls and not any(calls)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_a_kernel_that_is_not_there_is_named(folders: dict[str, Path]) -> None:
    policy = tiny.policy(folders["cogvideox"], attention="cudnn")
    with pytest.raises(InputError, match=r"attention=cudnn: torch has no such kernel on cpu"):
        answer(policy, policy.build(), "cogvideox")


def test_prompts_are_sampled_one_by_one_where_kernels_are_chosen(small: Compose) -> None:
    """What torch may use is a state of the process: threads would undo each other's."""
    assert assembly.assemble(small()).iteration.parallel_prompts is None
    for setting in ("backbone.attention=math", "backbone.compile=true", "rollout.compile=true",
                    "rollout.attention=native", "rollout.draft.attention=native"):  # fmt: skip
        assert assembly.assemble(small(setting)).iteration.parallel_prompts == 1


torchs_own = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script_method.*:DeprecationWarning",
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)
"""What torch itself does when it compiles."""


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured, forward and backward, and run as they are: making machine code of them
    takes minutes (docs/memory.md has its figures). torch keeps a few graphs of a function alone."""
    torch._dynamo.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))


@torchs_own
@pytest.mark.slow
@families
@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": LORA}, {"lora": LORA, "quantize": "nf4"}],
    ids=["full", "lora", "rounded base"],
)
def test_compiled_blocks_compute_the_same(
    settings: dict[str, Any], family: str, folders: dict[str, Path], captured: None
) -> None:
    make = partial(FAMILIES[family].policy, folders[family], checkpointing=True, **settings)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    same(learnt(make(compile=True), family), learnt(make(), family))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs


@torchs_own
@pytest.mark.slow
def test_a_run_of_compiled_blocks(begun: Compose, captured: None) -> None:
    common = ("round=1", "until=training", "experiment=shapes_lora", "reference=adapter",
              "data.optimizer_steps=3")  # fmt: skip
    plain, _ = watched(begun(*common, outputs="plain"))
    compiled, _ = watched(begun(*common, "backbone.compile=true", outputs="compiled"))
    assert compiled[0] == pytest.approx((math.log(2), 0), abs=1e-4)
    assert [step[0] for step in compiled] == pytest.approx([s[0] for s in plain], rel=0.1)


# ---------------------------------------------------------------- float32's matrix products


def test_only_other_arithmetic_of_float32_is_named(compose_train: ComposeTrain) -> None:
    """The default is that of runs which were begun before the setting was there."""
    plain, tf32 = compose_train(), compose_train("float32_matmul=high")
    assert "float32_matmul" not in settings(plain) and plain.name != tf32.name
    assert settings(tf32) == {**settings(plain), "float32_matmul": "high"}
    assert arithmetic("32-true") == "32-true"
    try:
        process.settle(tf32)
        assert arithmetic("32-true") == "32-true, matmul high"
    finally:
        process.settle(plain)
    assert torch.get_float32_matmul_precision() == "highest"
