"""What the plan computes without a network is what the network then takes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import estimate as bench
from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.backbones.lora import Lora
from ipo_lightning.parallel.sharding import blocks
from ipo_lightning.planning import costs, traces
from ipo_lightning.planning.estimate import GIB, Estimate
from ipo_lightning.planning.frozen_parts import decoded
from ipo_lightning.planning.host import host_line, host_memory
from ipo_lightning.planning.job import Job
from ipo_lightning.planning.optimizers import OPTIMIZERS
from ipo_lightning.planning.published import MODELS, write_configs
from ipo_lightning.planning.traces import Traces
from ipo_lightning.planning.tracing import GpuRules, backward, weightless
from ipo_lightning.policy import Policy, Sampling
from ipo_lightning.references import AdapterReference, CachedReference, FrozenReference, Reference
from tests.helpers import tiny, tiny_wan

CPU = torch.device("cpu")
MakePolicy = Callable[..., Policy]


@pytest.fixture(params=["cogvideox", "wan"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakePolicy:
    """A tiny policy of each family, with settings of one's choice."""
    family = {"cogvideox": tiny, "wan": tiny_wan}[request.param]
    return partial(family.policy, family.save_pipeline(tmp_path / "base"))


def job(policy: Policy, reference: Reference | None = None, **changes: Any) -> Job:
    """A step on one pair, told apart by the policy's identity alone."""
    one = bench.job(policy, reference or CachedReference(), False, False, False)
    return replace(one, **changes)


# ---------------------------------------------------------------- against measurements


@pytest.mark.slow
@pytest.mark.parametrize("two_pass", [False, True], ids=["plain", "two-pass"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("family", bench.SMALL)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
def test_a_step_takes_what_was_computed(
    family: str, checkpointing: bool, two_pass: bool, tmp_path: Path
) -> None:
    settings = {"blocks": 2, "num_frames": 17, "checkpointing": checkpointing}
    policy = bench.small(family, tmp_path, **settings)
    for bf16 in (False, True):
        one = bench.job(policy, CachedReference(), two_pass, bf16, gpu=False)
        measured = bench.step(one, CPU)
        assert Traces(one).step.peak[0] == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_an_online_reference_and_an_adapter_are_counted(make: MakePolicy) -> None:
    weights = Traces(job(make())).step.weights
    assert Traces(job(make(), FrozenReference())).step.reference == weights
    lora = make(lora=Lora(rank=2, alpha=2))
    step = Traces(job(lora, AdapterReference("base"))).step
    trained = sum(p.numel() for p in lora.build().parameters() if p.requires_grad)
    assert (step.trained, step.gradients, step.reference) == (trained, 4 * trained, 0)
    kept = Traces(job(lora, AdapterReference("round_start"))).step.reference
    assert kept == step.gradients  # a copy of the adapter's weights


def test_parameters_are_those_of_the_network(make: MakePolicy) -> None:
    network = make().build()
    step = Traces(job(make())).step
    assert step.parameters == sum(p.numel() for p in network.parameters())
    held = [*network.parameters(), *network.buffers()]
    assert step.weights == pytest.approx(sum(t.nbytes for t in held), rel=0.01)


def test_operations_are_those_that_torch_counts(make: MakePolicy) -> None:
    """On the CPU torch leaves attention out, so it takes the products one by one here."""
    one = job(make())
    estimated = Traces(one).one_video.flops
    network, videos = one.policy.build().eval(), Traces(one).videos(one.policy, 1)
    filled = [bench._filled(part) for part in videos[:2]]
    one_by_one = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, one_by_one:
        one.policy.predict(network, filled[0], torch.tensor([500]), filled[1])
    assert estimated == counter.get_total_flops()


# ---------------------------------------------------------------- extrapolation


@pytest.mark.slow
def test_a_deep_network_is_told_from_shallow_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tiny.pipeline()
    settings = {**pipe.transformer.config, "num_layers": 9}
    pipe.transformer = type(pipe.transformer).from_config(settings)
    pipe.save_pretrained(tmp_path)
    for checkpointing in (False, True):
        one = job(CogVideoX(str(tmp_path), checkpointing=checkpointing))
        told = Traces(one)
        assert one.policy.blocks > traces.FEW_BLOCKS
        short = (told.step, told.sampling)
        costs._CACHE.clear()
        with monkeypatch.context() as whole:
            whole.setattr(traces, "FEW_BLOCKS", 9)
            full = Traces(one)
            assert short == (full.step, full.sampling)
        costs._CACHE.clear()


@pytest.mark.slow
def test_a_long_video_is_told_from_short_ones(tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path)
    told = Traces(job(tiny.policy(folder, num_frames=49)))
    whole = decoded(told.job.policy, 1, *told.job.policy.size)
    assert (told.decoding.held, told.decoding.flops) == pytest.approx(
        (whole[0], whole[2]), rel=0.05
    )


@pytest.mark.slow
def test_published_sizes(tmp_path: Path) -> None:
    """Of real size, with encoders whose counts are known, in seconds."""
    path = str(write_configs(MODELS["zai-org/CogVideoX-2b"], tmp_path))
    two = Estimate(job(CogVideoX(path, num_frames=49, height=480, width=720, checkpointing=True),
                       precision="bf16-mixed", gpu=True))  # fmt: skip
    found = two.traces
    assert found.step.parameters == MODELS["zai-org/CogVideoX-2b"].parameters
    assert found.one_video.flops / 1e12 == pytest.approx(120, rel=0.01)  # counted on torch's meta
    assert found.text_shape == (226, 4096)
    assert found.text.held / 4 == pytest.approx(4.76e9, rel=0.01)
    assert 25 < sum(two.while_training.values()) / GIB < 26  # weights, gradients and AdamW, by hand
    assert 8 < found.step.peak[0] / GIB < 10


# ---------------------------------------------------------------- the rules


def test_optimizers_hold_what_they_hold() -> None:
    """Torch's own, from a step of it; bitsandbytes' 8-bit one where it is installed."""
    weight = nn.Parameter(torch.randn(64, 64))
    for name in ("AdamW", "Adam", "RMSprop"):
        optimizer = getattr(torch.optim, name)([weight], lr=1e-3)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        held = [t for t in optimizer.state[weight].values() if torch.is_tensor(t) and t.ndim]
        rule = OPTIMIZERS[f"torch.optim.{name}"]
        assert sum(t.nbytes for t in held) == weight.numel() * rule.state(4)
    bitsandbytes = pytest.importorskip("bitsandbytes")
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=1e-3)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = [optimizer.state[weight][k] for k in ("state1", "state2", "absmax1", "absmax2")]
    rule = OPTIMIZERS["bitsandbytes.optim.AdamW8bit"]
    assert sum(t.nbytes for t in held) == weight.numel() * rule.state(4)


@pytest.mark.slow
def test_shards_divide_and_are_gathered(make: MakePolicy) -> None:
    alone = Estimate(job(make()))
    shared = Estimate(job(make(), devices=4, sharded=True))
    for part, size in alone.while_training.items():
        assert shared.while_training[part] == size / 4
    stage = next(stage for stage in shared.stages if stage.name == "rollout")
    assert stage.parts["gathered"] == alone.traces.step.weights
    training = next(stage for stage in shared.stages if stage.name == "training")
    assert 0 < training.parts["gathered"] < 2 * alone.traces.step.weights
    kept = Estimate(job(make(), devices=4, sharded=True, gather_to_sample=False)).stages
    rollout, step = next(stage for stage in kept if stage.name == "rollout"), alone.traces.step
    outside = step.weights - step.block * make().blocks
    assert rollout.parts["gathered"] == outside + 2 * step.block
    copies = Estimate(job(make(), devices=4))
    own = alone.while_training["gradients"]
    assert copies.while_training["gradients"] == 2 * own  # DDP's buckets, which stay
    assert (copies.resident["gradients"], alone.resident["gradients"]) == (own, 0)


@pytest.mark.slow
def test_what_a_rollout_asks(make: MakePolicy) -> None:
    """Guidance doubles the operations; shared steps save theirs; batches bound the memory."""
    plain = job(make(), sampling=Sampling(4), candidates=3)
    guided = replace(plain, sampling=Sampling(4, guidance_scale=2.0))
    shared = replace(plain, sampling=Sampling(4, shared=0.5))
    forward, video = Traces(plain).one_video.flops, 3 * Traces(plain).decoding.flops
    flops = [Estimate(one).rollout_flops(5, 3) for one in (plain, guided, shared)]
    assert flops == [5 * (n * forward + video) for n in (12, 24, 8)]
    assert Estimate(shared).evaluation_flops(5, 3, shared.sampling) == flops[0]
    batched = replace(plain, sampling=Sampling(4, batch_size=1))
    assert Traces(batched).sampling.held < Traces(plain).sampling.held
    assert (plain.videos, batched.videos) == (3, 1)


# ---------------------------------------------------------------- the tracer


def test_a_gpus_autocast_keeps_norms_in_float32() -> None:
    def norm() -> torch.dtype:
        with torch.autocast("cpu", torch.bfloat16):
            return F.layer_norm(F.linear(torch.ones(2, 4), torch.ones(4, 4)), (4,)).dtype

    assert norm() == torch.bfloat16
    with GpuRules():
        assert norm() == torch.float32


def test_what_is_freed_is_not_held() -> None:
    with weightless() as tracer:
        kept = torch.empty(1000)
        tracer.restart()
        _ = (kept * 2).sum()
        assert tracer.next_phase().held == 4000 + 4
        weight = nn.Parameter(torch.empty(8, 8))
        tracer.restart()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.linear(torch.empty(8, 8), weight).sum()
        assert tracer.next_phase().casts == 2 * 64
        backward(loss)
        assert weight.grad is not None and weight.grad.shape == (8, 8)
    assert nn.Linear(2, 2).to(torch.bfloat16).weight.dtype == torch.bfloat16  # torch is as it was


# ---------------------------------------------------------------- the host


def test_the_host_holds_an_encoder_a_checkpoint_or_a_reference(make: MakePolicy) -> None:
    alone = Estimate(job(make(), gpu=True))
    encoder = alone.traces.text.held
    assert host_memory(alone) == (0, encoder, "text encoder")
    assert "each other" not in host_line(alone, 1)
    sharded = Estimate(job(make(), gpu=True, devices=16, sharded=True))
    checkpoint = sharded.checkpoint_bytes()
    assert host_memory(sharded).leader == max(encoder, checkpoint)
    assert host_memory(sharded, sharded_checkpoints=True).leader == encoder
    assert "with 8 ranks" in host_line(sharded, 2)
    offloaded = Estimate(job(make(), FrozenReference(offload=True), gpu=True, devices=2))
    weights = offloaded.traces.step.weights
    found = host_memory(offloaded)
    assert (found.rank, found.leader) == (weights, weights + encoder)
    assert found.node(2) == 2 * weights + encoder


def test_without_gpus_the_host_holds_what_the_devices_do(make: MakePolicy) -> None:
    one = Estimate(job(make(), gpu=False, devices=2))
    assert host_memory(one).node(2) == 2 * one.fullest.total


def test_copies_for_drafts_are_counted(make: MakePolicy) -> None:
    plain = Estimate(job(make()))
    rollout = {stage.name: stage for stage in plain.stages}["rollout"]
    more = replace(job(make()), rounded=1 / 4, overlay=1000)
    drafted = {stage.name: stage for stage in Estimate(more).stages}["rollout"]
    weights = sum(p.numel() for block in blocks(make().build()) for p in block.parameters())
    assert drafted.total - rollout.total == pytest.approx(weights + 1000, rel=0.01)
