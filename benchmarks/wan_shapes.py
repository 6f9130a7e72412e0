"""Fine-tune a tiny Wan on the world of shapes, and tell what it learnt.

python benchmarks/wan_shapes.py --sheet docs/images/wan_shapes.png       a few minutes on one core

Makes outputs/wan_shapes, an ordinary diffusers folder of Wan's real classes, whose transformer was
fine-tuned through the `Wan` policy as any checkpoint's would be, on clean and rightly named clips.
Neither the VAE nor the text encoder is trained: the VAE's weights are written so that it computes
principal components, their mean and deviation are measured and put in its config as in Wan's own,
and the text encoder is random: it only has to tell the words of this world apart.

Everything is measured before and after on what was not trained on: the error on clips of the select
split, and what the critic and the judge say of videos of that split's prompts, from the same noise.
"""

import argparse
import copy
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ipo_lightning.backbones.wan import Wan  # noqa: E402
from ipo_lightning.critics.protocols import PointCritic  # noqa: E402
from ipo_lightning.objectives import squared_error  # noqa: E402
from ipo_lightning.policy import Sampling  # noqa: E402
from ipo_lightning.shapes import build, world  # noqa: E402
from ipo_lightning.shapes.critic import ShapesCritic  # noqa: E402
from ipo_lightning.shapes.judge import ShapesJudge  # noqa: E402
from ipo_lightning.shapes.prompts import combinations, prompts  # noqa: E402
from ipo_lightning.video import Clip, contact_sheet, spread  # noqa: E402
from tests.helpers import tiny_wan

CPU = torch.device("cpu")
PATCH = 4
"""Pixels of height and width to a latent; a frame stays a frame."""
CHANNELS = 8
"""Of the latents, (8, 9, 8, 8)."""
LARGE = 1000.0
"""A constant beside which the components of a patch, of norm 14 at most, are small."""
TEXT_WIDTH = 48
STEPS = 10
"""Of the sampler."""
RECIPE = build.Recipe(
    wrong_rate=0.0, defect_rate=0.0, base_clips=1920, base_steps=700, base_batch=32
)
"""Clean clips and right captions: the training is short, and leaves enough to be wished for."""


# --- The pipeline --------------------------------------------------------------------------------


def training_clips(recipe: build.Recipe) -> tuple[Tensor, list[str]]:
    """Clips uint8 (N, T, H, W, C) of the train split's combinations, and their captions."""
    rates = recipe.wrong_rate, recipe.defect_rate
    seed = recipe.seed + 12
    scenes, captions = world.noisy_scenes(combinations("train"), recipe.base_clips, seed, *rates)
    return world.render(scenes, seed), captions


def principal_components(patches: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and the ``count`` leading directions (count, D) of patches (N, D)."""
    mean = patches.mean(0)
    directions = torch.linalg.eigh((patches - mean).T @ (patches - mean)).eigenvectors
    return mean, directions.T.flip(0)[:count]


def put_linear(convolution: nn.Conv3d, matrix: Tensor, bias: Tensor) -> None:
    """Make a causal convolution a matrix (out, in) and a bias (out,) on each place by itself."""
    middle = convolution.kernel_size[-1] // 2
    weight = nn.init.zeros_(convolution.weight)
    weight[: len(matrix), : matrix.shape[1], -1, middle, middle] = matrix
    nn.init.zeros_(cast(Tensor, convolution.bias))[: len(bias)] = bias


@torch.no_grad()
def write_components(vae: AutoencoderKLWan, mean: Tensor, directions: Tensor) -> None:
    """Make a VAE without resampling compute ``directions @ (patch - mean)``, and back.

    Residual branches and attention give nothing, so that what the first convolution makes arrives
    at the last activation. Each component y travels twice, as y and -y: silu(y) - silu(-y) is y.
    A constant far above them travels beside: the norm, which would forget how long a patch's
    components are, divides by it alone, but for two parts in ten thousand at most.
    """
    for parameter in vae.parameters():
        parameter.zero_()
    count = len(directions)
    same, none = torch.eye(count), torch.zeros(count)
    twice, difference = torch.cat([same, -same]), torch.cat([same, -same], 1)
    constant = torch.tensor([LARGE])
    certain = torch.full_like(none, -20.0)  # the log-variance
    offset = twice @ directions @ mean
    put_linear(vae.encoder.conv_in, twice @ directions, torch.cat([-offset, constant]))
    put_linear(vae.encoder.conv_out, difference, none)
    put_linear(vae.quant_conv, same, torch.cat([none, certain]))
    put_linear(vae.post_quant_conv, same, none)
    put_linear(vae.decoder.conv_in, twice, torch.cat([none, none, constant]))
    put_linear(vae.decoder.conv_out, directions.T @ difference, mean)
    for half in (vae.encoder, vae.decoder):
        half.norm_out.gamma.fill_(LARGE / math.sqrt(2 * count + 1))


def make_vae(clips: Tensor) -> AutoencoderKLWan:
    """The principal components of the clips' patches, 4 x smaller in height and width.

    Its config holds mean and deviation of what it makes of these clips, channel by channel.
    """
    vae = tiny_wan.autoencoder(
        base_dim=2 * CHANNELS + 1,
        z_dim=CHANNELS,
        dim_mult=[1],
        temperal_downsample=[],
        patch_size=PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        scale_factor_temporal=1,
        scale_factor_spatial=PATCH,
    )
    patches = patchify(build.to_pixels(clips), PATCH).transpose(0, 1).flatten(1).T
    write_components(vae, *principal_components(patches, CHANNELS))
    with torch.no_grad():
        means = [vae.encode(build.to_pixels(some)).latent_dist.mean for some in clips.split(64)]
    latents = torch.cat(means).transpose(0, 1).flatten(1)
    vae.register_to_config(
        latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist()
    )
    return vae.eval()


def save_pipeline(recipe: build.Recipe, clips: Tensor, folder: Path, num_layers: int = 4) -> None:
    """The diffusers folder: the VAE of these clips, random text encoder and transformer."""
    torch.manual_seed(recipe.seed + 3)
    tokenizer = build.make_tokenizer()
    transformer = tiny_wan.transformer(
        patch_size=(3, 2, 2),  # 3 x 4 x 4 tokens a video
        num_attention_heads=6,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=384,
        num_layers=num_layers,
    )
    WanPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny_wan.text_encoder(len(tokenizer), TEXT_WIDTH).eval(),
        vae=make_vae(clips[:512]),
        transformer=transformer,
        scheduler=tiny_wan.scheduler(),
    ).save_pretrained(folder)


def load_policy(folder: Path) -> Wan:
    """The folder as this framework trains it."""
    return Wan(
        str(folder),
        num_frames=world.NUM_FRAMES,
        height=world.SIZE,
        width=world.SIZE,
        fps=world.FPS,
        text_length=build.NUM_TOKENS,
        decode_batch=24,
    )


# --- Training ------------------------------------------------------------------------------------


class Captioned(NamedTuple):
    """Encoded clips and what they show."""

    latents: Tensor
    """(N, C, F, H, W) float32."""
    text: Tensor
    """(N, L, D): embedded captions."""

    @classmethod
    def encode(cls, policy: Wan, clips: Tensor, captions: Sequence[str]) -> "Captioned":
        """Of clips uint8 (N, T, H, W, C); equal captions are embedded once."""
        each = sorted(set(captions))
        text = policy.embed(each, CPU)[[each.index(caption) for caption in captions]]
        return cls(torch.cat([policy.encode(some) for some in clips.split(32)]), text)


def flow_errors(
    policy: Wan, network: nn.Module, videos: Captioned, u: Tensor, generator: torch.Generator
) -> Tensor:
    """(N,): the policy's own error at the noise levels of ``u``, (N,) in [0, 1]."""
    noise = torch.randn(videos.latents.shape, generator=generator)
    noised = policy.objective().noise(videos.latents, noise, u)
    answer = policy.predict(network, noised.sample, noised.timestep, videos.text)
    return squared_error(answer, noised)


def fine_tune(recipe: build.Recipe, policy: Wan, videos: Captioned) -> nn.Module:
    """The policy's network after supervised fine-tuning: the moving average of its weights."""
    generator = torch.Generator().manual_seed(recipe.seed + 4)
    network = policy.build().train()
    means = copy.deepcopy(network).eval()
    optimizers = build.make_optimizers(network)
    warm_up = max(1, recipe.base_steps // 14)
    for step, rows, progress in build.batches(
        len(videos.latents), recipe.base_batch, recipe.base_steps, generator, "wan"
    ):
        build.set_rates(optimizers, build.cosine(step, recipe.base_steps, warm_up))
        batch = Captioned(*(part[rows] for part in videos))
        u = build.stratified(len(rows), generator)
        loss = flow_errors(policy, network, batch, u, generator).mean()
        build.optimise(optimizers, network, loss)
        build.average(means, network, step, decay=0.99)
        progress.set_postfix(loss=f"{loss.item():.4f}")
    return means


# --- What it learnt ------------------------------------------------------------------------------


@torch.no_grad()
def held_out_error(policy: Wan, network: nn.Module, repeats: int = 8) -> float:
    """Mean error on clean clips of the select split, at the same levels and noise for everyone."""
    asked = prompts("select") * repeats
    generator = torch.Generator().manual_seed(7)
    videos = Captioned.encode(policy, world.clean_clips(asked, seed=77), asked)
    u = build.stratified(len(asked), generator)
    return flow_errors(policy, network, videos, u, generator).mean().item()


def error_without_seeing(policy: Wan, count: int = 1000) -> float:
    """The least mean error of a linear answer that looks at each latent number by itself.

    For x0 of mean 0 and variance 1 that answer is ``(2 s - 1) / (s^2 + (1 - s)^2) sample``, s the
    noise level. Well below it is who has learnt how the numbers of a video belong together.
    """
    level = policy.objective().sigma((torch.arange(count) + 0.5) / count)
    seen = (2 * level - 1).square() / (level.square() + (1 - level).square())
    return (2 - seen).mean().item()


def draw(policy: Wan, network: nn.Module, asked: Sequence[str]) -> list[Clip]:
    """One video a prompt; the k-th has the same noise whoever draws."""
    text, clips = policy.embed(asked, CPU), []
    for first in range(0, len(asked), 24):
        some = text[first : first + 24]
        seeds = range(first, first + len(some))
        clips += policy.decode(policy.sample(network, seeds, some, None, Sampling(STEPS)))
    return clips


def scores(clips: Sequence[Clip], asked: Sequence[str]) -> dict[str, float]:
    """What critic and judge say of videos, on average."""
    found = {}
    raters: dict[str, PointCritic] = {"critic": ShapesCritic(), "judge": ShapesJudge()}
    for name, rater in raters.items():
        ratings = rater.rate(clips, asked)
        found[name] = sum(float(rating.score or 0) for rating in ratings) / len(ratings)
        found[f"follow ({name})"] = sum(rating.dims["follow"] for rating in ratings) / len(ratings)
    return found


def print_table(columns: Mapping[str, Mapping[str, float]]) -> None:
    """A Markdown table: a row a figure, a column a network; what was not measured is left blank."""
    print("| | " + " | ".join(columns) + " |")
    print("|" + "---|" * (len(columns) + 1))
    for row in next(iter(columns.values())):
        cells = (f"{column[row]:.3f}" if row in column else "" for column in columns.values())
        print(f"| {row} | " + " | ".join(cells) + " |")


def draw_sheet(videos: Mapping[str, Sequence[Clip]], asked: Sequence[str], file: Path) -> None:
    """The same evenly spaced prompts in each of the sets of videos, one above the other."""
    rows = [(place, name) for place in spread(len(prompts("select")), 4) for name in videos]
    sheet = contact_sheet(
        [videos[name][place].frames for place, name in rows],
        [f"{asked[place]}: {name}" for place, name in rows],
        scale=2,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    # Noise does not compress: 256 colours, of which the rare ones are not left out.
    sheet.quantize(256, Image.Quantize.MAXCOVERAGE).save(file, optimize=True)


def show(policy: Wan, networks: Mapping[str, nn.Module], count: int, sheet: Path | None) -> None:
    """Print the figures of the networks on ``count`` videos a prompt, between their bounds."""
    asked = prompts("select") * count
    videos = {name: draw(policy, network, asked) for name, network in networks.items()}
    real = policy.decode(policy.encode(world.clean_clips(asked, seed=77)))
    columns = {
        name: {"error on held-out clips": held_out_error(policy, network)}
        | scores(videos[name], asked)
        for name, network in networks.items()
    }
    columns["linear, each number by itself"] = {
        "error on held-out clips": error_without_seeing(policy)
    }
    columns["clean clips through the VAE"] = scores(real, asked)
    print_table(columns)
    if sheet:
        draw_sheet(videos, asked, sheet)


# --- The command ---------------------------------------------------------------------------------


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/wan_shapes"))
    parser.add_argument("--sheet", type=Path, help="a picture of videos before and after")
    parser.add_argument("--steps", type=int, default=RECIPE.base_steps)
    parser.add_argument("--videos", type=int, default=4, help="of each prompt")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as the embedded run: one thread always sums in one order
    recipe = replace(RECIPE, base_steps=options.steps)
    times = [time.perf_counter()]
    clips, captions = training_clips(recipe)
    save_pipeline(recipe, clips, options.out)
    policy = load_policy(options.out)
    before = policy.build().eval()
    times.append(time.perf_counter())
    after = fine_tune(recipe, policy, Captioned.encode(policy, clips, captions))
    policy.export(after, options.out / "transformer")
    times.append(time.perf_counter())
    show(policy, {"before": before, "after": after}, options.videos, options.sheet)
    times.append(time.perf_counter())
    made, trained, shown = (end - start for start, end in pairwise(times))
    print(f"seconds: {made:.0f} to make it, {trained:.0f} to train it, {shown:.0f} to look at it")


if __name__ == "__main__":
    main()
