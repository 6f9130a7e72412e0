"""Videos, gradients and errors on two ranks that share a video's tokens, and in one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from diffusers.models import attention_dispatch
from torch import Tensor

from ipo_lightning.backbones import context
from ipo_lightning.backbones.cogvideox import Lora
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.context import ContextGroup, divide_tokens
from ipo_lightning.parallel.degrees import Degrees
from ipo_lightning.policy import Sampling
from ipo_lightning.references import FrozenReference
from tests.helpers import tiny, tiny_wan
from train import train

RING = "cogvideox, rotary, ring"
CASES: dict[str, tuple[Any, str, dict[str, Any], dict[str, Any]]] = {
    "cogvideox": (tiny, "2b", {}, {}),
    "cogvideox, rotary, checkpointing": (tiny, "5b", {"checkpointing": True}, {}),
    "cogvideox, adapter, two passes": (tiny, "5b", {"lora": Lora(2, 2)}, {"two_pass": True}),
    RING: (tiny, "5b", {"checkpointing": True}, {}),
    "wan": (tiny_wan, "", {}, {}),
    "wan, checkpointing": (tiny_wan, "", {"checkpointing": True}, {}),
    "wan, adapter": (tiny_wan, "", {"lora": Lora(2, 2)}, {}),
}
"""Family, style of its pipeline, settings of the policy and of the step."""


def save_pipelines(folder: Path) -> None:
    """The pipelines of all cases."""
    for family, style, *_ in CASES.values():
        place = folder_of(folder, family, style)
        if not place.exists():
            family.save_pipeline(place, *([style] if style else []))


def folder_of(folder: Path, family: Any, style: str) -> Path:
    """Where a case's pipeline lies."""
    return folder / f"{family.__name__}{style}"


@contextmanager
def one_device() -> Iterator[None]:
    """diffusers numbers a device that a CPU build of torch does not have."""
    count = torch.accelerator.device_count
    torch.accelerator.device_count = lambda: 1
    try:
        yield
    finally:
        torch.accelerator.device_count = count


@contextmanager
def mergeable() -> Iterator[None]:
    """An attention on the CPU that says its normalisers, as ring attention needs it."""
    kept = (attention_dispatch._native_attention_forward_op,
            attention_dispatch._native_attention_backward_op, context._use_ring)  # fmt: skip
    attention_dispatch._native_attention_forward_op = attend
    attention_dispatch._native_attention_backward_op = attend_back
    context._use_ring = lambda *_: None
    try:
        yield
    finally:
        (attention_dispatch._native_attention_forward_op,
         attention_dispatch._native_attention_backward_op, context._use_ring) = kept  # fmt: skip


def attend(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, _save_ctx: bool,
           **__: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(B, S, H, D) and the logarithms (B, S, H) of what the weights are normalised by."""
    if _save_ctx:
        ctx.save_for_backward(query, key, value)
    logits = torch.einsum("bshd,bthd->bsht", query, key) / query.shape[-1] ** 0.5
    norms = logits.logsumexp(-1)
    return torch.einsum("bsht,bthd->bshd", (logits - norms[..., None]).exp(), value), norms


def attend_back(ctx: Any, grad: Tensor, *, query: Tensor, key: Tensor, value: Tensor, out: Tensor,
                lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of some of the keys, and of the queries by them."""
    scale = query.shape[-1] ** -0.5
    logits = torch.einsum("bshd,bthd->bsht", query, key) * scale
    weights = (logits - lse[..., None]).exp()
    inner = torch.einsum("bshd,bthd->bsht", grad, value) - (grad * out).sum(-1, keepdim=True)
    slope = weights * inner * scale
    return (torch.einsum("bsht,bthd->bshd", slope, key),
            torch.einsum("bsht,bshd->bthd", slope, query),
            torch.einsum("bsht,bshd->bthd", weights, grad))  # fmt: skip


def case(folder: Path, name: str, group: ContextGroup | None = None) -> dict[str, Any]:
    """A video with guidance, and a step on a pair against a second network."""
    family, style, settings, of_step = CASES[name]
    policy = family.policy(folder_of(folder, family, style), **settings)
    module = PreferenceModule(
        policy, partial(dpo_loss, beta=20.0), FrozenReference(),
        partial(torch.optim.SGD, lr=0.5), winner_weight=0.5, **of_step,
    )  # fmt: skip
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.configure_model()
    divide_tokens(policy, module.network, group and group.mesh)
    module.reference.attach(policy, module.network)
    nudge(module.network)
    text = tiny.normal(9, 1, *family.TEXT_SHAPE)
    video = policy.sample(module.network, [3, 4], text, -text, Sampling(3, 2.0))
    errors = module.errors(family.pair_batch(2, seed=3))
    total = module.pair_step(family.pair_batch(2, seed=3))[0]
    total.backward()
    gradients = {n: p.grad.clone() for n, p in module.network.named_parameters()
                 if p.grad is not None}  # fmt: skip
    return {"video": video, "reference": errors.reference, "policy": errors.policy.detach(),
            "total": total.detach(), "gradients": gradients}  # fmt: skip


def nudge(network: torch.nn.Module) -> None:
    """Move the trained weights: an adapter that starts at zero would have half of its gradients."""
    with torch.no_grad():
        for place, weight in enumerate(p for p in network.parameters() if p.requires_grad):
            weight.add_(0.02 * tiny.normal(place, *weight.shape))


def write(folder: Path, out: Path) -> None:
    """Write what each case comes to on each rank, gradients summed over the ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    world = dist.get_world_size()
    with one_device():
        ulysses = ContextGroup(Degrees(ulysses=world), "cpu", None)
        found = {name: case(folder, name, ulysses) for name in CASES if name != RING}
        with mergeable():
            found[RING] = case(folder, RING, ContextGroup(Degrees(ring=world), "cpu", None))
    for one in found.values():
        for gradient in one["gradients"].values():
            dist.all_reduce(gradient)
    torch.save(found, out / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


def train_in_group(cfg: Any) -> None:
    """`train.train` on a rank of two that share a video's tokens."""
    with one_device():
        train(cfg)
