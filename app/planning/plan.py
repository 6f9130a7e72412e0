"""What a run would do and take: ``python train.py dry_run=true``.

Everything is made but networks. The arithmetic is `ipo_lightning.planning.estimate`'s; here it gets
its words.
"""

import time
from collections.abc import Iterator

import torch
from omegaconf import DictConfig, OmegaConf

from app.assembly import Parts, assemble
from app.entry import degrees_of
from app.planning.critics import (
    critic_flops,
    critic_lines,
    in_gib,
    served_hours,
    unknown_critics,
)
from app.planning.fitting import Fit, smallest_change, smallest_changes
from app.planning.jobs import in_parts, job_of, on_gpu, readable
from app.planning.rollouts import flops_of_round, told, videos_of
from app.process import device_of
from ipo_lightning.critics.stage.critique import Critique
from ipo_lightning.evaluation import Evaluation
from ipo_lightning.hub.cards import started
from ipo_lightning.planning.estimate import GIB, Estimate
from ipo_lightning.planning.host import host_line
from ipo_lightning.report import table
from ipo_lightning.storage.layout import STAGES

REFERENCES = {
    "precomputed": "errors computed once before it, in batches without gradients",
    "online": "asked at each step",
    "none": "none",
}
PARTS = ("weights", "gradients", "optimizer", "reference", "gathered", "casts", "activations",
         "encoder, VAE", "critic", "update")  # fmt: skip
MP4_BYTES = {True: 0.42, False: 0.014}
"""Of a pixel and frame, lossless and for people: measured on 49 frames of 256 x 384."""


def plan(cfg: DictConfig) -> str:
    """What a run would do, as text: a row a round, what there is to make, what it would take.

    Raises:
        InputError: a setting is wrong, or the backbone's configs cannot be had.
    """
    with readable(cfg) as (settled, published):
        parts = assemble(settled)
        estimate = Estimate(job_of(settled))
        return "\n".join([
            *_work(parts, settled),
            *_network(estimate, published),
            *_groups(estimate),
            *critic_lines(estimate),
            *_memory(estimate, settled),
            host_line(estimate, settled.trainer.num_nodes, sharded_checkpoints=in_parts(settled)),
            *_hours(estimate, parts, settled),
            *_disk(estimate, parts, settled),
        ])  # fmt: skip


# -------------------------------------------------------------------- what there is to do


def _work(parts: Parts, cfg: DictConfig) -> Iterator[str]:
    rows: list[dict[str, str]] = []
    for number in range(cfg.round + 1):
        done = parts.run.done(number, parts.module.label_kind)
        row = {"round": str(number)}
        for stage in STAGES:
            made = number or stage == "evaluation"  # the base model is evaluated, nothing else
            row[stage] = ("done" if done[stage] else "to do") if made else ""
        rows.append(row)
    labels = _labels(parts)
    batch = cfg.trainer.accumulate_grad_batches * cfg.data.batch_size
    share = "device" if degrees_of(cfg).size == 1 else "group of devices"
    yield f"run {parts.run.path}: {cfg.round} rounds, {parts.module.label_kind} loss"
    yield table(rows, ["round", *STAGES])
    if begun := started(OmegaConf.to_container(cfg.backbone, resolve=True)):  # type: ignore[arg-type]
        yield f"round 1 starts from {begun}"
    yield from _imported_rounds(parts, cfg)
    yield from _candidates(parts, cfg)
    yield from _few_prompts(parts, cfg)
    yield (
        f"its training: {parts.datamodule.optimizer_steps} updates of {batch} {labels} a {share}, "
        f"{cfg.step} step; reference {REFERENCES[parts.module.reference.answers]}"
    )
    yield from _evaluation(parts, cfg)


def _candidates(parts: Parts, cfg: DictConfig) -> Iterator[str]:
    videos = _prompts(parts) * parts.rollout.n
    calls = _critic_calls(parts, cfg)
    asked = "and critic calls" if calls == videos else f"and about {calls} critic calls"
    yield (
        f"a round: {_prompts(parts)} prompts x {parts.rollout.n} candidates = {videos} videos "
        f"{asked}, {told(videos_of(parts, cfg), _prompts(parts))}"
    )
    if cfg.rollout.get("served"):
        yield (
            f"its candidates come from {cfg.rollout.served.server.base_url}: their latents are the "
            "VAE's encoding of mp4 files, not the sampler's own (docs/rollouts.md), and the hours "
            "are without them"
        )


def _evaluation(parts: Parts, cfg: DictConfig) -> Iterator[str]:
    evaluated = _evaluated(parts)
    critic, judge = (evaluated * one.score_calls for one in _critiques(parts))
    asked = (
        f"{critic} calls of each of two critics"
        if critic == judge
        else f"{evaluated}, {critic} calls of the critic and {judge} of the held-out judge"
    )
    listed = f"{len(parts.evaluation.prompts)} prompts x {cfg.evaluation.n} videos"
    if parts.choice is not None:
        listed += f" + {len(parts.choice.prompts)} x {cfg.evaluation.choice_n} of the select split"
    yield f"an evaluation: {listed} = {asked}"


def _evaluations(parts: Parts) -> list[Evaluation]:
    return [one for one in (parts.evaluation, parts.choice) if one is not None]


def _evaluated(parts: Parts) -> int:
    """Videos of a round's evaluation, those by which rounds are chosen included."""
    return sum(one.videos for one in _evaluations(parts))


def _imported_rounds(parts: Parts, cfg: DictConfig) -> Iterator[str]:
    """Which rounds train on labels from elsewhere."""
    imported = cfg.round - _rolled_out(parts, cfg)
    if imported:
        yield (
            f"rounds 1 to {imported}: the labels of {cfg.data.imported.path}, whose videos are "
            "encoded once; nothing is rolled out, no critic labels"
        )


def _few_prompts(parts: Parts, cfg: DictConfig) -> Iterator[str]:
    """Where a round has fewer prompts than it is to have."""
    if _rolled_out(parts, cfg) and (cfg.rollout.prompts or 0) > _prompts(parts):
        yield (
            f"rollout.prompts={cfg.rollout.prompts}, but the train split has no more than "
            f"{_prompts(parts)}: give more by data.prompts.path"
        )


def _rolled_out(parts: Parts, cfg: DictConfig) -> int:
    """How many rounds make videos of their own: those whose labels are not imported."""
    source = parts.imported
    if source is None:
        return int(cfg.round)
    return 0 if source.rounds is None else max(0, cfg.round - source.rounds)


def _prompts(parts: Parts) -> int:
    """Of a round."""
    return len(parts.rollout.of_round(1))


def _critic_calls(parts: Parts, cfg: DictConfig) -> int:
    """Calls of the critic that label a round: about drafts, if it judges them, and about finals."""
    counts = [one.count for one in videos_of(parts, cfg)]
    if parts.drafter is not None and parts.drafter.critique is not parts.critique:
        counts = counts[1:]
    return _prompts(parts) * sum(map(parts.evaluation.critic.calls, counts))


def _critiques(parts: Parts) -> tuple[Critique, Critique]:
    return parts.evaluation.critic, parts.evaluation.eval_critic


def _labels(parts: Parts) -> str:
    return "pairs" if parts.module.label_kind == "pairwise" else "points"


def _network(estimate: Estimate, published: str) -> Iterator[str]:
    step = estimate.traces.step
    yield f"network: {_count(step.parameters)} parameters, {_count(step.trained)} trained"
    if published:
        yield f"its configs cannot be read here: those of {published} are taken"


def _groups(estimate: Estimate) -> Iterator[str]:
    """How devices share a video's tokens, where they do."""
    job, degrees = estimate.job, estimate.job.degrees
    if degrees.size > 1:
        tokens = job.policy.tokens  # type: ignore[attr-defined]
        yield (
            f"context parallelism: {job.replicas} groups of {degrees.size} devices ({degrees}), "
            f"{tokens // degrees.size} of a video's {tokens} tokens on each, which sends "
            f"{in_gib(estimate.exchanged())} GiB in a forward of one video (computed; a backward "
            "sends as much again)"
        )


def _count(number: int) -> str:
    """1.69 billion."""
    unit, word = (1e9, "billion") if number >= 1e9 else (1e6, "million")
    return f"{number / unit:.3g} {word}"


# -------------------------------------------------------------------- memory


def _memory(estimate: Estimate, cfg: DictConfig) -> Iterator[str]:
    rows = [
        {"stage": stage.name, **{name: in_gib(size) for name, size in stage.parts.items()},
         "total": in_gib(stage.total)}
        for stage in estimate.stages
    ]  # fmt: skip
    shown = [name for name in PARTS if any(row.get(name, in_gib(0)) != in_gib(0) for row in rows)]
    for row in rows:
        row.update({name: row.get(name, "") for name in shown})
    yield "\nmemory of a device at each stage's fullest moment, GiB (computed):"
    yield table(rows, ["stage", *shown, "total"])
    fullest = estimate.fullest
    peak = f"peak: {in_gib(fullest.total)} GiB in stage {fullest.name}{unknown_critics(estimate)}"
    limit = _limit(cfg)
    if limit is None:
        yield peak
    else:
        verdict = "it fits" if fullest.total <= limit else "it does not fit"
        yield f"{peak}, of {in_gib(limit)} GiB: {verdict}"
    if limit is not None and fullest.total > limit:
        yield _way_out(cfg, limit)


def _limit(cfg: DictConfig) -> float | None:
    """Bytes that a run may take of a GPU; None where no GPU is described."""
    if not on_gpu(cfg):
        return None
    if cfg.plan.memory_gib is not None:
        return float(GIB * (cfg.plan.memory_gib - cfg.plan.reserve_gib))
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        return float(total - GIB * cfg.plan.reserve_gib)
    return None


def _way_out(cfg: DictConfig, limit: float) -> str:
    found = smallest_change(cfg, limit)
    if found is not None:
        return f"what would fit: {_shown(found)}"
    together = smallest_changes(cfg, limit)
    if together is not None:
        return f"no single change fits; together these do: {_shown(together)}"
    return "nothing that the plan knows would fit: take a smaller model, or shorter videos"


def _shown(fit: Fit) -> str:
    return f"{' '.join(change.shown for change in fit.changes)} ({in_gib(fit.bytes)} GiB)"


# -------------------------------------------------------------------- time


def _hours(estimate: Estimate, parts: Parts, cfg: DictConfig) -> Iterator[str]:
    """Hours of all rounds."""
    job, rounds = estimate.job, cfg.round
    evaluated = sum(estimate.evaluation_flops(len(one.prompts), one.n, one.sampler.sampling)
                    for one in _evaluations(parts))  # fmt: skip
    flops = {
        "rollout": (0 if cfg.rollout.get("served") else _rolled_out(parts, cfg))
        * flops_of_round(estimate, videos_of(parts, cfg), _prompts(parts)),
        "reference errors": rounds * estimate.reference_flops(),
        "training": rounds * estimate.training_flops(),
        "evaluation": (rounds + 1) * evaluated,
    }
    asked = _critic_answers(parts, cfg)
    flops |= {f"{role} at most": count for role, count in critic_flops(estimate, asked).items()}
    rate = _rate(cfg)
    speed = job.devices * rate * cfg.plan.utilisation * 3600
    hours = {name: count / speed for name, count in flops.items() if count}
    listed = ", ".join(f"{name} {_time(value)}" for name, value in hours.items())
    devices = "1 device" if job.devices == 1 else f"{job.devices} devices"
    yield (
        f"\ntime of all rounds on {devices} at {rate / 1e12:.3g} TFLOP/s x {cfg.plan.utilisation:g}"
        f" (computed): {listed}; {_time(sum(hours.values()))} in all"
    )
    yield from served_hours(estimate, asked, cfg.plan.critic_seconds)


def _rate(cfg: DictConfig) -> float:
    """Operations a second of a device's matrix products."""
    if cfg.plan.tflops is not None:
        return float(1e12 * cfg.plan.tflops)
    device = device_of(cfg)
    size = 8192 if device.type == "cuda" else 1024
    half = device.type == "cuda" and str(cfg.trainer.precision).startswith("bf16")
    square = torch.ones(size, size, device=device, dtype=torch.bfloat16 if half else None)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        (square @ square)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def _time(hours: float) -> str:
    if hours >= 0.995:
        return f"{hours:.3g} h"
    return f"{60 * hours:.2g} min"


# -------------------------------------------------------------------- disk


def _disk(estimate: Estimate, parts: Parts, cfg: DictConfig) -> Iterator[str]:
    """Bytes that all rounds leave on disk."""
    rounds, rolled_out, prompts = cfg.round, _rolled_out(parts, cfg), _prompts(parts)
    evaluations = (rounds + 1) * _evaluated(parts)
    made = sum(one.count for one in videos_of(parts, cfg))
    videos = rolled_out * prompts * made + evaluations
    frames, height, width = parts.policy.size
    held_out = sum(len(one.prompts) for one in _evaluations(parts))
    known = min(rounds * prompts, len(parts.rollout.prompts)) + held_out
    sizes = {
        "latents": 4.0 * videos * _product(parts.policy.latent_shape),
        "videos, roughly": videos * frames * height * width * MP4_BYTES[cfg.rollout.lossless],
        "text embeddings": 4.0 * known * _product(estimate.traces.text_shape),
        "checkpoints": rounds * estimate.checkpoint_bytes(),
        "exports": rounds * estimate.export_bytes(),
    }
    listed = ", ".join(f"{name} {in_gib(size)}" for name, size in sizes.items())
    yield f"disk of all rounds, GiB: {listed}; {in_gib(sum(sizes.values()))} in all"
    yield f"critic calls of all rounds: {sum(_critic_answers(parts, cfg).values())}"


def _critic_answers(parts: Parts, cfg: DictConfig) -> dict[str, int]:
    """Calls of all rounds, by who is called."""
    evaluated, (critic, judge) = _evaluated(parts), _critiques(parts)
    found = {
        role: evaluated * (cfg.round * one.score_calls + one.base_calls)
        for role, one in (("critic", critic), ("held-out judge", judge))
    }
    found["critic"] += _rolled_out(parts, cfg) * _critic_calls(parts, cfg)
    return found


def _product(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
