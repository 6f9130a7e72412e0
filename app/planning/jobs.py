"""From settings to what they ask of their devices, for `ipo_lightning.planning.estimate`."""

import atexit
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from omegaconf import DictConfig, ListConfig, OmegaConf

from app.assembly import make_module, make_sampling
from app.entry import build, degrees_of
from app.planning.memory import samples_from_shards, shards
from app.process import accelerator_of
from ipo_lightning.critics.stage.costs import Cost, Watched, cost_of
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.degrees import check_world
from ipo_lightning.planning.job import Job
from ipo_lightning.planning.published import MODELS, write_configs
from ipo_lightning.policy import Policy, Sampling


@contextmanager
def readable(cfg: DictConfig) -> Iterator[tuple[DictConfig, str]]:
    """The settings with a backbone whose configs can be read, and whose they are if not its own.

    A hub id that cannot be reached is planned with its published configs. Nothing that is trained
    or sampled ever takes them.
    """
    policy: Policy = build(cfg.backbone, "backbone")
    try:
        if policy.path in MODELS and not Path(policy.path).is_dir():
            _refuse_unreachable(policy.path)
        _ = policy.latent_shape
    except InputError:
        if policy.path not in MODELS:
            raise
        folder = _published(*(one for one, model in MODELS.items() if model is MODELS[policy.path]))
        yield changed(cfg, {"backbone.path": folder}), f"{policy.path} as published"
    else:
        yield cfg, ""


@cache
def _published(*paths: str) -> str:
    """A folder with the published configs of models that share them, until this process ends:
    traces are cached by its path, so that a sweep traces one network once."""
    folder = mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_configs(MODELS[paths[0]], Path(folder))
    return folder


def _refuse_unreachable(path: str) -> None:
    """Find out within seconds what else takes half a minute of attempts.

    Raises:
        InputError: the hub cannot be reached, nor are the configs in the local cache.
    """
    cached = isinstance(try_to_load_from_cache(path, "model_index.json"), str)
    if cached or (getproxies() and not HF_HUB_OFFLINE):
        return
    try:
        if HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        socket.create_connection((str(urlsplit(ENDPOINT).hostname), 443), timeout=5).close()
    except OSError as error:
        raise InputError(f"backbone.path={path}: the hub cannot be reached") from error


def changed(cfg: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """The settings with others in place, under the run's own name."""
    other = cfg.copy()
    for key, value in {"name": cfg.name, **settings}.items():  # else the name is made anew
        OmegaConf.update(other, key, value, merge=False, force_add=True)
    return other


def _most_guided(cfg: DictConfig) -> Sampling:
    """How candidates or the evaluation's videos are sampled, whichever has more guidance."""
    sampling, evaluated = make_sampling(cfg), cfg.evaluation.get("guidance_scale")
    return sampling if evaluated is None or sampling.guided else sampling.at_guidance(evaluated)


def job_of(cfg: DictConfig) -> Job:
    """What the settings ask of their devices."""
    optimizer, backbone = cfg.optim.optimizer, cfg.backbone
    check_world(degrees_of(cfg), devices_of(cfg))
    return Job(
        policy=build(backbone, "backbone"),
        make=lambda policy: make_module(cfg, policy),
        sampling=_most_guided(cfg),
        candidates=max(cfg.rollout.n, cfg.evaluation.n),
        batch_size=cfg.data.batch_size,
        accumulate=cfg.trainer.accumulate_grad_batches,
        optimizer_steps=cfg.data.optimizer_steps,
        reference_batch=cfg.reference.get("batch_size", 1),
        optimizer=str(optimizer._target_),
        settings=OmegaConf.to_container(backbone, resolve=True),  # type: ignore[arg-type]
        fused=bool(optimizer.get("fused")),
        precision=str(cfg.trainer.precision),
        devices=devices_of(cfg),
        sharded=is_sharded(cfg),
        gather_to_sample=not samples_from_shards(cfg),
        degrees=degrees_of(cfg),
        gpu=on_gpu(cfg),
        decode_batch=backbone.get("decode_batch", 1),
        critic=_cost(cfg, "critic"),
        judge=_cost(cfg, "eval_critic"),
        rounded=_rounded(cfg),
        overlay=_overlay(cfg),
        parallel_prompts=_parallel_prompts(cfg),
    )


def _cost(cfg: DictConfig, role: str) -> Cost:
    """What a critic takes of the videos that the policy makes."""
    policy: Policy = build(cfg.backbone, "backbone")
    return cost_of(build(cfg[role], role), Watched(*policy.size, policy.fps))


def _rounded(cfg: DictConfig) -> float:
    """Bytes of the copies of weights that drafts compute with, to a byte of the weights."""
    if not (cfg.rollout.get("draft") or {}).get("weights"):
        return 0.0
    return 1 / 2 if cfg.backbone.get("weights") == "bfloat16" else 1 / 4


def _overlay(cfg: DictConfig) -> int:
    """Bytes of the LoRA of drafts: float32, which files have in half of the precision."""
    file = (cfg.rollout.get("draft") or {}).get("lora")
    return 2 * os.path.getsize(file) if file and os.path.isfile(file) else 0


def on_gpu(cfg: DictConfig) -> bool:
    """Whether a GPU is planned for: one that is here, or one that ``plan`` describes."""
    described = cfg.plan.memory_gib is not None or cfg.plan.tflops is not None
    return accelerator_of(cfg) != "cpu" or (described and cfg.trainer.accelerator != "cpu")


def devices_of(cfg: DictConfig) -> int:
    """Devices on all nodes; as many as this machine has where it is left open."""
    devices = cfg.trainer.devices
    if isinstance(devices, ListConfig):
        each = len(devices)
    elif str(devices) in ("auto", "-1"):
        each = torch.cuda.device_count() or 1
    else:
        each = int(devices)
    return each * int(cfg.trainer.num_nodes)


def is_sharded(cfg: DictConfig) -> bool:
    """Whether the network is shared among several devices (FSDP2)."""
    return shards(cfg) and devices_of(cfg) > 1


def in_parts(cfg: DictConfig) -> bool:
    """Whether each rank writes its own part of a checkpoint."""
    return is_sharded(cfg) and bool(cfg.trainer.strategy.get("sharded_checkpoints"))


def _parallel_prompts(cfg: DictConfig) -> int:
    """Prompts that a process samples at the same time; see `cores_of_a_rank`."""
    if cfg.callbacks.iteration.parallel_prompts is not None:
        return int(cfg.callbacks.iteration.parallel_prompts)
    if on_gpu(cfg) or is_sharded(cfg):
        return 1
    return max(1, (os.cpu_count() or 1) // devices_of(cfg))
