"""What would make a run fit a smaller GPU: changes of its settings, by estimating again.

No table can say it: how much a change saves depends on the model, the size of the videos, the
adapter, the optimizer and the stage that is fullest. What may be changed is a table (`ALONE`).
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from app.checks import check
from app.entry import CONF, build
from app.planning.jobs import changed, devices_of, is_sharded, job_of
from ipo_lightning.errors import InputError
from ipo_lightning.losses import beyond_errors
from ipo_lightning.planning.estimate import Estimate

FORWARDS = ("training", "rollout", "reference errors")
ALONE: tuple[tuple[str, Any, Any, tuple[str, ...]], ...] = (
    ("backbone.checkpointing", False, True, ("training",)),
    ("trainer.precision", "32-true", "bf16-mixed", FORWARDS),
    ("step", "plain", "two_pass", ("training",)),
    ("backbone.vae_dtype", "float32", "bfloat16", ("VAE decoding", "real clips")),
    ("backbone.tiling", False, True, ("VAE decoding",)),
    ("backbone.text_dtype", "float32", "bfloat16", ("text embeddings",)),
)
"""Settings that are changed alone: key, what it is, what takes less memory, the stages that it
relieves."""
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


CRITICS = {"critic": ("critique", "evaluation"), "eval_critic": ("evaluation",)}
"""Critics, and the stages that they are asked in."""
LOCAL = "ipo_lightning.critics.vlm.local.LocalVLM"
KEPT = ("model", "samples", "temperature", "max_tokens", "viewing")
"""Settings that a model on a server takes over from one in this process."""


class Fit(NamedTuple):
    """Changes that were found, and what they reach."""

    changes: tuple[Change, ...]
    bytes: float


def smallest_change(cfg: DictConfig, limit: float) -> Fit | None:
    """The first single change, from the cheapest on, with which the run fits ``limit`` bytes."""
    for change, _, other in _tried(cfg, Estimate(job_of(cfg))):
        if other.fullest.total <= limit:
            return Fit((change,), other.fullest.total)
    return None


def smallest_changes(cfg: DictConfig, limit: float) -> Fit | None:
    """Changes with which together it fits: each stage in turn is relieved by the cheapest first.

    Shares of more devices come last; None where nothing here is enough.
    """
    taken: list[Change] = []
    estimate = Estimate(job_of(cfg))
    while (full := estimate.fullest.total) > limit:
        better = (one for one in _tried(cfg, estimate) if one[2].fullest.total < full)
        found = next(better, None)
        if found is None:
            return None
        change, cfg, estimate = found
        taken.append(change)
    return Fit(tuple(taken), full)


def _tried(cfg: DictConfig, estimate: Estimate) -> Iterator[tuple[Change, DictConfig, Estimate]]:
    """Each change that may lower the fullest stage, with the settings that it makes and what these
    take; not those that cannot be."""
    for change in _changes(cfg):
        if change.relieves and estimate.fullest.name not in change.relieves:
            continue
        other = changed(cfg, change.settings)
        try:
            check(other)
            found = Estimate(job_of(other))
        except InputError:
            continue
        yield change, other, found


def _changes(cfg: DictConfig) -> Iterator[Change]:
    """What may be changed, from the cheapest on; nothing that is so already."""
    if _is_online(cfg):  # exact, and it saves time as well
        node = {**_choice("reference/cached"), "of": cfg.reference.of, "batch_size": 1}
        yield Change("reference=cached reference.batch_size=1", {"reference": node})
    for key, now, less, stages in ALONE:
        if OmegaConf.select(cfg, key) == now:
            yield _one(key, less, *stages)
    yield from _batches(cfg)
    for role, stages in CRITICS.items():
        yield from _of_critic(role, cfg[role], stages)
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


def _is_online(cfg: DictConfig) -> bool:
    """Whether a second network is held that its errors could stand for."""
    target = str(cfg.reference._target_)
    online = not target.endswith((".CachedReference", ".NoReference", ".AdapterReference"))
    return online and not beyond_errors(build(cfg.loss, "loss"))


def _batches(cfg: DictConfig) -> Iterator[Change]:
    for key, stage in BATCHES.items():
        if OmegaConf.select(cfg, key, default=1) not in (1, "auto"):
            yield _one(key, 1, stage)
    if cfg.data.batch_size > 1:
        key, more = "trainer.accumulate_grad_batches", cfg.data.batch_size
        more *= cfg.trainer.accumulate_grad_batches
        shown = f"data.batch_size=1 {key}={more}"
        yield Change(shown, {"data.batch_size": 1, key: more}, ("training",))


def _of_critic(path: str, node: DictConfig, stages: tuple[str, ...]) -> Iterator[Change]:
    """What a critic's settings may be changed to, those of critics within it too."""
    if node.get("dtype") == "float32":
        yield _one(f"{path}.dtype", "bfloat16", *stages)
    if node.get("batch_size", 1) > 1:
        yield _one(f"{path}.batch_size", 1, *stages)
    if node.get("max_pixels", 0) > node.get("min_pixels", 0):
        yield _one(f"{path}.max_pixels", node.min_pixels, *stages)
    if node.get("most_frames", 0) > 4:
        least, most = min(node.least_frames, node.most_frames // 2), node.most_frames // 2
        shown = f"{path}.least_frames={least} {path}.most_frames={most}"
        settings = {f"{path}.least_frames": least, f"{path}.most_frames": most}
        yield Change(shown, settings, stages)
    if node.get("frames", 0) > 1:
        yield _one(f"{path}.frames", node.frames // 2, *stages)
    if node.get("_target_") == LOCAL:
        server = _choice("critic/vlm/openai")
        server |= {str(key): node[key] for key in KEPT}
        group = "critic/vlm" if path == "critic.vlm" else f"critic/vlm@{path}"
        shown = f"{group}=openai {path}.model={server['model']}"
        yield Change(shown, {path: server}, stages)
    for name, part in node.items():
        if isinstance(part, DictConfig) and isinstance(name, str):
            yield from _of_critic(f"{path}.{name}", part, stages)


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
    found: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    return dict(found)


def _one(key: str, value: Any, *stages: str) -> Change:
    text = str(value).lower() if isinstance(value, bool) else str(value).replace("'", "")
    return Change(f"'{key}={text}'" if " " in text else f"{key}={text}", {key: value}, stages)
