"""Trains the shipped pipeline and the judge from nothing.

``python -m ipo_lightning.shapes.build --out DIR`` makes ``DIR/pipeline`` (an ordinary diffusers
folder in half precision) and ``DIR/judge.safetensors``. Every draw comes from a seeded generator
and every schedule counts steps, so the same machine makes the same files again.
"""

import argparse
import copy
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import CogVideoXDDIMScheduler
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import AutoencoderKLCogVideoX
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXTransformer3DModel
from diffusers.pipelines.cogvideo.pipeline_cogvideox import CogVideoXPipeline
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ipo_lightning.errors import InputError
from ipo_lightning.shapes import critic, world
from ipo_lightning.shapes.judge import FAULTS, STILL, ShapesClassifier
from ipo_lightning.shapes.prompts import (
    COLOURS,
    MOTIONS,
    SHAPES,
    TEMPLATES,
    combinations,
    prompts,
)

NUM_TOKENS = 12
"""Length of every prompt after padding."""
METASPACE = "\u2581"
"""What sentencepiece writes for the space before a word."""


@dataclass(frozen=True)
class Recipe:
    """The settings that made the shipped files; a test shrinks them."""

    seed: int = 0
    wrong_rate: float = 0.3
    """Share of the base's training captions with one wrong attribute."""
    defect_rate: float = 0.5
    """Share of the training clips with jitter, flicker or recolouring."""
    base_clips: int = 4096
    base_steps: int = 3000
    base_batch: int = 32
    evaluate_every: int = 750
    """Steps of the base between evaluations on the select split; 0 for none."""
    judge_clips: int = 6144
    judge_steps: int = 1500
    judge_batch: int = 64
    vae_clips: int = 4096
    vae_steps: int = 1100
    vae_batch: int = 8


def to_pixels(clips: Tensor) -> Tensor:
    """uint8 (N, T, H, W, C) -> float32 (N, C, T, H, W) in [-1, 1], what the VAE sees."""
    return clips.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_clips(pixels: Tensor) -> Tensor:
    """Float (N, C, T, H, W) in [-1, 1] -> uint8 (N, T, H, W, C)."""
    scaled = (pixels.clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 4, 1)


def cosine(step: int, num_steps: int, warm_up: int) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine down to 2 %."""
    decay = 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return min(1.0, (step + 1) / warm_up) * max(0.02, decay)


@torch.no_grad()
def average(means: nn.Module, current: nn.Module, step: int, decay: float) -> None:
    """Move an exponential moving average of the weights; early steps are forgotten faster."""
    keep = min(decay, (2 + step) / (11 + step))
    torch._foreach_lerp_(list(means.parameters()), list(current.parameters()), 1 - keep)


def make_vae() -> AutoencoderKLCogVideoX:
    """576 k parameters; 4 x in space, 4 x in time, 8 latent channels."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(16, 24, 32),
        latent_channels=8,
        layers_per_block=1,
        norm_num_groups=8,
        temporal_compression_ratio=4,
        sample_height=world.SIZE,
        sample_width=world.SIZE,
        scaling_factor=1.0,
        use_quant_conv=False,
    )


def foreground(pixels: Tensor) -> Tensor:
    """1 on the shape and one pixel around it, else 0: (N, C, T, H, W) -> (N, 1, T, H, W)."""
    darkest = pixels.amin((2, 3, 4), keepdim=True)
    shape = (pixels > darkest + 0.2).any(1, keepdim=True).float()
    return F.max_pool3d(shape, (1, 3, 3), stride=1, padding=(0, 1, 1))


def vae_loss(vae: AutoencoderKLCogVideoX, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Reconstruction of pixels and of spatial gradients, shapes weighing more than the dark."""
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        posterior = vae.encode(pixels).latent_dist
        output = vae.decode(posterior.sample(generator=generator)).sample
    error = output.float() - pixels
    weight = 1 + 4 * foreground(pixels)
    reconstruction = (weight * (0.5 * error.abs() + 2 * error.square())).mean()
    gradients = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = posterior.kl().float().mean() / posterior.mean[0].numel()
    return reconstruction + gradients + 1e-4 * divergence


def batches(
    count: int, batch: int, num_steps: int, generator: torch.Generator, title: str
) -> Iterator[tuple[int, Tensor, tqdm]]:
    """Step, row numbers drawn with replacement, and the progress bar to report losses on."""
    with tqdm(range(num_steps), desc=title, mininterval=2.0) as progress:
        for step in progress:
            yield step, torch.randint(count, (batch,), generator=generator), progress


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Scale every group's initial learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def optimise(optimizers: Sequence[torch.optim.Optimizer], module: nn.Module, loss: Tensor) -> None:
    """One step down the gradient, clipped to norm 1."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


@torch.no_grad()
def encode(vae: AutoencoderKLCogVideoX, clips: Tensor, device: str) -> Tensor:
    """uint8 (N, T, H, W, C) -> scaled latents (N, F, C, H, W), on the CPU."""
    means = [
        vae.encode(to_pixels(chunk).to(device)).latent_dist.mean.cpu() for chunk in clips.split(32)
    ]
    return torch.cat(means).transpose(1, 2) * vae.config["scaling_factor"]


@torch.no_grad()
def decode(vae: AutoencoderKLCogVideoX, latents: Tensor, device: str) -> Tensor:
    """Scaled latents (N, F, C, H, W) -> uint8 (N, T, H, W, C), on the CPU."""
    unscaled = latents.transpose(1, 2) / vae.config["scaling_factor"]
    return torch.cat(
        [to_clips(vae.decode(chunk.to(device)).sample).cpu() for chunk in unscaled.split(32)]
    )


def train_vae(recipe: Recipe, device: str) -> AutoencoderKLCogVideoX:
    """The autoencoder, on clips of the train split's combinations only."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    noise = torch.Generator(device).manual_seed(recipe.seed + 2)
    scenes, _ = world.noisy_scenes(
        combinations("train"), recipe.vae_clips, recipe.seed + 11, 0.0, recipe.defect_rate
    )
    pixels = to_pixels(world.render(scenes, recipe.seed + 11))
    vae = make_vae()
    nn.Module.to(vae, device)
    means = copy.deepcopy(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), 3e-3, betas=(0.9, 0.99), weight_decay=0)
    for step, rows, progress in batches(
        len(pixels), recipe.vae_batch, recipe.vae_steps, generator, "vae"
    ):
        set_rates([optimizer], cosine(step, recipe.vae_steps, warm_up=50))
        loss = vae_loss(vae, pixels[rows].to(device), noise)
        optimise([optimizer], vae, loss)
        average(means, vae, step, decay=0.99)
        progress.set_postfix(loss=f"{loss.item():.4f}")
    means.eval().requires_grad_(False)
    latents = encode(means, to_clips(pixels[:512]), device)
    means.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return means


def make_tokenizer() -> T5Tokenizer:
    """The real class with one token a word: what the templates and attributes are made of."""
    sentences = [*TEMPLATES, *COLOURS, *SHAPES, *MOTIONS]
    words = {w for s in sentences for w in s.split() if "{" not in w}
    entries = [(METASPACE + word, -1.0) for word in sorted(words)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (METASPACE, -20.0)]
    return T5Tokenizer(vocab=special + entries, extra_ids=0, model_max_length=NUM_TOKENS)


def make_text_encoder(num_tokens: int) -> T5EncoderModel:
    """48 k parameters; trained with the transformer, frozen ever after."""
    config = T5Config(
        vocab_size=num_tokens,
        d_model=48,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=3,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def make_transformer() -> CogVideoXTransformer3DModel:
    """943 k parameters over 8 x 8 latents, patches of 2 x 2."""
    return CogVideoXTransformer3DModel(
        num_attention_heads=6,
        attention_head_dim=16,
        in_channels=8,
        out_channels=8,
        time_embed_dim=96,
        text_embed_dim=48,
        num_layers=4,
        sample_width=world.SIZE // 4,
        sample_height=world.SIZE // 4,
        sample_frames=world.NUM_FRAMES,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=NUM_TOKENS,
        spatial_interpolation_scale=1.0,
        temporal_interpolation_scale=1.0,
        use_rotary_positional_embeddings=False,
        dropout=0.0,
    )


def make_scheduler() -> CogVideoXDDIMScheduler:
    """CogVideoX's: v prediction, zero terminal signal, trailing steps."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
    )


def make_pipeline(vae: AutoencoderKLCogVideoX) -> CogVideoXPipeline:
    """Everything but the VAE with fresh weights."""
    tokenizer = make_tokenizer()
    return CogVideoXPipeline(
        tokenizer=tokenizer,
        text_encoder=make_text_encoder(len(tokenizer)),
        vae=vae,
        transformer=make_transformer(),
        scheduler=make_scheduler(),
    )


def token_ids(tokenizer: T5Tokenizer, captions: Sequence[str]) -> Tensor:
    """(N, NUM_TOKENS) int64, padded as the pipeline pads."""
    tokens = tokenizer(
        list(captions), padding="max_length", max_length=NUM_TOKENS, return_tensors="pt"
    )
    return tokens.input_ids


def stratified(count: int, generator: torch.Generator) -> Tensor:
    """One number out of each of ``count`` equal slices of [0, 1), shuffled; rounding may give 1."""
    slices = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return slices / count


def stratified_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """One timestep out of each of ``count`` equal slices of [0, 1000), shuffled."""
    return (stratified(count, generator) * 1000).long().clamp(0, 999)


def velocity_errors(
    pipeline: CogVideoXPipeline, latents: Tensor, ids: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """(B,): mean squared error on v, which is CogVideoX's weighted x0 error."""
    scheduler = pipeline.scheduler
    prediction = pipeline.transformer(
        hidden_states=scheduler.add_noise(latents, noise, timesteps),
        encoder_hidden_states=pipeline.text_encoder(ids)[0],
        timestep=timesteps,
        return_dict=False,
    )[0]
    target = scheduler.get_velocity(latents, noise, timesteps)
    return (prediction - target).square().flatten(1).mean(1)


def make_optimizers(transformer: nn.Module, *others: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformer's blocks, AdamW for all else.

    Muon is what makes the base learn shapes within minutes; see docs/shapes.md.
    """
    named = list(transformer.named_parameters())
    inner = {n for n, p in named if p.ndim == 2 and n.partition(".")[0].endswith("blocks")}
    rest = [p for n, p in named if n not in inner]
    rest += [parameter for module in others for parameter in module.parameters()]
    matrices = [p for n, p in named if n in inner]
    return [
        torch.optim.Muon(matrices, lr=5e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01),
    ]


@torch.no_grad()
def generate(
    pipeline: CogVideoXPipeline, asked: Sequence[str], seed: int, num_steps: int = 12
) -> Tensor:
    """One clip a prompt without guidance, uint8 (N, T, H, W, C); one generator a clip."""
    pipeline.set_progress_bar_config(disable=True)
    clips = []
    for first in range(0, len(asked), 48):
        part = list(asked[first : first + 48])
        seeds = range(seed * 1_000_003 + first, seed * 1_000_003 + first + len(part))
        latents = pipeline(
            prompt=part,
            guidance_scale=1.0,
            num_inference_steps=num_steps,
            max_sequence_length=NUM_TOKENS,
            generator=[torch.Generator().manual_seed(number) for number in seeds],
            output_type="latent",
        ).frames
        clips.append(decode(pipeline.vae, latents, pipeline.device.type))
    return torch.cat(clips)


def evaluate(pipeline: CogVideoXPipeline, repeats: int = 2) -> str:
    """The rule critic's means on the select split, for the progress bar."""
    asked = prompts("select") * repeats
    dims = critic.dimensions(generate(pipeline, asked, seed=1), asked)
    named = {"score": critic.overall(dims), **dims}
    return " ".join(f"{name} {values.mean():.3f}" for name, values in named.items())


class BaseData(NamedTuple):
    """What the base learns from."""

    latents: Tensor
    """(N, F, C, H, W) float32, scaled."""
    ids: Tensor
    """(N, NUM_TOKENS) int64: captions."""
    no_prompt: Tensor
    """(1, NUM_TOKENS) int64: the empty caption."""


def base_data(recipe: Recipe, pipeline: CogVideoXPipeline, device: str) -> BaseData:
    """Careless captions and flawed clips of the train split's combinations."""
    scenes, captions = world.noisy_scenes(
        combinations("train"),
        recipe.base_clips,
        recipe.seed + 12,
        recipe.wrong_rate,
        recipe.defect_rate,
    )
    clips = world.render(scenes, recipe.seed + 12)
    return BaseData(
        encode(pipeline.vae, clips, device),
        token_ids(pipeline.tokenizer, captions),
        token_ids(pipeline.tokenizer, [""]),
    )


def base_batch(
    data: BaseData, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, token ids (one caption in ten is dropped), timesteps and noise of some rows."""
    latents = data.latents[rows]
    dropped = torch.rand(len(rows), 1, generator=generator) < 0.1
    ids = torch.where(dropped, data.no_prompt, data.ids[rows])
    timesteps = stratified_timesteps(len(rows), generator)
    return latents, ids, timesteps, torch.randn(latents.shape, generator=generator)


def train_base(recipe: Recipe, vae: AutoencoderKLCogVideoX, device: str) -> CogVideoXPipeline:
    """Text encoder and transformer together; the returned weights are the moving average."""
    torch.manual_seed(recipe.seed + 3)
    generator = torch.Generator().manual_seed(recipe.seed + 4)
    pipeline = make_pipeline(vae).to(device)
    data = base_data(recipe, pipeline, device)
    trained = nn.ModuleList([pipeline.transformer, pipeline.text_encoder]).train()
    means = copy.deepcopy(trained).eval().requires_grad_(False)
    averaged = CogVideoXPipeline(
        **{**pipeline.components, "transformer": means[0], "text_encoder": means[1]}
    )
    optimizers = make_optimizers(pipeline.transformer, pipeline.text_encoder)
    for step, rows, progress in batches(
        len(data.latents), recipe.base_batch, recipe.base_steps, generator, "base"
    ):
        set_rates(optimizers, cosine(step, recipe.base_steps, warm_up=100))
        batch = (part.to(device) for part in base_batch(data, rows, generator))
        loss = velocity_errors(pipeline, *batch).mean()
        optimise(optimizers, trained, loss)
        average(means, trained, step, decay=0.998)
        progress.set_postfix(loss=f"{loss.item():.4f}")
        if recipe.evaluate_every and (step + 1) % recipe.evaluate_every == 0:
            progress.write(f"step {step + 1}: {evaluate(averaged)}")
    return averaged


# --- The judge: graded corruptions of renders, soft targets ---------------------------------------


def judge_scenes(count: int, seed: int) -> tuple[list[world.Scene], list[world.Scene]]:
    """Scenes of all combinations with defects of any strength, and the same in another shape."""
    choice = random.Random(seed)
    every = [c for split in ("train", "select", "final") for c in combinations(split)]
    scenes, others = [], []
    for _ in range(count):
        combination = choice.choice(every)
        defect = choice.choice(world.DEFECTS) if choice.random() < 0.5 else None
        speed = choice.random() if choice.random() < 0.2 else 1.0
        scenes.append(world.Scene(combination, defect, speed, choice.uniform(0, 1.2)))
        other = world.with_wrong(combination, 1, choice)
        others.append(scenes[-1]._replace(combination=other))
    return scenes, others


def some(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Strengths (N,) in [0, 1]: uniform for a share of the clips, else exactly 0."""
    chosen = torch.rand(count, generator=generator) < share
    return torch.rand(count, generator=generator) * chosen


def morph(count: int, share: float, generator: torch.Generator) -> Tensor:
    """Weight of another shape in each frame, (N, T) in [0, 1]; it drifts as in weak generators."""
    ends = torch.rand(count, 2, generator=generator)
    chosen = torch.rand(count, 1, generator=generator) < share
    time = torch.linspace(0, 1, world.NUM_FRAMES)
    return torch.lerp(ends[:, :1], ends[:, 1:], time) * chosen


def melt(pixels: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """Pull (N, C, T, H, W) about by a smooth random field, up to some 3 px at strength 1."""
    count, _, num_frames, height, width = pixels.shape
    coarse = torch.randn(count, 2, 3, 4, 4, generator=generator)
    field = F.interpolate(coarse, (num_frames, height, width), mode="trilinear")
    field = field * strength[:, None, None, None, None] * 3 * 2 / world.SIZE
    axis = (torch.arange(world.SIZE) + 0.5) * 2 / world.SIZE - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    flow = grid + field.permute(0, 2, 3, 4, 1).flatten(0, 1)
    images = pixels.transpose(1, 2).flatten(0, 1)
    warped = F.grid_sample(images, flow, padding_mode="border", align_corners=False)
    return warped.unflatten(0, (count, num_frames)).transpose(1, 2)


def blur(pixels: Tensor, strength: Tensor) -> Tensor:
    """Lower the resolution of (N, C, T, H, W) frames, to 8 x 8 at strength 1."""
    sizes = (world.SIZE * (1 - 0.75 * strength)).round().int().tolist()
    blurred = []
    for frames, size in zip(pixels.transpose(1, 2), sizes, strict=True):
        small = F.interpolate(frames, (size, size), mode="bilinear", antialias=True)
        blurred.append(F.interpolate(small, (world.SIZE, world.SIZE), mode="bilinear"))
    return torch.stack(blurred).transpose(1, 2)


@torch.no_grad()
def wobble(
    vae: AutoencoderKLCogVideoX, pixels: Tensor, strength: Tensor, generator: torch.Generator
) -> Tensor:
    """Decode (N, C, T, H, W) from noisy latents where strength > 0: artefacts of a generator."""
    rows = strength.nonzero()[:, 0]
    latents = encode(vae, to_clips(pixels[rows]), vae.device.type)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = latents + 0.6 * strength[rows, None, None, None, None] * noise
    result = pixels.clone()
    result[rows] = to_pixels(decode(vae, noisy, vae.device.type))
    return result


def one_hot(words: Sequence[str], known: Sequence[str]) -> Tensor:
    """(N, K) float32."""
    return F.one_hot(torch.tensor([known.index(word) for word in words]), len(known)).float()


def judge_targets(
    scenes: Sequence[world.Scene],
    others: Sequence[world.Scene],
    mixture: Tensor,
    faults: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Soft targets (N, K): how much each answer is true of clips so corrupted.

    ``mixture`` (N,) is the weight of the other shape; blurred and melted shapes count less.
    """
    strength = {
        defect: torch.tensor([s.strength * (s.defect == defect) for s in scenes]).clamp(0, 1)
        for defect in world.DEFECTS
    }
    own = one_hot([s.combination.colour for s in scenes], COLOURS)
    turned = 0.5 * strength["recolour"][:, None]
    colour = own * (1 - turned) + (1 - own) * turned / (len(COLOURS) - 1)
    shape = one_hot([s.combination.shape for s in scenes], SHAPES)
    other = one_hot([s.combination.shape for s in others], SHAPES)
    mixed = torch.lerp(shape, other, mixture[:, None])
    lost = 0.6 * torch.maximum(faults["blur"], faults["melt"])
    moving = ((torch.tensor([scene.speed for scene in scenes]) - 0.1) / 0.4).clamp(0, 1)[:, None]
    motion = one_hot([scene.combination.motion for scene in scenes], MOTIONS) * moving
    return {
        "colour": colour,
        "shape": torch.lerp(mixed, torch.full_like(mixed, 1 / len(SHAPES)), lost[:, None]),
        "motion": torch.cat([motion, 1 - moving], -1),
        "faults": torch.stack([{**strength, **faults}[name] for name in FAULTS], -1),
    }


def judge_examples(
    count: int, seed: int, vae: AutoencoderKLCogVideoX
) -> tuple[Tensor, dict[str, Tensor]]:
    """Corrupted clips uint8 (N, T, H, W, C) and their soft targets."""
    generator = torch.Generator().manual_seed(seed)
    scenes, others = judge_scenes(count, seed)
    mixture = morph(count, 0.3, generator)
    strengths = {name: some(count, 0.3, generator) for name in ("blur", "melt", "wobble")}
    pixels = torch.lerp(
        to_pixels(world.render(scenes, seed)),
        to_pixels(world.render(others, seed)),
        mixture[:, None, :, None, None],
    )
    pixels = melt(pixels, strengths["melt"], generator)
    pixels = wobble(vae, blur(pixels, strengths["blur"]), strengths["wobble"], generator)
    undecided = 2 * torch.minimum(mixture, 1 - mixture).mean(1)
    melted = torch.stack([strengths["melt"], strengths["wobble"], undecided]).amax(0)
    faults = {"blur": strengths["blur"], "melt": melted}
    return to_clips(pixels), judge_targets(scenes, others, mixture.mean(1), faults)


def empty_examples(count: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Noise and flat frames: no answer is likelier than another, nothing moves, all is faulty."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, world.NUM_FRAMES, world.SIZE, world.SIZE, 3)
    flat = torch.rand(count, 1, 1, 1, 3, generator=generator) * torch.rand(
        count, 1, 1, 1, 1, generator=generator
    )
    grain = torch.rand(shape, generator=generator) * some(count, 0.7, generator).view(
        -1, 1, 1, 1, 1
    )
    targets = {
        "colour": torch.full((count, len(COLOURS)), 1 / len(COLOURS)),
        "shape": torch.full((count, len(SHAPES)), 1 / len(SHAPES)),
        "motion": F.one_hot(torch.full((count,), STILL), STILL + 1).float(),
        "faults": torch.ones(count, len(FAULTS)),
    }
    return ((flat + grain).clamp(0, 1) * 255).round().to(torch.uint8), targets


def judge_data(recipe: Recipe, vae: AutoencoderKLCogVideoX) -> tuple[Tensor, dict[str, Tensor]]:
    """The judge's training set: corrupted clips, and a few of nothing at all."""
    seed, chunk = recipe.seed + 1000, 256
    parts = [
        judge_examples(min(chunk, recipe.judge_clips - first), seed + first, vae)
        for first in range(0, recipe.judge_clips, chunk)
    ]
    parts.append(empty_examples(max(1, recipe.judge_clips // 32), seed - 1))
    clips = torch.cat([part[0] for part in parts])
    return clips, {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}


def judge_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Cross-entropies with soft targets, one a head, averaged over clips."""
    answers = [F.cross_entropy(logits[n], targets[n]) for n in ("colour", "shape", "motion")]
    graded = F.binary_cross_entropy_with_logits(logits["faults"], targets["faults"])
    return torch.stack(answers).sum() + 2 * graded


def train_judge(recipe: Recipe, vae: AutoencoderKLCogVideoX, device: str) -> ShapesClassifier:
    """The judge, on other draws of the world than the base ever saw."""
    nn.Module.to(vae, device)
    clips, targets = judge_data(recipe, vae)
    torch.manual_seed(recipe.seed + 5)
    generator = torch.Generator().manual_seed(recipe.seed + 6)
    classifier = ShapesClassifier().to(device)
    means = copy.deepcopy(classifier)
    optimizer = torch.optim.AdamW(classifier.parameters(), 2e-3, weight_decay=0.01)
    for step, rows, progress in batches(
        len(clips), recipe.judge_batch, recipe.judge_steps, generator, "judge"
    ):
        set_rates([optimizer], cosine(step, recipe.judge_steps, warm_up=50))
        pixels = clips[rows].float() / 127.5 - 1
        pixels = pixels + 0.03 * torch.randn(pixels.shape, generator=generator)
        wanted = {name: values[rows].to(device) for name, values in targets.items()}
        loss = judge_loss(classifier(pixels.to(device)), wanted)
        optimise([optimizer], classifier, loss)
        average(means, classifier, step, decay=0.99)
        progress.set_postfix(loss=f"{loss.item():.4f}")
    return means.eval().requires_grad_(False)


# --- The command ---------------------------------------------------------------------------------


def build_vae(recipe: Recipe, folder: Path, device: str) -> None:
    """``pipeline/vae`` in half precision."""
    train_vae(recipe, device).half().save_pretrained(folder / "pipeline" / "vae")


def load_vae(folder: Path) -> AutoencoderKLCogVideoX:
    """The autoencoder with the shipped weights, computing in float32."""
    path = folder / "pipeline" / "vae"
    if not path.is_dir():
        raise InputError(f"{path} does not exist; run --stage vae (or all) first")
    vae = AutoencoderKLCogVideoX.from_pretrained(path).eval().requires_grad_(False)
    vae.register_to_config(_name_or_path="")  # where it was built is no part of what is shipped
    return vae


def build_base(recipe: Recipe, folder: Path, device: str) -> None:
    """``pipeline``, the whole diffusers folder in half precision."""
    pipeline = train_base(recipe, load_vae(folder), device).to("cpu")
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.half()
    pipeline.save_pretrained(folder / "pipeline")


def build_judge(recipe: Recipe, folder: Path, device: str) -> None:
    """``judge.safetensors`` in single precision."""
    classifier = train_judge(recipe, load_vae(folder), device).to("cpu")
    save_file(classifier.state_dict(), folder / "judge.safetensors")


STAGES = {"vae": build_vae, "base": build_base, "judge": build_judge}


def build(recipe: Recipe, folder: Path, stage: str = "all", device: str = "cpu") -> None:
    """Run one stage, or all in order; a later stage reads what an earlier one wrote."""
    for name, run in STAGES.items():
        if stage in (name, "all"):
            run(recipe, folder, device)


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description="Train the embedded world's pipeline and judge.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args()
    # More threads hardly help networks this small, and one thread always sums in one order.
    torch.set_num_threads(1)
    build(Recipe(seed=options.seed), options.out, options.stage, options.device)


if __name__ == "__main__":
    main()
