"""The CogVideoX backbone against diffusers' own pipeline, at toy size and with the real classes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ipo_lightning.backbones.cogvideox import CogVideoX, Lora
from ipo_lightning.errors import InputError
from ipo_lightning.policy import LORA_FILE, Sampling, put_weights, trained_weights
from ipo_lightning.seeds import derive_seed, gaussian, generator
from ipo_lightning.storage.store import WHOLE, folder_fingerprint
from tests.helpers import tiny

PROMPTS = ["a red ring moving left", "a blue cross"]
CPU = torch.device("cpu")
STYLES = pytest.mark.parametrize("style", ["2b", "5b"])
KINDS = pytest.mark.parametrize("kind", ["ddim", "dpm"])
Folders = Callable[..., Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """(style, scheduler) -> a pipeline's folder, each built once."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(style: str = "2b", kind: str = "ddim") -> Path:
        path = root / f"{style}-{kind}"
        return path if path.exists() else tiny.save_pipeline(path, style, kind)

    return folder


def load_pipeline(folder: Path) -> CogVideoXPipeline:
    pipe = CogVideoXPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def moved(network: nn.Module, by: float = 0.05) -> nn.Module:
    """The network after some training: every trained weight is elsewhere."""
    with torch.no_grad():
        for i, weight in enumerate(trained_weights(network).values()):
            weight.add_(by * tiny.normal(i, *weight.shape))
    return network


def ask(policy: CogVideoX, network: nn.Module, seed: int = 0) -> Tensor:
    """The network's answer to a fixed question."""
    question = tiny.normal(seed, 2, *tiny.LATENT_SHAPE)
    return policy.predict(
        network, question, torch.tensor([10, 900]), tiny.normal(seed + 1, 2, *tiny.TEXT_SHAPE)
    )


# -------------------------------------------------------------------- sampling


@pytest.mark.slow
@STYLES
@KINDS
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@torch.no_grad()
def test_videos_are_those_of_diffusers(
    folders: Folders, style: str, kind: str, guidance: float
) -> None:
    """Our noise and generators in the stock pipeline give our latents and pixels."""
    folder, seeds = folders(style, kind), [11, 12]
    policy, pipe = tiny.policy(folder), load_pipeline(folder)
    network = policy.build()
    sampling = Sampling(steps=4, guidance_scale=guidance, negative_prompt="a cross")
    text = policy.embed(PROMPTS, CPU)
    negative = policy.embed(["a cross"], CPU) if sampling.guided else None

    ours = policy.sample(network, seeds, text, negative, sampling)
    asked = {
        "prompt": PROMPTS,
        "negative_prompt": ["a cross"] * 2,
        "num_inference_steps": 4,
        "guidance_scale": guidance,
        "max_sequence_length": tiny.NUM_TOKENS,
        "latents": torch.stack([gaussian(seed, policy.latent_shape) for seed in seeds]),
    }
    draws = [generator(derive_seed(seed, "sampler")) for seed in seeds]
    theirs = pipe(**asked, generator=draws, output_type="latent").frames
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)

    video = pipe.video_processor.postprocess_video(pipe.decode_latents(theirs), output_type="np")
    clips = policy.decode(theirs)
    assert [clip.frames.dtype for clip in clips] == [torch.uint8] * 2
    frames = torch.stack([clip.frames for clip in clips])
    off = (frames.int() - (torch.from_numpy(video) * 255).round().int()).abs()
    assert off.max() <= 1 and off.count_nonzero() < 1e-3 * off.numel()  # roundings that fell apart
    assert frames.float().std() > 5  # not one grey


@KINDS
@torch.no_grad()
def test_a_video_does_not_depend_on_its_batch(folders: Folders, kind: str) -> None:
    policy = tiny.policy(folders("2b", kind))
    network, sampling = policy.build(), Sampling(steps=4)
    text = policy.embed(PROMPTS[:1], CPU)
    together = policy.sample(network, [5, 6, 7], text, None, sampling)
    for place, seed in enumerate([5, 6, 7]):
        alone = policy.sample(network, [seed], text, None, sampling)
        assert torch.allclose(alone[0], together[place], atol=1e-5)
    reordered = policy.sample(network, [7, 5], text, None, sampling)
    assert torch.allclose(reordered, together[[2, 0]], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=0.1)


@KINDS
@torch.no_grad()
def test_a_videos_noise_is_the_same_bits_in_any_batch(folders: Folders, kind: str) -> None:
    """A network that answers zero leaves only the noise, the sampler's own included."""
    policy = tiny.policy(folders("2b", kind))
    network, sampling = policy.build(), Sampling(steps=4)
    for parameter in network.proj_out.parameters():
        parameter.zero_()
    text = policy.embed(PROMPTS[:1], CPU)
    together = policy.sample(network, [5, 6, 7], text, None, sampling)
    for place, seed in enumerate([5, 6, 7]):
        alone = policy.sample(network, [seed], text, None, sampling)
        assert torch.equal(alone[0], together[place])
    if kind == "ddim":  # zero signal at the start, no noise in between
        assert torch.allclose(together[0].std(), together[1].std(), rtol=0.2)


@torch.no_grad()
def test_sampling_again_gives_the_same_bits(folders: Folders) -> None:
    policy = tiny.policy(folders("5b", "dpm"))
    network, text = policy.build(), policy.embed(PROMPTS, CPU)
    first = policy.sample(network, [1, 2], text, None, Sampling(steps=3))
    torch.manual_seed(99)  # no global generator is asked
    assert torch.equal(policy.sample(network, [1, 2], text, None, Sampling(steps=3)), first)


@torch.no_grad()
def test_guidance_needs_the_negative_prompt(folders: Folders) -> None:
    policy = tiny.policy(folders())
    text = policy.embed(PROMPTS[:1], CPU)
    with pytest.raises(ValueError, match="negative prompt"):
        policy.sample(policy.build(), [1], text, None, Sampling(steps=2, guidance_scale=2.0))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"steps": 2, "guidance_scale": 0.5}])
def test_impossible_sampling_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="give"):
        Sampling(**settings)


class Oracle(nn.Module):
    """Answers with the v that leads back to one clean video, whatever the noise."""

    def __init__(self, policy: CogVideoX, clean: Tensor) -> None:
        super().__init__()
        self.alphas, self.clean = policy.scheduler.alphas_cumprod, clean
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, *, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        alpha = self.alphas[timestep].float().view(-1, 1, 1, 1, 1)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        return ((signal * hidden_states - self.clean) / spread,)  # x0 = signal * x - spread * v


@STYLES
@KINDS
@torch.no_grad()
def test_a_perfect_answer_recovers_the_clean_latents(
    folders: Folders, style: str, kind: str
) -> None:
    policy = tiny.policy(folders(style, kind))
    clean = tiny.normal(3, *tiny.LATENT_SHAPE)
    text = policy.embed(PROMPTS[:1], CPU)
    got = policy.sample(Oracle(policy, clean), [1, 2], text, None, Sampling(steps=5))
    assert torch.allclose(got, clean.expand_as(got), atol=1e-4)


# -------------------------------------------------------------------- text and pixels


@torch.no_grad()
def test_embeddings_are_those_of_the_pipeline(folders: Folders) -> None:
    policy, pipe = tiny.policy(folders()), load_pipeline(folders())
    prompts = [*PROMPTS, "", "a red ring moving left a blue cross moving right"]  # too long
    theirs, _ = pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=tiny.NUM_TOKENS
    )
    ours = policy.embed(prompts, CPU)
    assert ours.shape == (4, *tiny.TEXT_SHAPE)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(policy.embed(prompts[1:2], CPU), ours[1:2], atol=1e-6)


@STYLES
@torch.no_grad()
def test_encoding_and_decoding_shapes_and_scale(folders: Folders, style: str) -> None:
    policy, pipe = tiny.policy(folders(style)), load_pipeline(folders(style))
    frames = (tiny.normal(0, 2, tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH, 3) * 60 + 128).clamp(0, 255)
    latents = policy.encode(frames.to(torch.uint8))
    assert latents.shape == (2, *policy.latent_shape) == (2, *tiny.LATENT_SHAPE)
    assert latents.dtype == torch.float32
    pixels = frames.to(torch.uint8).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    mean = pipe.vae.encode(pixels).latent_dist.mean * pipe.vae.config.scaling_factor
    assert torch.allclose(latents.transpose(1, 2), mean, atol=1e-5)
    clips = policy.decode(latents)
    assert [c.frames.shape for c in clips] == [(tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH, 3)] * 2
    assert clips[0].fps == policy.fps == 8


def test_release_gives_back_and_loads_again(folders: Folders) -> None:
    policy = tiny.policy(folders())
    before = policy.embed(PROMPTS, CPU)
    policy.decode(tiny.normal(0, 1, *tiny.LATENT_SHAPE))
    assert "_text_encoder" in vars(policy) and "model" in vars(policy.vae)
    policy.release()
    assert "_text_encoder" not in vars(policy) and "model" not in vars(policy.vae)
    assert torch.equal(policy.embed(PROMPTS, CPU), before)


# -------------------------------------------------------------------- the network


@torch.no_grad()
def test_rotary_predictions_are_those_of_the_pipelines_own_call(folders: Folders) -> None:
    """Also away from the trained size, where the grid is cropped and resized."""
    policy, pipe = tiny.policy(folders("5b")), load_pipeline(folders("5b"))
    text = tiny.normal(1, 2, *tiny.TEXT_SHAPE)
    for frames, height, width in ((3, 4, 6), (2, 4, 4), (3, 2, 6)):
        sample = tiny.normal(0, 2, frames, tiny.LATENT_SHAPE[1], height, width)
        rotary = pipe._prepare_rotary_positional_embeddings(height * 4, width * 4, frames, CPU)
        asked = {"timestep": torch.tensor([3, 700]), "encoder_hidden_states": text}
        theirs = pipe.transformer(sample, **asked, image_rotary_emb=rotary, return_dict=False)[0]
        without = pipe.transformer(sample, **asked, return_dict=False)[0]
        ours = policy.predict(pipe.transformer, sample, asked["timestep"], text)
        assert torch.equal(ours, theirs)
        assert not torch.allclose(ours, without, atol=1e-3)  # the positions matter


@STYLES
@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_gradient(
    folders: Folders, style: str, lora: Lora | None
) -> None:
    grads = []
    for checkpointing in (False, True):
        policy = tiny.policy(folders(style), lora=lora, checkpointing=checkpointing)
        network = moved(policy.build()).train()
        ask(policy, network).square().mean().backward()
        grads.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][n], grads[1][n], atol=1e-7) for n in grads[0])
    assert sum(float(g.abs().sum()) for g in grads[0].values()) > 0


def test_what_is_trained(folders: Folders) -> None:
    full = tiny.policy(folders()).build()
    assert len(trained_weights(full)) == len(list(full.parameters()))
    lora = tiny.policy(folders(), lora=Lora(rank=2, alpha=4, targets=("to_q",))).build()
    names = trained_weights(lora)
    assert len(names) == 2 * 2  # two blocks, two factors
    assert all("to_q.lora_" in name for name in names)
    assert {w.shape for w in names.values()} == {(2, 32), (32, 2)}


def test_an_adapter_starts_as_the_base_and_always_the_same(folders: Folders) -> None:
    base, policy = tiny.policy(folders()), tiny.policy(folders(), lora=Lora(rank=2, alpha=4))
    torch.manual_seed(1)
    first = policy.build()
    state = torch.get_rng_state()
    second = policy.build()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(ask(policy, first), ask(base, base.build()))
    for name, weight in trained_weights(first).items():
        assert torch.equal(weight, trained_weights(second)[name])
    other = tiny.policy(folders(), lora=Lora(rank=2, alpha=4, seed=1)).build()
    pairs = zip(trained_weights(first).values(), trained_weights(other).values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_weights_that_do_not_fit_are_refused(folders: Folders) -> None:
    network = tiny.policy(folders()).build()
    weights = {name: w.clone() for name, w in trained_weights(network).items()}
    weights.pop("proj_out.bias")
    with pytest.raises(InputError, match=r"1 names differ, as proj_out\.bias"):
        put_weights(network, weights)


# -------------------------------------------------------------------- CogVideoX 1.5


@pytest.fixture(scope="module")
def folder_1_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline in the manner of CogVideoX1.5-5B, for videos of up to 40 x 40 pixels."""
    pipe = tiny.pipeline("5b", "dpm")
    changes = {"patch_size_t": 2, "patch_bias": False, "sample_height": 10, "sample_width": 10}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = CogVideoXTransformer3DModel(**{**tiny.transformer(True).config, **changes})
    pipe.register_modules(transformer=transformer)
    pipe.save_pretrained(folder := tmp_path_factory.mktemp("pipeline") / "1.5")
    return folder


@pytest.mark.parametrize(("frames", "latent_frames"), [(9, 4), (17, 6)])
@torch.no_grad()
def test_videos_of_1_5_are_those_of_diffusers(
    folder_1_5: Path, frames: int, latent_frames: int
) -> None:
    """One latent frame is sampled that nobody sees: 9 frames are 3, 17 are 5."""
    size = {"num_frames": frames, "height": tiny.HEIGHT, "width": tiny.WIDTH}
    policy, pipe = tiny.policy(folder_1_5, **size), load_pipeline(folder_1_5)
    assert policy.latent_shape == (latent_frames, *tiny.LATENT_SHAPE[1:])
    seeds, text = [11, 12], policy.embed(PROMPTS, CPU)
    ours = policy.sample(policy.build(), seeds, text, None, Sampling(steps=4))
    asked = {
        **size,
        "prompt": PROMPTS,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "max_sequence_length": tiny.NUM_TOKENS,
        "latents": torch.stack([gaussian(seed, policy.latent_shape) for seed in seeds]),
    }

    def draws() -> list[torch.Generator]:
        return [generator(derive_seed(seed, "sampler")) for seed in seeds]

    theirs = pipe(**asked, generator=draws(), output_type="latent").frames
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)
    video = torch.from_numpy(pipe(**asked, generator=draws(), output_type="np").frames)
    found = torch.stack([clip.frames for clip in policy.decode(theirs)])
    assert found.shape == (2, frames, tiny.HEIGHT, tiny.WIDTH, 3)
    assert (found.int() - (video * 255).round().int()).abs().max() <= 1


@torch.no_grad()
def test_positions_of_1_5_matter_and_are_its_pipelines(folder_1_5: Path) -> None:
    policy, pipe = tiny.policy(folder_1_5), load_pipeline(folder_1_5)
    text, times = tiny.normal(1, 2, *tiny.TEXT_SHAPE), torch.tensor([3, 700])
    sample = tiny.normal(0, 2, 4, tiny.LATENT_SHAPE[1], 6, 4)
    rotary = pipe._prepare_rotary_positional_embeddings(24, 16, 4, CPU)
    asked = {"timestep": times, "encoder_hidden_states": text, "return_dict": False}
    ours = policy.predict(pipe.transformer, sample, times, text)
    assert torch.equal(ours, pipe.transformer(sample, **asked, image_rotary_emb=rotary)[0])
    assert not torch.allclose(ours, pipe.transformer(sample, **asked)[0], atol=1e-3)


@torch.no_grad()
def test_real_videos_of_1_5_start_with_their_first_latent_frame_twice(folder_1_5: Path) -> None:
    policy = tiny.policy(folder_1_5, height=tiny.HEIGHT, width=tiny.WIDTH)
    frames = (tiny.normal(0, 1, tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH, 3) * 60 + 128).clamp(0, 255)
    latents = policy.encode(frames.to(torch.uint8))
    assert latents.shape == (1, *policy.latent_shape)
    assert torch.equal(latents[:, 0], latents[:, 1])
    assert not torch.equal(latents[:, 1], latents[:, 2])
    whole = tiny.policy(folder_1_5, num_frames=13, height=tiny.HEIGHT, width=tiny.WIDTH)
    assert torch.equal(policy._to_vae(latents), whole._to_vae(latents)[:, :, 1:])


def test_a_1_5_video_beyond_its_positions_is_refused(folder_1_5: Path) -> None:
    assert tiny.policy(folder_1_5).size == (tiny.FRAMES, 40, 40)
    with pytest.raises(InputError, match="48 x 16 pixels; .* positions for 40 x 40"):
        _ = tiny.policy(folder_1_5, height=48, width=16).latent_shape


# -------------------------------------------------------------------- export


@STYLES
@torch.no_grad()
def test_a_full_export_is_the_policy_in_a_plain_pipeline(
    folders: Folders, style: str, tmp_path: Path
) -> None:
    policy = tiny.policy(folders(style))
    network = moved(policy.build())
    policy.export(network, tmp_path / "policy")
    pipe = load_pipeline(folders(style))
    theirs = type(pipe.transformer).from_pretrained(tmp_path / "policy")
    assert torch.equal(ask(policy, theirs), ask(policy, network))
    assert not torch.equal(ask(policy, theirs), ask(policy, policy.build()))

    fresh = policy.build()
    put_weights(fresh, policy.load_export(tmp_path / "policy"))
    assert torch.equal(ask(policy, fresh), ask(policy, network))


@STYLES
@torch.no_grad()
def test_a_lora_export_is_the_policy_in_a_plain_pipeline(
    folders: Folders, style: str, tmp_path: Path
) -> None:
    """With alpha != rank: diffusers must find the scale in the file."""
    policy = tiny.policy(folders(style), lora=Lora(rank=2, alpha=7, targets=("to_q", "to_out.0")))
    network = moved(policy.build(), by=0.5)
    policy.export(network, tmp_path / "policy")
    assert (tmp_path / "policy" / LORA_FILE).exists()

    pipe = load_pipeline(folders(style))
    pipe.load_lora_weights(tmp_path / "policy")
    assert torch.equal(ask(policy, pipe.transformer), ask(policy, network))
    assert not torch.allclose(ask(policy, network), ask(policy, policy.build()), atol=1e-3)

    fresh = policy.build()
    put_weights(fresh, policy.load_export(tmp_path / "policy"))
    assert torch.equal(ask(policy, fresh), ask(policy, network))
    assert all(
        torch.equal(w, trained_weights(fresh)[n]) for n, w in trained_weights(network).items()
    )


@torch.no_grad()
def test_a_lora_file_brings_its_own_rank_and_alpha(folders: Folders, tmp_path: Path) -> None:
    policy = tiny.policy(folders(), lora=Lora(rank=3, alpha=5, targets=("to_k",)))
    network = moved(policy.build(), by=0.5)
    policy.export(network, tmp_path)
    base = tiny.policy(folders())
    plain = base.build()
    base.load_lora(plain, tmp_path / LORA_FILE)
    assert torch.equal(ask(base, plain), ask(policy, network))


def test_a_file_that_is_no_lora_of_this_model_is_refused(folders: Folders, tmp_path: Path) -> None:
    policy = tiny.policy(folders(), lora=Lora(rank=2, alpha=2))
    layers = get_peft_model_state_dict(policy.build(), adapter_name="default")
    save_file({k: torch.cat([v, v], -1) for k, v in layers.items()}, tmp_path / "odd.safetensors")
    base = tiny.policy(folders())
    with pytest.raises(InputError, match=r"odd\.safetensors is no LoRA of this model"):
        base.load_lora(base.build(), tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rank": 0, "alpha": 1}, "rank=0"),
        ({"rank": 1, "alpha": 0}, "alpha=0"),
        ({"rank": 1, "alpha": 1, "targets": ()}, "targets="),
    ],
)
def test_impossible_adapters_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Lora(**settings)


# -------------------------------------------------------------------- what it is


def test_settings_are_read_from_the_folder(folders: Folders) -> None:
    two, five = tiny.policy(folders("2b")), tiny.policy(folders("5b", "dpm"))
    assert type(two.scheduler).__name__ == "CogVideoXDDIMScheduler"
    assert type(five.scheduler).__name__ == "CogVideoXDPMScheduler"
    assert two.scheduler.config.snr_shift_scale == 3.0
    assert five.scheduler.config.snr_shift_scale == 1.0
    scales = [policy.vae.model.config.scaling_factor for policy in (two, five)]
    assert scales == [1.15258426, 0.7]
    assert two.size == five.size == (tiny.FRAMES, tiny.HEIGHT, tiny.WIDTH)
    assert torch.equal(five.objective().alphas_cumprod, five.scheduler.alphas_cumprod.double())
    assert not torch.equal(five.objective().alphas_cumprod, two.objective().alphas_cumprod)


def test_size_can_be_chosen_and_enters_the_identity(folders: Folders) -> None:
    own = tiny.policy(folders("5b"))
    small = tiny.policy(folders("5b"), num_frames=5, height=8, width=16)
    assert small.latent_shape == (2, 4, 2, 4)
    assert small.identity != own.identity
    assert tiny.policy(folders("5b"), num_frames=9, height=16, width=24).identity == own.identity


@pytest.mark.parametrize("frames", [2, 4, 8, 10, 12])
def test_frames_must_be_4k_plus_1(folders: Folders, frames: int) -> None:
    with pytest.raises(InputError, match=f"num_frames={frames}.*4k"):
        tiny.policy(folders(), num_frames=frames)


@pytest.mark.parametrize("size", [{"height": 12}, {"width": 20}, {"width": 9}])
def test_sizes_off_the_grid_are_refused(folders: Folders, size: dict[str, int]) -> None:
    with pytest.raises(InputError, match="multiples of 8"):
        _ = tiny.policy(folders(), **size).latent_shape


def test_folders_that_are_no_pipeline_are_refused(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_index\.json"):
        tiny.policy(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        tiny.policy(tmp_path / "nowhere")
    odd = shutil.copytree(folders(), tmp_path / "odd")
    index = json.loads((odd / "model_index.json").read_text())
    index["scheduler"][1] = "DDPMScheduler"
    (odd / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="DDPMScheduler"):
        _ = tiny.policy(odd).scheduler


def test_a_folders_fingerprint_is_its_contents(folders: Folders, tmp_path: Path) -> None:
    copy = shutil.copytree(folders(), tmp_path / "copy")
    wanted = folder_fingerprint(folders())
    assert folder_fingerprint(copy) == wanted
    assert tiny.policy(copy).identity == tiny.policy(folders()).identity
    (copy / "README.md").write_text("of no importance")
    assert folder_fingerprint(copy) == wanted


@pytest.mark.parametrize(
    "file",
    [
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ],
)
def test_one_weight_changes_the_fingerprint(folders: Folders, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(folders(), tmp_path / "copy")
    weights = load_file(copy / file)
    name = sorted(weights)[0]
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, copy / file, metadata={"format": "pt"})
    assert folder_fingerprint(copy) != folder_fingerprint(folders())


@pytest.mark.parametrize("size", [2**20, 2**20 + 1, 2**21 - 1])
def test_no_matrix_of_a_large_file_is_passed_over(tmp_path: Path, size: int) -> None:
    """A mebibyte that changed, wherever it stands, as an adapter that was merged in place."""
    file = tmp_path / "model.safetensors"
    with open(file, "wb") as whole:
        whole.truncate(WHOLE + 3 * 2**20 + 17)
    wanted = folder_fingerprint(tmp_path)
    for place in (5, 10 * 2**20 - 3, 33 * 2**20 + 4097, file.stat().st_size - size):
        with open(file, "r+b") as part:
            part.seek(place)
            part.write(b"\x01" * size)
        assert folder_fingerprint(tmp_path) != wanted
        with open(file, "r+b") as part:
            part.seek(place)
            part.write(bytes(size))
        assert folder_fingerprint(tmp_path) == wanted


def test_configs_and_tokens_enter_the_fingerprint(folders: Folders, tmp_path: Path) -> None:
    seen = {folder_fingerprint(folders())}
    for i, file in enumerate(
        ("scheduler/scheduler_config.json", "vae/config.json", "tokenizer/tokenizer.json")
    ):
        copy = shutil.copytree(folders(), tmp_path / str(i))
        (copy / file).write_text((copy / file).read_text() + "\n")
        seen.add(folder_fingerprint(copy))
    assert len(seen) == 4


def test_the_same_pipeline_differs_by_style_scheduler_and_seed(tmp_path: Path) -> None:
    made = [("2b", "ddim", 0), ("2b", "ddim", 1), ("2b", "dpm", 0), ("5b", "ddim", 0)]
    prints = {
        folder_fingerprint(tiny.save_pipeline(tmp_path / str(i), *one))
        for i, one in enumerate(made)
    }
    assert len(prints) == 4
    again = tiny.save_pipeline(tmp_path / "again", *made[0])
    assert folder_fingerprint(again) in prints


@pytest.mark.filterwarnings("ignore:.*local_dir_use_symlinks.*")  # diffusers, to its own library
def test_a_hub_id_that_cannot_be_had_is_named() -> None:
    """Tests are offline: whatever is asked of it, the sentence says what was looked for."""
    policy = CogVideoX("nobody/nothing")
    for ask in (lambda: policy.latent_shape, lambda: policy.scheduler, policy.build):
        with pytest.raises(InputError, match=r"backbone\.path=nobody/nothing cannot be read"):
            ask()
