"""The GPU path of every shipped backbone at its real shape, on fake CUDA, against what is planned.

Networks have one block of those that are alike; a deep one checks the extrapolation. ``make
device`` runs this: a process that loads it has a CUDA guard for good.
"""

import shutil
from collections.abc import Callable

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from torch import Tensor

from ipo_lightning.planning.published import MODELS
from ipo_lightning.planning.traces import FEW_BLOCKS, Traces
from tests.devices import gpu_work
from tests.devices.fake_cuda import Refused, fake_cuda, load, mixed
from tests.devices.gpu_work import BACKBONES, CUDA, Took, apart, job, published, shortened
from tests.devices.runs import FAULTS, PLACES, replaced

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the guard is compiled by g++"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a guard of its own"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]
GIB = 2**30
NETWORKS = apart("transformer", "vae")
LORA = "backbone.lora={_target_:ipo_lightning.backbones.cogvideox.Lora,rank:64,alpha:64}"
STEPS = {
    "pairs, cached, all weights, plain, real clips": ("regularise.real=5",),
    "pairs, frozen, bf16 weights, two_pass": (
        "reference=frozen", "backbone.weights=bfloat16", "optim=adamw_bf16", "step=two_pass"),
    "points, ema, all weights, two_pass": (
        "loss=kto", "reference=ema", "data.batch_size=2", "step=two_pass"),
    "pairs, none, LoRA, two_pass": (
        "loss=simpo", "reference=none", LORA, "step=two_pass"),
    "points, adapter, LoRA on int8, plain": (
        "loss=kto", "reference=adapter", LORA, "backbone.quantize=int8"),
}  # fmt: skip
"""Every form of labels, reference, kind of weights and step, each at least once."""
LARGE = ("cogvideox1.5_5b", "wan_14b")
"""Backbones of the classes of smaller ones: these take the two steps that change most."""
TAKEN = [
    (backbone, settings)
    for backbone in NETWORKS
    for settings in STEPS
    if backbone not in LARGE or "bf16" in settings or "int8" in settings
]


@pytest.fixture(scope="module", autouse=True)
def guard(tmp_path_factory: pytest.TempPathFactory) -> None:
    """CUDA's device guard."""
    load(tmp_path_factory.mktemp("guard"))


def test_every_shipped_backbone_has_a_published_shape() -> None:
    assert all(published(backbone) in MODELS for backbone in BACKBONES)
    known = [[MODELS[published(one)].parts["transformer"] for one in some] for some in
             (BACKBONES, NETWORKS)]  # fmt: skip
    assert all(one in known[1] for one in known[0])


# ---------------------------------------------------------------- as planned


@pytest.mark.parametrize(("backbone", "settings"), TAKEN)
def test_a_training_step(backbone: str, settings: str) -> None:
    one = job(backbone, *STEPS[settings])
    took, plan = gpu_work.step(one), Traces(one).step
    planned = (plan.weights, plan.reference, plan.gradients, plan.peak[0])
    assert took[:4] == pytest.approx(planned, rel=1e-3, abs=2**20)
    assert took.flops == plan.flops


def test_a_training_step_of_many_blocks_is_told_from_few() -> None:
    blocks = FEW_BLOCKS + 1
    one = job("cogvideox_2b", LORA, blocks=blocks)
    took, plan = gpu_work.step(one), Traces(one).step
    assert took[:4] == pytest.approx((plan.weights, 0, plan.gradients, plan.peak[0]), rel=1e-2)
    assert took.flops == plan.flops


@pytest.mark.parametrize("backbone", NETWORKS)
def test_a_guided_rollout(backbone: str) -> None:
    one = shortened(job(backbone), videos=2, steps=3)
    took, plan = gpu_work.rollout(one), Traces(one)
    assert one.sampling.guided
    assert took.peak == pytest.approx(plan.sampling.held, rel=0.05)
    assert took.flops == one.sampling.evaluations(2) * plan.one_video.flops


@pytest.mark.parametrize("backbone", NETWORKS)
def test_an_evaluations_error_on_real_clips(backbone: str) -> None:
    """The plan has no stage of it: it is never the fullest."""
    shorter = ["backbone.num_frames=17"] if backbone.startswith("wan") else []
    one = shortened(job(backbone, *shorter), videos=2, steps=3)
    took, plan = gpu_work.real_error(one), Traces(one)
    assert took.peak <= 1.001 * max(plan.encoding.held, plan.sampling.held)
    assert took.flops == plan.encoding.flops + plan.one_video.flops


DECODINGS = [
    (backbone, way)
    for backbone in apart("vae")
    for way in ("plain", "bfloat16", "tiled")
    if (backbone, way) != ("cogvideox1.5_5b", "tiled")  # more tiles of 2B's, for 13 seconds
]


@pytest.mark.parametrize(("backbone", "way"), DECODINGS)
def test_a_decoding(backbone: str, way: str) -> None:
    settings = {"plain": "num_frames=17", "bfloat16": "vae_dtype=bfloat16", "tiled": "tiling=true"}
    frames = 5 if backbone.startswith("wan") else 9
    shorter = [f"backbone.num_frames={frames}"] if way != "plain" else []
    one = job(backbone, f"backbone.{settings[way]}", *shorter)
    took, plan = gpu_work.decode(one), Traces(one).decoding
    memory, operations = (0.06, 0.15) if way == "tiled" else (1e-3, 0)  # tiles are told from one
    assert took.peak == pytest.approx(plan.held, rel=memory)
    assert took.flops == pytest.approx(plan.flops, rel=operations)


@pytest.mark.parametrize("backbone", apart("vae"))
def test_an_encoding(backbone: str) -> None:
    one = job(backbone, "backbone.num_frames=17")
    took, plan = gpu_work.encode(one), Traces(one).encoding
    assert took.peak == pytest.approx(plan.held, rel=5e-3)
    assert took.flops == plan.flops


@pytest.mark.parametrize("backbone", apart("text_encoder"))
def test_a_text_encoder(backbone: str) -> None:
    one = job(backbone)
    took, plan = gpu_work.embed(one), Traces(one).text
    assert took.weights + took.peak == pytest.approx(plan.held, rel=1e-3)
    assert took.flops == plan.flops


# ---------------------------------------------------------------- as strict as a GPU

WORK: dict[str, Callable[..., Took]] = {
    "step": gpu_work.step, "rollout": gpu_work.rollout, "evaluation": gpu_work.real_error,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_is_refused(place: str, fault: str) -> None:
    forward = CogVideoXTransformer3DModel.forward

    def faulty(self: object, hidden_states: Tensor, *rest: object, **more: object) -> object:
        return forward(self, FAULTS[fault](hidden_states), *rest, **more)

    one = shortened(job("cogvideox_2b"), videos=1, steps=2)
    with (
        replaced(CogVideoXTransformer3DModel, "forward", faulty),
        pytest.raises((Refused, RuntimeError), match="same device|generator of cpu|float64"),
    ):
        WORK[place](one)


def test_autocast_has_the_rules_of_a_gpu() -> None:
    with fake_cuda() as watch, mixed():
        x = torch.ones(2, 1024, device=CUDA)
        watch.restart()
        product = x @ x.T
        assert (product.dtype, product.softmax(0).dtype) == (torch.bfloat16, torch.float32)
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2, 1024)
        with pytest.raises(Refused, match="float64"):
            x.double()
        with pytest.raises(Refused, match="generator of cpu"):
            torch.randn(2, device=CUDA, generator=torch.Generator())
        assert (x * torch.tensor(2.0)).device == CUDA  # as on a GPU, a scalar may lie elsewhere
