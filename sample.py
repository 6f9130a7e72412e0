"""Make videos with a policy: python sample.py ckpt=outputs/NAME prompt="..."."""

import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from conf.entry import (
    REPO,
    build,
    friendly,
    quote_free_text,
    refuse_missing,
    refuse_misspelt,
    register_resolvers,
)
from ipo_lightning.errors import InputError

if TYPE_CHECKING:
    from ipo_lightning.checkpoints import Checkpoint
    from ipo_lightning.policy import Sampling
    from ipo_lightning.video import Clip

register_resolvers()

SHIPPED = "ipo_lightning/shapes/pipeline"
TRUSTED = {
    "ipo_lightning.backbones.cogvideox.CogVideoX",
    "ipo_lightning.backbones.cogvideox.Lora",
    "ipo_lightning.backbones.wan.Wan",
    "ipo_lightning.backbones.wan.Lora",
}
"""What the config.yaml beside a checkpoint may name: a run's folder may come from anybody."""


def sample(cfg: DictConfig) -> list[Path]:
    """Write the videos that ``cfg`` asks for, and a contact sheet; the mp4 files in order."""
    refuse_missing(cfg)
    prompts = read_prompts(cfg)
    for name in ("n", "batch_size"):
        if not isinstance(cfg[name], int) or cfg[name] < 1:
            raise InputError(f"{name}={cfg[name]}: give 1 or more")
    from conf.assembly import settle
    from ipo_lightning.checkpoints import find_checkpoint
    from ipo_lightning.video import contact_sheet

    settle(cfg)
    checkpoint = find_checkpoint(str(cfg.ckpt))
    saved = OmegaConf.load(checkpoint.config) if checkpoint.config else OmegaConf.create({})
    clips, tag = generate(cfg, checkpoint, saved, prompts)  # type: ignore[arg-type]
    folder = Path(cfg.paths.outputs) / "samples"
    names = [file_name(p, cfg.seed, k, tag) for p in prompts for k in range(cfg.n)]
    files = [folder / f"{name}.mp4" for name in names]
    for file, clip in zip(files, clips, strict=True):
        write(file, clip, cfg.enlarge)
    labels = [f"{p}  #{k}" for p in prompts for k in range(cfg.n)]
    sheet = folder / f"sheet-{file_name(prompts[0], cfg.seed, 0, tag)}.png"
    contact_sheet([clip.frames for clip in clips], labels).save(sheet)
    for file in files:
        show(str(file))
    show(f"contact sheet: {sheet}")
    if cfg.get("critic"):
        show(scores(cfg, clips, [p for p in prompts for _ in range(cfg.n)], names))
    return files


def read_prompts(cfg: DictConfig) -> list[str]:
    """The prompts of ``prompt`` or ``prompts``."""
    if (cfg.prompt is None) == (cfg.prompts is None):
        raise InputError('give either prompt="..." or prompts=FILE')
    if cfg.prompt is not None:
        return [str(cfg.prompt)]
    from data.prompts import read_prompts as read

    return read(Path(cfg.prompts))


def generate(
    cfg: DictConfig, checkpoint: "Checkpoint", saved: DictConfig, prompts: Sequence[str]
) -> tuple[list["Clip"], str]:
    """The videos, prompt by prompt, and a short name of the policy that made them."""
    import torch
    from tqdm import tqdm

    from conf.assembly import device_of
    from ipo_lightning.checkpoints import load_into
    from ipo_lightning.policy import trained_weights
    from ipo_lightning.seeds import derive_seed
    from ipo_lightning.store import fingerprint_tensors

    node = backbone_of(cfg, checkpoint, saved)
    policy = build(node, "backbone")
    device, sampling = device_of(cfg), sampling_of(cfg, saved, str(node["path"]))
    network = load_into(checkpoint, policy).to(device)
    texts = policy.embed([*prompts, sampling.negative_prompt], device)
    policy.release()
    seeds = [derive_seed(cfg.seed, "sample", k) for k in range(cfg.n)]
    negative = texts[-1:] if sampling.guided else None
    jobs = [
        (i, seeds[start : start + cfg.batch_size])
        for i in range(len(prompts))
        for start in range(0, cfg.n, cfg.batch_size)
    ]
    clips: list[Clip] = []
    for i, some in tqdm(jobs, desc="sampling", unit=" batches"):
        latents = policy.sample(network, some, texts[i : i + 1], negative, sampling)
        clips.extend(policy.decode(latents))
    weights = trained_weights(network) or dict(network.named_parameters())
    return clips, fingerprint_tensors({k: torch.as_tensor(v) for k, v in weights.items()})[:6]


def backbone_of(cfg: DictConfig, checkpoint: "Checkpoint", saved: DictConfig) -> Any:
    """The backbone's settings: the run's own, else those given here."""
    node: dict[str, Any] = OmegaConf.to_container(saved.get("backbone", cfg.backbone), resolve=True)  # type: ignore[assignment]
    if "backbone" in saved and not set(targets(node)) <= TRUSTED:
        raise InputError(
            f"{checkpoint.config}: its backbone names {sorted(set(targets(node)) - TRUSTED)}, none "
            "of this project's; copy the policy folder out of the run and give backbone="
        )
    if str(node["path"]).endswith(SHIPPED):
        node["path"] = str(REPO / SHIPPED)  # a run may have been made in another clone
    if checkpoint.kind == "pipeline":
        node.update(path=checkpoint.path, revision=None, lora=None)
    if checkpoint.kind in ("lora", "transformer"):
        node.update(lora=None)  # a LoRA file brings its own rank and layers
    return node


def targets(node: Any) -> Iterator[str]:
    """Every ``_target_`` at any depth: each of them is code that Hydra would run."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def sampling_of(cfg: DictConfig, saved: DictConfig, base: str) -> "Sampling":
    """Steps and guidance: given here, else the run's, else CogVideoX's usual."""
    from ipo_lightning.policy import Sampling

    run = saved.get("rollout") or {}
    if not run and base.endswith(SHIPPED):
        run = OmegaConf.load(REPO / "conf/rollout/shapes.yaml")
    steps = run.get("steps", 50) if cfg.steps is None else cfg.steps
    guidance = run.get("guidance_scale", 6.0) if cfg.guidance_scale is None else cfg.guidance_scale
    return Sampling(int(steps), float(guidance), str(cfg.negative_prompt or ""))


def file_name(prompt: str, seed: int, k: int, tag: str) -> str:
    """A name that is safe on any file system, and another for any other video."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-") or "video"
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return f"{words}-{mark}-s{seed}-k{k}-{tag}"


def write(file: Path, clip: "Clip", enlarge: int | None) -> None:
    """An mp4 for people: tiny videos are enlarged by a whole factor."""
    from ipo_lightning.video import Clip, fitting_scale, write_video

    factor = enlarge or fitting_scale(clip.frames.shape[1], 128)
    frames = clip.frames.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    write_video(file, Clip(frames, clip.fps))


def scores(
    cfg: DictConfig, clips: Sequence["Clip"], prompts: Sequence[str], names: Sequence[str]
) -> str:
    """What the critic says of the videos, as a table."""
    from conf.assembly import device_of
    from ipo_lightning.report import table

    critic = build(cfg.critic, "critic")
    critic.load(str(device_of(cfg)))
    rows = []
    for name, rating in zip(names, critic.rate(clips, prompts), strict=True):
        score = "no verdict" if rating.score is None else f"{rating.score:.3f}"
        dims = {dim: f"{value:.2f}" for dim, value in rating.dims.items()}
        rows.append({"video": name, "score": score, **dims})
    critic.release()
    return f"\n{critic.identity}\n{table(rows, list(rows[0]))}"


def show(text: str) -> None:
    """What a person at the terminal reads."""
    print(text, flush=True)  # noqa: T201 - the entry point's own output


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    """The command line."""
    with friendly(cfg.debug):
        sample(cfg)


if __name__ == "__main__":
    sys.argv = quote_free_text(sys.argv, ("prompt", "negative_prompt"))
    with friendly("debug=true" in sys.argv):
        refuse_misspelt("sample", sys.argv[1:])
    main()
