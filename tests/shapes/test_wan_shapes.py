"""The Wan family learns: a tiny Wan on the embedded world, by a few steps of the benchmark."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from torch import nn

from benchmarks import wan_shapes
from ipo_lightning.backbones.wan import Wan
from ipo_lightning.seeds import gaussian
from ipo_lightning.shapes import build, world
from ipo_lightning.shapes.prompts import prompts

FEW = replace(wan_shapes.RECIPE, base_clips=60, base_steps=100, base_batch=16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The diffusers folder before training."""
    path = tmp_path_factory.mktemp("wan") / "shapes"
    clips, _ = wan_shapes.training_clips(FEW)
    wan_shapes.save_pipeline(FEW, clips, path, num_layers=2)
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> Wan:
    return wan_shapes.load_policy(folder)


@pytest.fixture(scope="module")
def tuned(policy: Wan) -> nn.Module:
    clips, captions = wan_shapes.training_clips(FEW)
    return wan_shapes.fine_tune(FEW, policy, wan_shapes.Captioned.encode(policy, clips, captions))


def test_the_written_vae_shows_its_clips(policy: Wan) -> None:
    asked = prompts("select")
    clips = world.clean_clips(asked, seed=5)
    latents = policy.encode(clips)
    assert latents.shape[1:] == policy.latent_shape == (wan_shapes.CHANNELS, 9, 8, 8)
    again = torch.stack([clip.frames for clip in policy.decode(latents)])
    error = (build.to_pixels(again) - build.to_pixels(clips)).square().mean()
    contrast = build.to_pixels(clips).var()
    assert error < 0.1 * contrast
    assert wan_shapes.scores(policy.decode(latents), asked)["follow (critic)"] == 1


def test_its_latents_have_mean_zero_and_deviation_one(policy: Wan) -> None:
    """As the config says of channels that lie far apart; normalising twice or not at all shows."""
    clips, _ = wan_shapes.training_clips(FEW)
    channels = policy.encode(clips).transpose(0, 1).flatten(1)
    assert channels.mean(1).abs().max() < 1e-3
    assert (channels.std(1) - 1).abs().max() < 1e-3
    spread = policy._vae_config["latents_std"]
    assert max(spread) > 3 * min(spread)


@pytest.mark.slow
def test_the_error_on_clips_never_seen_falls(policy: Wan, tuned: nn.Module) -> None:
    """Below what an answer that does not see how latents belong together can reach."""
    before = wan_shapes.held_out_error(policy, policy.build().eval(), repeats=2)
    after = wan_shapes.held_out_error(policy, tuned, repeats=2)
    blind = wan_shapes.error_without_seeing(policy)
    assert before > 2  # the mean square of noise less clean latents: what answering 0 costs
    assert after < blind < before
    assert after < 0.65 * before


def test_a_linear_answer_is_as_good_as_it_is_said_to_be(policy: Wan) -> None:
    """The bound, by least squares at each noise level on white latents."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 50, 4000, generator=generator)
    u = (torch.arange(50) + 0.5) / 50
    noised = policy.objective().noise(clean, noise, u)
    slope = (noised.sample * noised.target).sum(1) / noised.sample.square().sum(1)
    error = (noised.target - slope[:, None] * noised.sample).square().mean()
    assert error.item() == pytest.approx(wan_shapes.error_without_seeing(policy), rel=0.02)


@pytest.mark.slow
def test_the_folder_is_one_of_diffusers(policy: Wan, tuned: nn.Module, folder: Path) -> None:
    """Trained weights put beside the rest are drawn alike by the policy and by WanPipeline."""
    policy.export(tuned, folder / "transformer")
    asked = prompts("select")[:1]
    ours = wan_shapes.draw(wan_shapes.load_policy(folder), tuned, asked)[0].frames
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        asked,
        num_frames=8,  # diffusers makes k ratio + 1 of it, which at a ratio of 1 is one more
        height=32,
        width=32,
        num_inference_steps=wan_shapes.STEPS,
        guidance_scale=1.0,
        max_sequence_length=build.NUM_TOKENS,
        latents=gaussian(0, policy.latent_shape)[None],
        output_type="pt",
    ).frames[0]
    shown = (theirs.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    assert shown.shape == ours.shape
    assert (shown.int() - ours.int()).abs().max() <= 1
