"""What would make a run fit a smaller GPU: single changes of the settings, by estimating again."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from app.checks import check
from app.entry import CONF, build
from app.planning.jobs import changed, devices_of, is_sharded, job_of
from ipo_lightning.errors import InputError
from ipo_lightning.losses import beyond_errors
from ipo_lightning.planning.estimate import Estimate

BATCHES = {
    "reference.batch_size": "reference errors",
    "rollout.batch_size": "rollout",
    "backbone.decode_batch": "VAE decoding",
}
"""Batches that may be of one, and the stages that they fill."""
SHARDS = (2, 4, 8, 16, 32, 64)
"""Numbers of devices that are tried."""


class Change(NamedTuple):
    """Settings that take less memory."""

    shown: str
    """What a person gives on the command line."""
    settings: Mapping[str, Any]
    """The same by key, with groups spelt out."""
    relieves: tuple[str, ...] = ()
    """Stages whose memory it lowers; none named: every stage's."""


class Fit(NamedTuple):
    """Changes that were found, and what they reach."""

    changes: tuple[Change, ...]
    bytes: float


def smallest_change(cfg: DictConfig, limit: float) -> Fit | None:
    """The first single change, from the cheapest on, with which the run fits ``limit`` bytes."""
    for change in _relief(cfg, Estimate(job_of(cfg))):
        tried = _try(cfg, change)
        if tried is not None and tried[1].fullest.total <= limit:
            return Fit((change,), tried[1].fullest.total)
    return None


def smallest_changes(cfg: DictConfig, limit: float) -> Fit | None:
    """Changes with which together it fits: each stage in turn is relieved by the cheapest first.

    Shares of more devices come last; None where nothing here is enough.
    """
    taken: list[Change] = []
    estimate = Estimate(job_of(cfg))
    while estimate.fullest.total > limit:
        better = _next(cfg, estimate)
        if better is None:
            return None
        change, cfg, estimate = better
        taken.append(change)
    return Fit(tuple(taken), estimate.fullest.total)


def _next(cfg: DictConfig, estimate: Estimate) -> tuple[Change, DictConfig, Estimate] | None:
    """The cheapest change that lowers the fullest stage at all."""
    for change in _relief(cfg, estimate):
        tried = _try(cfg, change)
        if tried is not None and tried[1].fullest.total < estimate.fullest.total:
            return change, *tried
    return None


def _relief(cfg: DictConfig, estimate: Estimate) -> Iterator[Change]:
    """Changes that are open, and that lower the fullest stage."""
    stage = estimate.fullest.name
    return (change for change in _changes(cfg) if not change.relieves or stage in change.relieves)


def _try(cfg: DictConfig, change: Change) -> tuple[DictConfig, Estimate] | None:
    """The settings with a change, and their estimate; None where they cannot be."""
    other = changed(cfg, change.settings)
    try:
        check(other)
        return other, Estimate(job_of(other))
    except InputError:
        return None


def _changes(cfg: DictConfig) -> Iterator[Change]:
    """What may be changed, from the cheapest on; nothing that is so already."""
    yield from _switches(cfg)
    yield from _batches(cfg)
    if str(cfg.optim.optimizer._target_).startswith("torch.optim.Adam") and not is_sharded(cfg):
        node = {**_choice("optim/adamw8bit")["optimizer"], "lr": cfg.optim.optimizer.lr}
        yield Change(
            f"optim=adamw8bit optim.optimizer.lr={node['lr']:g}", {"optim.optimizer": node}
        )
    if cfg.backbone.get("lora") is None:
        target = str(cfg.backbone._target_).rpartition(".")[0] + ".Lora"
        yield _one("backbone.lora", {"_target_": target, "rank": 64, "alpha": 64})
    elif cfg.backbone.get("quantize", "") is None:
        yield _one("backbone.quantize", "nf4")
    yield from _shards(cfg)


def _switches(cfg: DictConfig) -> Iterator[Change]:
    if cfg.backbone.get("checkpointing") is False:
        yield _one("backbone.checkpointing", True, "training")
    if str(cfg.trainer.precision) == "32-true":
        yield _one("trainer.precision", "bf16-mixed", "training", "rollout", "reference errors")
    if cfg.step == "plain":
        yield _one("step", "two_pass", "training")
    if _is_online(cfg):
        node = {**_choice("reference/cached"), "of": cfg.reference.of, "batch_size": 1}
        yield Change("reference=cached reference.batch_size=1", {"reference": node})
    if cfg.backbone.get("tiling") is False:
        yield _one("backbone.tiling", True, "VAE decoding")
    if cfg.backbone.get("text_dtype") == "float32":
        yield _one("backbone.text_dtype", "bfloat16", "text embeddings")


def _is_online(cfg: DictConfig) -> bool:
    """Whether a second network is held that its errors could stand for."""
    target = str(cfg.reference._target_)
    live = not target.endswith((".CachedReference", ".NoReference", ".AdapterReference"))
    return live and not beyond_errors(build(cfg.loss, "loss"))


def _batches(cfg: DictConfig) -> Iterator[Change]:
    for key, stage in BATCHES.items():
        if OmegaConf.select(cfg, key, default=1) not in (1, "auto"):
            yield _one(key, 1, stage)
    if cfg.data.batch_size > 1:
        key, more = "trainer.accumulate_grad_batches", cfg.data.batch_size
        more *= cfg.trainer.accumulate_grad_batches
        shown = f"data.batch_size=1 {key}={more}"
        yield Change(shown, {"data.batch_size": 1, key: more}, ("training",))


def _shards(cfg: DictConfig) -> Iterator[Change]:
    now = devices_of(cfg)
    for count in SHARDS:
        if count > now or (count == now and not is_sharded(cfg)):
            settings = {
                "trainer.strategy": _choice("trainer/fsdp")["strategy"],
                "trainer.devices": count,
                "trainer.num_nodes": 1,
            }
            yield Change(f"trainer=fsdp trainer.devices={count}", settings)


def _choice(name: str) -> dict[str, Any]:
    """A group's choice, as it lies on disk."""
    return dict(OmegaConf.load(CONF / f"{name}.yaml"))


def _one(key: str, value: Any, *stages: str) -> Change:
    text = str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")
    return Change(f"'{key}={text}'" if " " in text else f"{key}={text}", {key: value}, stages)
