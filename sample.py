"""Make videos with a policy: python sample.py ckpt=outputs/NAME prompt="..."."""

import hashlib
import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import hydra
from omegaconf import DictConfig

from app.ending import ended
from app.entry import (
    build,
    friendly,
    refuse_missing,
    refuse_misspelt,
    register_resolvers,
)
from app.free_text import as_typed
from app.output import choose, end, in_json, show
from app.sample_settings import (
    arithmetic,
    backbone_of,
    batch_of,
    check_sample,
    place_of,
    processes_of,
    sampling_of,
    settings_beside,
)
from ipo_lightning.errors import InputError, readable, within
from ipo_lightning.vbench.names import check_names, video_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ipo_lightning.critics.protocols import Rating
    from ipo_lightning.hub.checkpoints import Checkpoint
    from ipo_lightning.policy import Policy, Sampling
    from ipo_lightning.video import Clip

register_resolvers()

PLAIN = "plain"
"""The naming that tells any two videos apart."""
SHEET_ROWS = 24
"""Videos on the contact sheet; the first of them, where there are more."""


class Job(NamedTuple):
    """Videos of one prompt that are denoised together: a job is done whole by one process."""

    prompt: int
    numbers: tuple[int, ...]
    """k of each video."""


class Made(NamedTuple):
    """A video that is on disk."""

    prompt: int
    k: int
    file: Path
    clip: "Clip | None"
    """Its exact pixels, for a critic; the file's are enlarged and compressed."""


class Order(NamedTuple):
    """What is asked for, settled; it goes to other processes as it is."""

    cfg: DictConfig
    checkpoint: "Checkpoint"
    backbone: dict[str, Any]
    sampling: "Sampling"
    prompts: list[str]
    names: list[str]
    """What the files of each prompt are named after."""
    jobs: list[Job]


def sample(cfg: DictConfig) -> list[Path]:
    """Write the videos that ``cfg`` asks for, and a contact sheet; the mp4 files in order."""
    refuse_missing(cfg)
    check_sample(cfg)
    choose(cfg)
    if cfg.export is not None:
        write_merged(cfg)
        if cfg.prompt is None and cfg.prompts is None:
            return []
    prompts = read_prompts(cfg)
    names = read_names(cfg, prompts)
    if cfg.naming != PLAIN:
        check_names(names, cfg.n, cfg.naming)
    critic = critic_of(cfg)
    made = sorted(shared(ordered(cfg, prompts, names)), key=lambda one: (one.prompt, one.k))
    files = [one.file for one in made]
    for one in made:
        show(str(one.file), "video", file=str(one.file), prompt=prompts[one.prompt], k=one.k)
    show(f"contact sheet: {write_sheet(made, prompts)}")
    if critic is not None:
        show(scores(cfg, critic, made, prompts))
    end(videos=len(files))
    return files


def read_prompts(cfg: DictConfig) -> list[str]:
    """The prompts of ``prompt`` or ``prompts``."""
    if (cfg.prompt is None) == (cfg.prompts is None):
        raise InputError('give either prompt="..." or prompts=FILE')
    if cfg.prompt is not None:
        return [str(cfg.prompt)]
    from data.prompts import read_prompts as read

    return read(Path(cfg.prompts))


def read_names(cfg: DictConfig, prompts: list[str]) -> list[str]:
    """The text that names the videos of each prompt: itself, or what ``names`` gives it.

    Raises:
        InputError: it gives none to a prompt, or file names are plain.
    """
    if cfg.names is None:
        return prompts
    if cfg.naming == PLAIN:
        raise InputError(f"names={cfg.names}: give naming=vbench or vbench2 as well")
    from data.prompts import read_named

    named = read_named(Path(cfg.names))
    for prompt in prompts:
        if prompt not in named:
            raise InputError(f"names={cfg.names}: it has no row of the prompt {prompt[:60]!r}")
    return [named[prompt] for prompt in prompts]


def ordered(cfg: DictConfig, prompts: list[str], names: list[str]) -> Order:
    """Everything that can be refused before the weights are loaded, and one look at a hub."""
    checkpoint, saved, node = found(cfg)
    with readable(checkpoint.config or Path(checkpoint.path)):
        policy: Policy = build(node, "backbone")
        sampling = sampling_of(cfg, saved, node)
        policy.check_sampling(sampling)
        _ = policy.latent_shape, policy.objective()  # configs that do not fit are refused here
        todo = list(jobs(len(prompts), cfg.n, batch_of(cfg, policy.size)))
    return Order(cfg, checkpoint, node, sampling, prompts, names, todo)


def found(cfg: DictConfig) -> "tuple[Checkpoint, dict[str, Any], dict[str, Any]]":
    """The checkpoint, the settings of its run, and the backbone's."""
    from app.process import settle
    from ipo_lightning.hub.checkpoints import find_checkpoint

    settle(cfg)
    checkpoint = find_checkpoint(str(cfg.ckpt))
    saved = settings_beside(checkpoint)
    return checkpoint, saved, backbone_of(cfg, checkpoint, saved)


def write_merged(cfg: DictConfig) -> None:
    """Write the checkpoint's policy as a transformer's folder, a LoRA merged into its weights.

    Raises:
        InputError: the folder is there and not empty, or cannot be written.
    """
    from ipo_lightning.hub.cards import base_of, merged_card
    from ipo_lightning.hub.checkpoints import load_into
    from ipo_lightning.storage.store import replaced_folder

    folder = Path(cfg.export)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"export={folder}: it is there and not empty; give a new folder")
    checkpoint, _, node = found(cfg)
    node["quantize"] = None if checkpoint.kind == "lora" else node.get("quantize")
    policy: Policy = build(node, "backbone")
    network = load_into(checkpoint, policy)
    with replaced_folder(folder) as temporary:
        policy.export_merged(network, temporary)
        card = merged_card(base_of(policy), Path(checkpoint.path).name, node)
        (temporary / "README.md").write_text(card)
    show(f"exported: {folder}, a transformer's folder", "export", folder=str(folder))


# -------------------------------------------------------------------- processes


def shared(order: Order) -> list[Made]:
    """All videos, made by as many processes as devices are asked for."""
    world = min(processes_of(order.cfg), len(order.jobs))
    if world == 1:
        return make(order, 0, 1)
    # Not forked: CUDA would not survive it. An error of the input is raised here as it was there.
    with ProcessPoolExecutor(world, mp_context=get_context("spawn")) as pool:
        parts = [pool.submit(make, order, rank, world) for rank in range(world)]
        try:
            return [one for part in parts for one in part.result()]
        except BrokenProcessPool as error:
            raise InputError(
                f"trainer.devices={world}: a process was killed, perhaps for its memory; what is "
                "finished is kept, the same command makes the rest"
            ) from error


def make(order: Order, rank: int, world: int) -> list[Made]:
    """One process's videos: every ``world``-th job, from the ``rank``-th on."""
    from app.process import settle
    from ipo_lightning.hub.checkpoints import load_into

    cfg = order.cfg
    settle(cfg)
    policy: Policy = build(order.backbone, "backbone")
    policy.save_memory(tiling=cfg.tiling, slicing=cfg.slicing, offload=cfg.offload)
    network = load_into(order.checkpoint, policy)
    settings = determined(cfg, order.checkpoint, policy, network, order.sampling)
    folder = Path(cfg.paths.outputs) / "samples"
    files = Files(folder, order.names, cfg.seed, settings, cfg.naming)
    files.describe(str(cfg.ckpt))
    all_made = cfg.get("critic") is not None  # a critic sees exact pixels
    made, todo = [], []
    for job in order.jobs[rank::world]:
        there = [Made(job.prompt, k, files.of(job, k), None) for k in job.numbers]
        if all_made or cfg.overwrite or not all(one.file.exists() for one in there):
            todo.append(job)
        else:
            made += there
    for job, clips in draw(order, todo, policy, network, rank) if todo else ():
        for k, clip in zip(job.numbers, clips, strict=True):
            write(files.of(job, k), clip, cfg.enlarge)
            made.append(Made(job.prompt, k, files.of(job, k), clip if all_made else None))
    return made


def jobs(prompts: int, n: int, batch: int) -> Iterator[Job]:
    """All videos, ``batch`` of a prompt at a time; the same whoever does them."""
    for prompt in range(prompts):
        for start in range(0, n, batch):
            yield Job(prompt, tuple(range(start, min(start + batch, n))))


def draw(
    order: Order, todo: Sequence[Job], policy: "Policy", network: "nn.Module", rank: int
) -> Iterator[tuple[Job, list["Clip"]]]:
    """The videos of the jobs, one job at a time."""
    import torch
    from tqdm import tqdm

    from ipo_lightning.hub.checkpoints import halve
    from ipo_lightning.seeds import derive_seed

    cfg, sampling = order.cfg, order.sampling
    device = place_of(cfg, rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wanted = [order.prompts[job.prompt] for job in todo] + [
        sampling.negative_prompt
    ] * sampling.guided
    # One by one, so that no embedding depends on the others; before the network comes to the
    # device, beside which the text encoder might not fit.
    texts = {text: policy.embed([text], device) for text in dict.fromkeys(wanted)}
    policy.release()
    negative = texts[sampling.negative_prompt] if sampling.guided else None
    if cfg.precision == "bf16":
        halve(network)
    for job in tqdm(todo, desc="sampling", unit=" batches", disable=rank > 0 or in_json(cfg)):
        network.to(device)
        seeds = [derive_seed(cfg.seed, "sample", k) for k in job.numbers]
        with torch.no_grad(), arithmetic(cfg, device):
            text = texts[order.prompts[job.prompt]]
            latents = policy.sample(network, seeds, text, negative, sampling)
            if cfg.offload:
                network.to("cpu")
            clips = policy.decode(latents)
        yield job, [clip._replace(fps=cfg.fps or clip.fps) for clip in clips]


# -------------------------------------------------------------------- files


def determined(
    cfg: DictConfig,
    checkpoint: "Checkpoint",
    policy: "Policy",
    network: "nn.Module",
    sampling: "Sampling",
) -> dict[str, Any]:
    """All that a video depends on beside its prompt and seed, as plain JSON."""
    from ipo_lightning.policy import trained_weights
    from ipo_lightning.storage.store import file_sha256, fingerprint_tensors

    weights: dict[str, Tensor] = trained_weights(network) or dict(network.named_parameters())
    whole = checkpoint.kind == "pipeline"  # its own identity says which weights it has
    scales = [
        [one.r, one.lora_alpha, one.use_rslora, one.rank_pattern, one.alpha_pattern]
        for one in getattr(network, "peft_config", {}).values()
    ]
    drawn: dict[str, Any] = {
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
    }
    if sampling.guided:
        drawn["negative_prompt"] = sampling.negative_prompt
    # A file that is named after another text does not tell its prompt: the table of names does.
    matmul = {} if cfg.float32_matmul == "highest" else {"float32_matmul": cfg.float32_matmul}
    named = {} if cfg.names is None else {"names": file_sha256(Path(cfg.names))}
    return {
        "base": policy.identity,
        "weights": None if whole else fingerprint_tensors(weights),
        "adapters": scales,
        "sampling": {**drawn, **sampling.departures},
        "precision": cfg.precision,
        "tiling": cfg.tiling,
        "fps": float(cfg.fps or policy.fps),
        "enlarge": cfg.enlarge,
        **named,
        **matmul,
    }


class Files:
    """Where videos go: names that are safe on any file system, and another for any other video;
    for benchmarks names of their own, in a folder for each policy and seed."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        seed: int,
        settings: dict[str, Any],
        naming: str = PLAIN,
    ) -> None:
        from ipo_lightning.storage.store import fingerprint

        self.folder, self.names, self.seed, self.settings = folder, names, seed, settings
        self.tag, self.naming = fingerprint(settings)[:8], naming

    def of(self, job: Job, k: int) -> Path:
        """The file of a job's video."""
        name = self.names[job.prompt]
        if self.naming == PLAIN:
            return self.folder / f"{file_name(name, self.seed, k, self.tag)}.mp4"
        folder = self.folder / f"{self.naming}-s{self.seed}-{self.tag}"
        return folder / video_name(name, k, self.naming)

    def describe(self, ckpt: str) -> None:
        """Write down what the tag in the names stands for."""
        from ipo_lightning.storage.store import write_atomically

        text = json.dumps({"ckpt": ckpt, **self.settings}, indent=1)
        write_atomically(self.folder / f"settings-{self.tag}.json", text.encode())


def file_name(prompt: str, seed: int, k: int, tag: str) -> str:
    """The beginning of a prompt, what tells it from others, the draw, and what else matters."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-") or "video"
    mark = hashlib.sha256(prompt.encode()).hexdigest()[:6]
    return f"{words}-{mark}-s{seed}-k{k}-{tag}"


def write(file: Path, clip: "Clip", enlarge: int | None) -> None:
    """An mp4 for people, whole or not at all: tiny videos are enlarged by a whole factor."""
    from ipo_lightning.video import Clip, fitting_scale, write_video

    factor = enlarge or fitting_scale(clip.frames.shape[1], 128)
    frames = clip.frames.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    write_video(file, Clip(frames, clip.fps))


def write_sheet(made: Sequence[Made], prompts: Sequence[str]) -> Path:
    """The first videos as one picture, from their files: the same whoever made them, and when."""
    from ipo_lightning.storage.store import write_atomically
    from ipo_lightning.video import contact_sheet, read_video

    shown = made[:SHEET_ROWS]
    rows = [read_video(one.file).frames for one in shown]
    labels = [f"{prompts[one.prompt]}  #{one.k}" for one in shown]
    first = shown[0].file
    buffer = io.BytesIO()
    contact_sheet(rows, labels).save(buffer, "PNG")
    # A benchmark's folder holds its videos alone: the sheet lies next to it.
    beside = first if first.parent.name == "samples" else first.parent
    sheet = beside.with_name(f"sheet-{beside.name.removesuffix('.mp4')}.png")
    write_atomically(sheet, buffer.getvalue())
    return sheet


def critic_of(cfg: DictConfig) -> Any:
    """The critic that scores the videos, or None; a wrong one is refused before they are made."""
    from ipo_lightning.critics.protocols import check_ready, kind_of

    if not cfg.get("critic"):
        return None
    critic = build(cfg.critic, "critic")
    kind = kind_of(critic)
    if kind == "recorded":
        raise InputError(f"critic={critic.identity}: it only knows recorded answers, and has none "
                         "on these videos")  # fmt: skip
    if kind == "compares" and cfg.n < 2:
        raise InputError(f"critic={critic.identity}: it compares videos of a prompt; give n=2 or "
                         "more")  # fmt: skip
    with within("critic"):
        check_ready(critic)
    return critic


def ratings_of(critic: Any, made: Sequence[Made], prompts: Sequence[str]) -> "list[Rating]":
    """A rating a video; of a critic that compares, its strength among those of its prompt."""
    from ipo_lightning.critics.protocols import Rating, kind_of
    from ipo_lightning.critics.stage.comparing import strengths

    if kind_of(critic) == "rates":
        clips = [cast("Clip", one.clip) for one in made]
        return critic.rate(clips, [prompts[one.prompt] for one in made])
    ratings = []
    for prompt, siblings in groupby(made, key=lambda one: one.prompt):
        clips = [cast("Clip", one.clip) for one in siblings]
        ratings += [Rating(value) for value in strengths(critic, clips, prompts[prompt])]
    return ratings


def scores(cfg: DictConfig, critic: Any, made: Sequence[Made], prompts: Sequence[str]) -> str:
    """What the critic says of the videos, as a table.

    Raises:
        InputError: the critic cannot be reached; the videos are there all the same.
    """
    from app.process import device_of
    from ipo_lightning.critics.protocols import CriticGone
    from ipo_lightning.report import table

    try:
        critic.load(str(device_of(cfg)))
        ratings = ratings_of(critic, made, prompts)
    except CriticGone as gone:
        raise InputError(str(gone)) from gone
    finally:
        critic.release()
    rows = []
    for one, rating in zip(made, ratings, strict=True):
        score = "no verdict" if rating.score is None else f"{rating.score:.3f}"
        dims = {dim: f"{value:.2f}" for dim, value in rating.dims.items()}
        rows.append({"video": one.file.stem, "score": score, **dims})
    return f"\n{critic.identity}\n{table(rows, list(rows[0]))}"


@hydra.main(version_base="1.3", config_path="conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    """The command line."""
    with friendly(cfg.get("debug") is True):
        sample(cfg)


if __name__ == "__main__":
    with friendly("debug=true" in sys.argv):
        sys.argv[1:] = as_typed("sample", sys.argv[1:])
        refuse_misspelt("sample", sys.argv[1:])
    with ended(sys.argv[1:]):
        main()
