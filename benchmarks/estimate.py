"""How good the plan's estimates are: bytes at the fullest moment, computed and measured.

python benchmarks/estimate.py                             small networks on one CPU thread: a minute
python benchmarks/estimate.py --shape 2b --device cuda    CogVideoX-2B's shape, random weights

Computed from configs alone, see `ipo_lightning.planning.traces`; measured on the same network
with random weights. Both are of what a step, a forward or a decoding holds beyond weights,
gradients and the reference. One network at a time is built and released; what does not fit by the
plan is named and left out.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import free_bytes, peak_bytes  # noqa: E402
from ipo_lightning.backbones.cogvideox import CogVideoX  # noqa: E402
from ipo_lightning.backbones.wan import Wan  # noqa: E402
from ipo_lightning.losses import dpo_loss  # noqa: E402
from ipo_lightning.module import PreferenceModule  # noqa: E402
from ipo_lightning.planning.estimate import GIB, Estimate  # noqa: E402
from ipo_lightning.planning.job import Job  # noqa: E402
from ipo_lightning.planning.published import MODELS, Published, write_configs  # noqa: E402
from ipo_lightning.planning.traces import Traces, total  # noqa: E402
from ipo_lightning.policy import Policy, Sampling  # noqa: E402
from ipo_lightning.references import CachedReference, FrozenReference, Reference  # noqa: E402

SMALL_TEXT = {
    "vocab_size": 32,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 1,
    "num_heads": 2,
}
SMALL: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    # 13 x 8 x 10 = 1040 video tokens and 32 of text, as in step.py
    "cogvideox": ("zai-org/CogVideoX-2b", {
        "transformer": {
            "num_attention_heads": 4, "time_embed_dim": 128, "text_embed_dim": 64,
            "max_text_seq_length": 32, "sample_height": 16, "sample_width": 20,
        },
        "vae": {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1,
                "norm_num_groups": 8},
        "text_encoder": SMALL_TEXT,
    }),
    "wan": ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", {
        "transformer": {"num_attention_heads": 4, "attention_head_dim": 64,
                        "ffn_dim": 768, "text_dim": 64},
        "vae": {"base_dim": 16},
        "text_encoder": SMALL_TEXT,
    }),
}  # fmt: skip
"""A published model, and what is smaller in it."""
SIZE = {"num_frames": 49, "height": 128, "width": 160}
LARGE = {"2b": "zai-org/CogVideoX-2b", "5b": "zai-org/CogVideoX-5b",
         "wan": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"}  # fmt: skip


class Row(NamedTuple):
    """A piece of work, computed and measured, in bytes."""

    work: str
    computed: int
    measured: int

    @property
    def ratio(self) -> float:
        """Computed to measured."""
        return self.computed / self.measured


def small(family: str, folder: Path, blocks: int = 6, **settings: Any) -> CogVideoX | Wan:
    """A small network of a family, made of configs in ``folder``."""
    name, changes = SMALL[family]
    parts = {part: {**own, **changes.get(part, {})} for part, own in MODELS[name].parts.items()}
    parts["transformer"]["num_layers"] = blocks
    path = str(write_configs(Published(parts, 0, 0, 4), folder))
    if family == "wan":
        return Wan(path, **{**SIZE, "text_length": 32, **settings})
    return CogVideoX(path, **{**SIZE, **settings})


def large(shape: str, folder: Path, **settings: Any) -> CogVideoX | Wan:
    """A network of a published shape."""
    path = str(write_configs(MODELS[LARGE[shape]], folder))
    if shape == "wan":
        return Wan(path, **settings)
    return CogVideoX(path, num_frames=49, height=480, width=720, **settings)


def job(
    policy: CogVideoX | Wan, reference: Reference, two_pass: bool, bf16: bool, gpu: bool
) -> Job:
    """A step on one pair."""

    def make(other: Policy) -> PreferenceModule:
        loss, adamw = partial(dpo_loss, beta=1.0), partial(torch.optim.AdamW, lr=1e-5)
        return PreferenceModule(other, loss, reference, adamw, two_pass=two_pass)

    return Job(
        policy, make, Sampling(steps=2), candidates=1, batch_size=1, accumulate=1,
        optimizer_steps=1, reference_batch=1, optimizer="torch.optim.AdamW", gpu=gpu,
        precision="bf16-mixed" if bf16 else "32-true",
        settings={"checkpointing": policy.network_settings.checkpointing, "path": policy.path},
    )  # fmt: skip


def step(one: Job, device: torch.device) -> int:
    """Bytes that a step holds at its fullest moment, measured."""
    policy = one.policy.outline()
    module = one.make(policy)
    module.configure_model()
    module.to(device)
    module.reference.attach(policy, module.network)
    module.reference.refresh(None)
    for parameter in module.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    batch = Traces(one).batch(policy, module)
    batch = batch._replace(**{
        name: _filled(value).to(device) for name, value in batch._asdict().items()
        if isinstance(value, Tensor)
    })  # fmt: skip

    def work() -> None:
        with _autocast(one, device):
            loss = total(module, batch)
        loss.backward()  # type: ignore[no-untyped-call]

    work()  # what is kept for good, such as tables of positions, is made here
    return peak_bytes(work, device)


def decoding(one: Job, device: torch.device) -> int:
    """Bytes that decoding a video holds at its fullest moment, the VAE among them, measured."""
    policy = one.policy.outline()
    latents = torch.randn(1, *policy.latent_shape, device=device)
    return peak_bytes(lambda: policy.decode(latents), device)


def rows(
    make: Callable[..., CogVideoX | Wan],
    device: torch.device,
    precisions: tuple[bool, ...],
    memory: float | None = None,
) -> Iterator[Row | str]:
    """Every way of a step, one at a time, and a decoding; of what does not fit, why.

    Args:
        memory: bytes that a piece of work may take by the plan; None: what is free there.
    """
    gpu = device.type == "cuda"
    jobs: dict[str, Job] = {}
    for bf16, checkpointing, two_pass in product(precisions, (False, True), (False, True)):
        words = ["bf16-mixed" if bf16 else "float32", "two_pass" if two_pass else "plain"]
        name = ", ".join([*words, *(["checkpointing"] if checkpointing else [])])
        policy = make(checkpointing=checkpointing)
        jobs[name] = job(policy, CachedReference(), two_pass, bf16, gpu)
    online = job(make(checkpointing=True), FrozenReference(), False, precisions[-1], gpu)
    jobs["plain, checkpointing, online reference"] = online
    for name, one in jobs.items():
        need = planned(one, "training")
        yield _lacks(name, need, device, memory) or Row(
            name, Traces(one).step.peak[0], step(one, device)
        )
        _give_back(device)
    need = float(Traces(online).decoding.held)
    yield _lacks("decoding", need, device, memory) or Row(
        "decoding", Traces(online).decoding.held, decoding(online, device)
    )


def planned(one: Job, stage: str) -> float:
    """Bytes of a stage by the plan."""
    (found,) = (part for part in Estimate(one).stages if part.name == stage)
    return found.total


def _lacks(name: str, need: float, device: torch.device, memory: float | None) -> str:
    free = memory or free_bytes(device)
    return f"{name}: {need / GIB:.1f} GiB by the plan, of {free / GIB:.1f}" if need > free else ""


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _filled(value: Tensor) -> Tensor:
    return torch.rand_like(value) if value.is_floating_point() else value


def _autocast(one: Job, device: torch.device) -> Any:
    if not one.mixed:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # as Lightning does


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["small", *LARGE], default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory-gib", type=float, help="of a step; none: what is free there")
    options = parser.parse_args()
    memory = options.memory_gib and options.memory_gib * GIB
    device = torch.device(options.device)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    kinds: dict[str, Any] = (
        {family: partial(small, family) for family in SMALL}
        if options.shape == "small"
        else {options.shape: partial(large, options.shape)}
    )
    print("| network | work | computed MiB | measured MiB | ratio |\n|---|---|---|---|---|")
    for name, make in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            for row in rows(partial(make, Path(folder)), device, (False, True), memory):
                if isinstance(row, str):
                    print(f"| {name} | left out: {row} | | | |", flush=True)
                    continue
                sizes = f"{row.computed / 2**20:.1f} | {row.measured / 2**20:.1f}"
                print(f"| {name} | {row.work} | {sizes} | {row.ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
