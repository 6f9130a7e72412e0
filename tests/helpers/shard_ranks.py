"""A start, a training step and videos on two ranks, in shards, and in one process."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from ipo_lightning.backbones.cogvideox import Lora
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.sharding import blocks, in_step, total_norm, whole
from ipo_lightning.policy import Sampling
from ipo_lightning.references import CachedReference
from tests.helpers import tiny, tiny_wan
from tests.helpers.two_pass_ranks import Step

NARROW = {"weights": "bfloat16"}
ADAPTER = {"lora": Lora(2, 2)}
STEPS: dict[str, tuple[Any, dict[str, Any]]] = {
    "wan, bfloat16": (tiny_wan, NARROW),
    "wan, bfloat16, checkpointing": (tiny_wan, {**NARROW, "checkpointing": True}),
    "cogvideox, checkpointing": (tiny, {"checkpointing": True}),
    "cogvideox, checkpointing, compiled": (tiny, {"checkpointing": True, "compile": True}),
    "wan, int8": (tiny_wan, {**ADAPTER, **NARROW, "quantize": "int8"}),
    "cogvideox, nf4, checkpointing": (tiny, {**ADAPTER, "quantize": "nf4", "checkpointing": True}),
}
"""Family and settings of a step."""


def step(folder: Path, name: str, mesh: Any = None) -> dict[str, Any]:
    """A step on the same pairs on every rank: errors, whole gradients, their norm, weights after a
    clipped update, and how often a block was called."""
    family, settings = STEPS[name]
    if settings.get("compile"):  # what inductor would do to the graphs is not at stake
        eager: Any = partial(torch.compile, backend="eager")
        nn.Module.compile = lambda self: setattr(self, "_compiled_call_impl",  # type: ignore[method-assign, assignment]
                                                 eager(self._call_impl))  # fmt: skip
    module = module_of(family.policy(folder, **settings), mesh)
    calls: list[str] = []
    first = next(iter(blocks(module.network)))
    first.register_forward_pre_hook(lambda *_: calls.append("called"))
    known = torch.tensor([0.9, 1.1])
    batch = family.pair_batch(2, seed=3)._replace(ref_win=known, ref_lose=known)
    with torch.autocast("cpu", torch.bfloat16, enabled="weights" in settings):
        total, values = module.pair_step(batch)
    total.backward()
    gradients = {n: p.grad for n, p in module.network.named_parameters() if p.grad is not None}
    found = {name: whole(one).clone() for name, one in gradients.items()}
    norm = float(total_norm([*gradients.values()]))
    torch.nn.utils.clip_grad_norm_(module.network.parameters(), norm)
    module.configure_optimizers().step()
    weights = {name: whole(one).clone() for name, one in module.trained().items()}
    return {"error": values["error_win"], "gradients": found, "norm": norm, "weights": weights,
            "calls": len(calls)}  # fmt: skip


def module_of(policy: Any, mesh: Any) -> PreferenceModule:
    """The module with its network built, in shards where there is a mesh."""
    module = PreferenceModule(policy, partial(dpo_loss, beta=20.0), CachedReference(),
                              partial(torch.optim.SGD, lr=0.5), winner_weight=0.5)  # fmt: skip
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module._device_mesh = mesh
    module.configure_model()
    return module


def videos(folder: Path, name: str, prompts: range, mesh: Any = None) -> dict[int, Tensor]:
    """Latents of a video of each prompt, by an unmoved policy."""
    family, settings = STEPS[name]
    policy = family.policy(folder, **settings)
    network = module_of(policy, mesh).network.eval()
    made = {}

    def work() -> None:
        for prompt in prompts:
            text = torch.full((1, *family.TEXT_SHAPE), 0.1 * prompt)
            made[prompt] = policy.sample(network, [prompt], text, -text, Sampling(3, 2.0))

    if mesh is None:
        work()
    else:
        with in_step(network) as pace:
            work()
            pace.wait()
            dist.barrier()
    return made


def start(folder: Path, kind: str, mesh: Any = None) -> dict[str, Tensor]:
    """The adapter that a policy starts with, in one process, under DDP or in shards; whatever the
    process has drawn before."""
    torch.manual_seed(dist.get_rank() if mesh is not None else 7)
    policy = tiny.policy(folder, lora=Lora(4, 4))
    module = module_of(policy, mesh if kind == "fsdp" else None)
    if kind == "ddp":
        DistributedDataParallel(Step(module))  # sends the first rank's weights to all
    return {name: whole(one).clone() for name, one in module.trained().items()}


def write(folders: dict[Any, Path], out: Path) -> None:
    """Write what each case comes to on two ranks, from each of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    rank = dist.get_rank()
    found: dict[str, Any] = {name: step(folder_of(name, folders), name, mesh) for name in STEPS}
    for kind in ("ddp", "fsdp"):
        found[f"start: {kind}"] = start(folders[tiny.__name__], kind, mesh)
    mine = range(0 if rank else 3)  # the second rank makes none
    for name in ("wan, bfloat16", "cogvideox, checkpointing"):
        found[f"videos: {name}"] = videos(folder_of(name, folders), name, mine, mesh)
    torch.save(found, out / f"{rank}.pt")
    dist.destroy_process_group()


def folder_of(name: str, folders: dict[Any, Path]) -> Path:
    """The pipeline of a case's family."""
    return folders[STEPS[name][0].__name__]
