"""The shipped pipeline, through diffusers' own front door, and the script that makes it."""

from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.shapes import build, world
from ipo_lightning.shapes.critic import dimensions, measure, overall
from ipo_lightning.shapes.judge import ShapesJudge
from ipo_lightning.shapes.prompts import prompts
from ipo_lightning.video import Clip

PIPELINE = Path(build.__file__).parent / "pipeline"
TINY = build.Recipe(
    vae_clips=8,
    vae_steps=2,
    vae_batch=2,
    base_clips=8,
    base_steps=2,
    base_batch=4,
    evaluate_every=0,
    judge_clips=6,
    judge_steps=2,
    judge_batch=4,
)


@pytest.fixture(scope="module")
def pipeline() -> CogVideoXPipeline:
    loaded = CogVideoXPipeline.from_pretrained(PIPELINE, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    build.build(TINY, folder)
    return folder


@pytest.fixture(scope="module")
def samples(pipeline: CogVideoXPipeline) -> Tensor:
    return build.generate(pipeline, prompts("final"), seed=7, num_steps=10)


def test_the_shipped_folder_is_small_and_in_half_precision() -> None:
    assert sum(path.stat().st_size for path in PIPELINE.rglob("*")) < 4e6
    half = CogVideoXPipeline.from_pretrained(PIPELINE, dtype=torch.float16)
    assert half.transformer.dtype == half.vae.dtype == torch.float16


def test_the_pipeline_generates_by_its_own_call(pipeline: CogVideoXPipeline) -> None:
    frames = pipeline(
        prompt=["a blue ring shrinking"],
        guidance_scale=1.0,
        num_inference_steps=10,
        max_sequence_length=build.NUM_TOKENS,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames
    assert frames.shape == (1, world.NUM_FRAMES, world.SIZE, world.SIZE, 3)


@pytest.mark.slow
def test_samples_show_their_prompt_well_above_chance(samples: Tensor) -> None:
    """Chance is 1/6, 1/3, 1/6 and 1/108; 24 prompts of combinations never trained on."""
    dims = dimensions(samples, prompts("final"))
    assert dims["colour"].mean() > 0.6
    assert dims["shape"].mean() > 0.55
    assert dims["motion"].mean() > 0.6
    assert 0.35 < dims["follow"].mean() < 0.9
    assert 0.6 < overall(dims).mean() < 0.95


def test_a_sample_does_not_depend_on_its_batch(
    pipeline: CogVideoXPipeline, samples: Tensor
) -> None:
    alone = build.generate(pipeline, prompts("final")[:1], seed=7, num_steps=10)
    assert (alone[0].int() - samples[0].int()).abs().max() <= 1


@pytest.mark.slow
def test_reconstructions_keep_the_score(pipeline: CogVideoXPipeline) -> None:
    clips = world.clean_clips(prompts("final"), seed=99)
    again = build.decode(pipeline.vae, build.encode(pipeline.vae, clips, "cpu"), "cpu")
    before = overall(dimensions(clips, prompts("final"))).mean()
    after = overall(dimensions(again, prompts("final"))).mean()
    assert before - after < 0.03


def test_every_word_of_every_prompt_is_known(pipeline: CogVideoXPipeline) -> None:
    asked = [prompt for split in ("train", "select", "final") for prompt in prompts(split)]
    ids = build.token_ids(pipeline.tokenizer, asked)
    assert ids.shape == (108, build.NUM_TOKENS)
    assert pipeline.tokenizer.unk_token_id not in ids
    assert len(set(map(tuple, ids.tolist()))) == 108


def test_latents_have_the_scale_the_sampler_expects(pipeline: CogVideoXPipeline) -> None:
    latents = build.encode(pipeline.vae, world.clean_clips(prompts("train"), 0), "cpu")
    assert latents.shape == (60, 3, 8, 8, 8)
    assert latents.std() == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_a_few_steps_of_the_build_make_a_loadable_pipeline(built: Path) -> None:
    loaded = CogVideoXPipeline.from_pretrained(built / "pipeline", dtype=torch.float32)
    clips = build.generate(loaded, prompts("train")[:2], seed=0, num_steps=2)
    assert clips.shape == (2, 9, 32, 32, 3)
    judge = ShapesJudge(built / "judge.safetensors")
    assert judge.rate([Clip(clips[0], world.FPS)], prompts("train")[:1])[0].score is not None


@pytest.mark.slow
def test_the_same_seeds_build_the_same_files(built: Path, tmp_path: Path) -> None:
    build.build(TINY, tmp_path)
    names = sorted(path.relative_to(built) for path in built.rglob("*.safetensors"))
    assert len(names) == 4
    for name in names:
        assert (built / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_build_and_the_shipped_folder_have_the_same_files(built: Path) -> None:
    listed = {path.relative_to(built / "pipeline") for path in (built / "pipeline").rglob("*")}
    assert {path.relative_to(PIPELINE) for path in PIPELINE.rglob("*")} == listed


def test_a_stage_without_the_vae_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--stage vae"):
        build.build(TINY, tmp_path, stage="base")


def test_the_velocity_error_is_the_weighted_x0_error(pipeline: CogVideoXPipeline) -> None:
    """The official CogVideoX loss: x0 error over 1 - alpha_bar."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 3, 8, 8, 8, generator=generator)
    timesteps = torch.tensor([100, 500, 900])
    ids = build.token_ids(pipeline.tokenizer, prompts("train")[:3])
    with torch.no_grad():
        errors = build.velocity_errors(pipeline, clean, ids, timesteps, noise)
        noised = pipeline.scheduler.add_noise(clean, noise, timesteps)
        text = pipeline.text_encoder(ids)[0]
        output = pipeline.transformer(noised, text, timesteps, return_dict=False)[0]
    restored = pipeline.scheduler.get_velocity(output, noised, timesteps)
    weight = 1 / (1 - pipeline.scheduler.alphas_cumprod[timesteps].float())
    official = weight * (restored - clean).square().flatten(1).mean(1)
    assert torch.allclose(errors, official, rtol=1e-3)


def test_stratified_timesteps_cover_every_slice_once() -> None:
    timesteps = build.stratified_timesteps(10, torch.Generator().manual_seed(0))
    assert sorted((timesteps // 100).tolist()) == list(range(10))


def test_black_frames_show_nothing_to_measure() -> None:
    assert measure(torch.zeros(1, 9, 32, 32, 3, dtype=torch.uint8)).visible.sum() == 0
