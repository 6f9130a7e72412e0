"""The Wan backbone against diffusers' own pipeline, at toy size and with the real classes."""

import json
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ipo_lightning.backbones.wan import Lora, Wan
from ipo_lightning.errors import InputError
from ipo_lightning.losses import dpo_loss
from ipo_lightning.module import PreferenceModule
from ipo_lightning.objectives import squared_error
from ipo_lightning.policy import LORA_FILE, Sampling, put_weights, trained_weights
from ipo_lightning.references import AdapterReference, FrozenReference
from ipo_lightning.seeds import gaussian
from tests.helpers import tiny, tiny_wan
from tests.helpers.tiny import normal

PROMPTS = ["a red ring moving left", "a blue cross"]
CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["unipc", "euler"])
LORAS = pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4)], ids=["full", "lora"])
Folders = Callable[..., Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """scheduler -> a pipeline's folder, each built once."""
    root = tmp_path_factory.mktemp("pipelines")

    def folder(kind: str = "unipc") -> Path:
        path = root / kind
        return path if path.exists() else tiny_wan.save_pipeline(path, kind)

    return folder


def load_pipeline(folder: Path) -> WanPipeline:
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def moved(network: nn.Module, by: float = 0.05) -> nn.Module:
    """The network after some training: every trained weight is elsewhere."""
    with torch.no_grad():
        for i, weight in enumerate(trained_weights(network).values()):
            weight.add_(by * normal(i, *weight.shape))
    return network


def ask(policy: Wan, network: nn.Module, seed: int = 0) -> Tensor:
    """The network's answer to a fixed question."""
    question = normal(seed, 2, *tiny_wan.LATENT_SHAPE)
    times = torch.tensor([10.5, 900.25])
    return policy.predict(network, question, times, normal(seed + 1, 2, *tiny_wan.TEXT_SHAPE))


def changed(folder: Path, copy: Path, file: str, **changes: Any) -> Path:
    """A copy of a folder with other values in one of its JSON files."""
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps({**content, **changes}))
    return copy


# -------------------------------------------------------------------- sampling


@pytest.mark.slow
@KINDS
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@torch.no_grad()
def test_videos_are_those_of_diffusers(folders: Folders, kind: str, guidance: float) -> None:
    """Our noise in the stock pipeline gives our latents and pixels."""
    folder, seeds = folders(kind), [11, 12]
    policy, pipe = tiny_wan.policy(folder), load_pipeline(folder)
    sampling = Sampling(steps=5, guidance_scale=guidance, negative_prompt="a cross")
    text = policy.embed(PROMPTS, CPU)
    negative = policy.embed(["a cross"], CPU) if sampling.guided else None

    ours = policy.sample(policy.build(), seeds, text, negative, sampling)
    asked = {
        "prompt": PROMPTS,
        "negative_prompt": ["a cross"] * 2,
        "num_frames": tiny_wan.FRAMES,
        "height": tiny_wan.HEIGHT,
        "width": tiny_wan.WIDTH,
        "num_inference_steps": 5,
        "guidance_scale": guidance,
        "max_sequence_length": tiny.NUM_TOKENS,
        "latents": torch.stack([gaussian(seed, policy.latent_shape) for seed in seeds]),
    }
    theirs = pipe(**asked, output_type="latent").frames
    assert ours.dtype == torch.float32 and ours.shape == (2, *tiny_wan.LATENT_SHAPE)
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)

    video = pipe(**asked, output_type="np").frames
    frames = torch.stack([clip.frames for clip in policy.decode(theirs)])
    assert frames.dtype == torch.uint8
    off = (frames.int() - (torch.from_numpy(video) * 255).round().int()).abs()
    assert off.max() <= 1 and off.count_nonzero() < 1e-3 * off.numel()  # roundings that fell apart
    assert frames.float().std() > 5  # not one grey


@KINDS
@torch.no_grad()
def test_a_chosen_shift_is_that_of_a_scheduler_made_with_it(folders: Folders, kind: str) -> None:
    policy, pipe = tiny_wan.policy(folders(kind), shift=5.0), load_pipeline(folders(kind))
    wanted = tiny_wan.scheduler(kind, shift=5.0)
    wanted.set_timesteps(4)
    policy.scheduler.set_timesteps(4)
    assert torch.equal(policy.scheduler.timesteps, wanted.timesteps)
    pipe.scheduler.set_timesteps(4)
    assert not torch.equal(pipe.scheduler.timesteps, wanted.timesteps)
    assert policy.objective().shift == policy.shift == 5.0
    assert tiny_wan.policy(folders(kind)).shift == tiny_wan.SHIFT
    assert policy.identity != tiny_wan.policy(folders(kind)).identity
    own = tiny_wan.policy(folders(kind), shift=tiny_wan.SHIFT)
    assert own.identity == tiny_wan.policy(folders(kind)).identity


@KINDS
@torch.no_grad()
def test_a_video_does_not_depend_on_its_batch(folders: Folders, kind: str) -> None:
    policy = tiny_wan.policy(folders(kind))
    network, sampling = policy.build(), Sampling(steps=4)
    text = policy.embed(PROMPTS[:1], CPU)
    together = policy.sample(network, [5, 6, 7], text, None, sampling)
    for place, seed in enumerate([5, 6, 7]):
        alone = policy.sample(network, [seed], text, None, sampling)
        assert torch.allclose(alone[0], together[place], atol=1e-5)
    reordered = policy.sample(network, [7, 5], text, None, sampling)
    assert torch.allclose(reordered, together[[2, 0]], atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=0.1)
    torch.manual_seed(99)  # no global generator is asked
    assert torch.equal(policy.sample(network, [5, 6, 7], text, None, sampling), together)


@torch.no_grad()
def test_guidance_needs_the_negative_prompt(folders: Folders) -> None:
    policy = tiny_wan.policy(folders())
    text = policy.embed(PROMPTS[:1], CPU)
    with pytest.raises(ValueError, match="negative prompt"):
        policy.sample(policy.build(), [1], text, None, Sampling(steps=2, guidance_scale=2.0))


class Oracle(nn.Module):
    """Answers with the velocity that leads back to one clean video, whatever the noise."""

    def __init__(self, policy: Wan, clean: Tensor, steps: int) -> None:
        super().__init__()
        policy.scheduler.set_timesteps(steps)
        self.levels, self.clean = iter(policy.scheduler.sigmas), clean
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, *, hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        return ((hidden_states - self.clean) / next(self.levels),)  # x0 = sample - level * v


@KINDS
@torch.no_grad()
def test_a_perfect_answer_recovers_the_clean_latents(folders: Folders, kind: str) -> None:
    policy, clean = tiny_wan.policy(folders(kind)), normal(3, *tiny_wan.LATENT_SHAPE)
    text = policy.embed(PROMPTS[:1], CPU)
    got = policy.sample(Oracle(policy, clean, 8), [1, 2], text, None, Sampling(steps=8))
    assert torch.allclose(got, clean.expand_as(got), atol=1e-5)


@KINDS
def test_training_asks_what_the_sampler_asks(folders: Folders, kind: str) -> None:
    """At the t of a sampler's steps: its noise levels, and its timesteps in value and dtype."""
    policy = tiny_wan.policy(folders(kind))
    policy.scheduler.set_timesteps(10)
    times = policy.scheduler.sigmas[1:-1].double()  # the first is a hair off pure noise in UniPC
    u = times / (tiny_wan.SHIFT - (tiny_wan.SHIFT - 1) * times)  # the shift undone
    noised = policy.objective().noise(
        torch.zeros(len(u), 1), torch.ones(len(u), 1), u.clamp(0, 1 - 1e-12)
    )
    assert torch.allclose(noised.sample[:, 0].double(), times, atol=1e-6)
    asked = policy.scheduler.timesteps[1:]
    assert noised.timestep.dtype == asked.dtype
    assert (noised.timestep - asked).abs().max() <= (1 if kind == "unipc" else 1e-3)


# -------------------------------------------------------------------- text and pixels


@torch.no_grad()
def test_embeddings_are_those_of_the_pipeline(folders: Folders) -> None:
    policy, pipe = tiny_wan.policy(folders()), load_pipeline(folders())
    untidy = "  a red\n\tring &amp;amp; cross "
    prompts = [*PROMPTS, "", untidy, "a red ring moving left a blue cross moving right"]  # too long
    theirs, _ = pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=tiny.NUM_TOKENS
    )
    ours = policy.embed(prompts, CPU)
    assert ours.shape == (5, *tiny_wan.TEXT_SHAPE)
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(policy.embed(prompts[1:2], CPU), ours[1:2], atol=1e-6)
    assert torch.allclose(policy.embed(["a red ring & cross"], CPU), ours[3:4], atol=1e-6)
    assert ours[1, :4].abs().amin(-1).gt(0).all() and not ours[1, 4:].any()  # three words, an end
    assert not torch.allclose(ours[0], ours[1], atol=0.1)


@torch.no_grad()
def test_encoding_takes_the_mean_away_and_divides_by_the_deviation(folders: Folders) -> None:
    policy, pipe = tiny_wan.policy(folders()), load_pipeline(folders())
    noise = normal(0, 2, tiny_wan.FRAMES, tiny_wan.HEIGHT, tiny_wan.WIDTH, 3)
    frames = (noise * 60 + 128).clamp(0, 255).to(torch.uint8)
    latents = policy.encode(frames)
    assert latents.shape == (2, *policy.latent_shape) == (2, *tiny_wan.LATENT_SHAPE)
    assert latents.dtype == torch.float32
    pixels = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    own = pipe.vae.encode(pixels).latent_dist.mode()
    for channel, (mean, std) in enumerate(zip(tiny_wan.MEAN, tiny_wan.STD, strict=True)):
        wanted = (own[:, channel] - mean) / std
        assert torch.allclose(latents[:, channel], wanted, atol=1e-5)
    assert torch.allclose(policy._to_vae(latents), own, atol=1e-5)
    clips = policy.decode(latents)
    size = (tiny_wan.FRAMES, tiny_wan.HEIGHT, tiny_wan.WIDTH, 3)
    assert [clip.frames.shape for clip in clips] == [size] * 2
    assert clips[0].fps == policy.fps == 16


@torch.no_grad()
def test_the_vae_normalises_its_own_latents_to_a_standard_normal(folders: Folders) -> None:
    """What the constants are for: latents of their mean and deviation become those of noise."""
    policy = tiny_wan.policy(folders())
    shape = (-1, 1, 1, 1)
    mean, std = torch.tensor(tiny_wan.MEAN).view(shape), torch.tensor(tiny_wan.STD).view(shape)
    own = mean + std * normal(0, 400, *tiny_wan.LATENT_SHAPE)
    latents = policy._from_vae(own)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.02
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.02


@torch.no_grad()
def test_threads_that_decode_side_by_side_do_not_meet_in_the_vae(folders: Folders) -> None:
    policy = tiny_wan.policy(folders())
    latents = normal(0, 6, *tiny_wan.LATENT_SHAPE)
    alone = [policy.decode(one[None])[0].frames for one in latents]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda one: policy.decode(one[None])[0].frames, latents))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    policy.release()
    assert "_text_encoder" not in vars(policy) and "model" not in vars(policy.vae)


# -------------------------------------------------------------------- the network


@LORAS
def test_gradient_checkpointing_changes_no_gradient(folders: Folders, lora: Lora | None) -> None:
    grads = []
    for checkpointing in (False, True):
        policy = tiny_wan.policy(folders(), lora=lora, checkpointing=checkpointing)
        network = moved(policy.build()).train()
        ask(policy, network).square().mean().backward()
        grads.append({n: p.grad for n, p in network.named_parameters() if p.requires_grad})
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][n], grads[1][n], atol=1e-7) for n in grads[0])
    assert sum(float(g.abs().sum()) for g in grads[0].values()) > 0


def test_the_default_adapter_is_on_both_attentions(folders: Folders) -> None:
    names = trained_weights(tiny_wan.policy(folders(), lora=Lora(rank=2, alpha=4)).build())
    layers = {name.split(".lora_")[0].split(".", 2)[2] for name in names}
    parts = ("to_q", "to_k", "to_v", "to_out.0")
    assert layers == {f"{attention}.{part}" for attention in ("attn1", "attn2") for part in parts}
    assert len(names) == 2 * 8 * 2  # two blocks, two factors


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of a slower kernel
def test_what_is_kept_in_float32_is_when_the_rest_is_not(folders: Folders) -> None:
    """A network that diffusers loads in bfloat16 answers as ours, within that rounding."""
    policy = tiny_wan.policy(folders())
    ours = policy.build()
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    half = WanTransformer3DModel.from_pretrained(
        folders() / "transformer", torch_dtype=torch.bfloat16
    )
    kept = {name for name, p in half.named_parameters() if p.dtype == torch.float32}
    assert {"scale_shift_table", "blocks.1.scale_shift_table", "blocks.0.norm2.weight"} <= kept
    assert "condition_embedder.time_embedder.linear_1.weight" in kept
    assert "blocks.0.attn1.to_q.weight" not in kept
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(ask(policy, half).float(), ask(policy, ours).float(), atol=0.05)


@KINDS
def test_training_on_one_clip_lowers_its_error(folders: Folders, kind: str) -> None:
    policy = tiny_wan.policy(folders(kind))
    network, objective = policy.build().train(), policy.objective()
    clip = normal(0, *tiny_wan.LATENT_SHAPE).expand(8, -1, -1, -1, -1)
    text = normal(1, *tiny_wan.TEXT_SHAPE).expand(8, -1, -1)
    noise = normal(2, 8, *tiny_wan.LATENT_SHAPE)
    noised = objective.noise(clip, noise, torch.linspace(0.05, 0.95, 8).double())
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    errors = []
    for _ in range(25):
        answer = policy.predict(network, noised.sample, noised.timestep, text)
        error = squared_error(answer, noised).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.7 * errors[0]


# -------------------------------------------------------------------- preferences


def make(folder: Path, lora: Lora | None) -> PreferenceModule:
    """A module that is ready to step, with the policy where the reference is."""
    module = PreferenceModule(
        tiny_wan.policy(folder, lora=lora),
        partial(dpo_loss, beta=2.0),
        FrozenReference() if lora is None else AdapterReference("base"),
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
    )
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.configure_model()
    module.on_fit_start()
    module.reference.refresh(None)
    return module


@LORAS
def test_a_policy_that_is_its_reference_costs_exactly_log_2(
    folders: Folders, lora: Lora | None
) -> None:
    loss, values = make(folders(), lora).pair_step(tiny_wan.pair_batch(3))
    assert torch.equal(values["margin"], torch.zeros(3))
    assert loss.item() == torch.tensor(math.log(2)).item()


@LORAS
def test_steps_of_preference_part_winner_and_loser(folders: Folders, lora: Lora | None) -> None:
    module, batch = make(folders(), lora), tiny_wan.pair_batch(3)
    optimizer = torch.optim.AdamW(
        [p for p in module.network.parameters() if p.requires_grad], lr=3e-3
    )
    for _ in range(8):
        loss, values = module.pair_step(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < math.log(2)
    assert values["margin"].mean() > 0


# -------------------------------------------------------------------- export


@torch.no_grad()
def test_a_full_export_is_the_policy_in_a_plain_pipeline(folders: Folders, tmp_path: Path) -> None:
    policy = tiny_wan.policy(folders())
    network = moved(policy.build())
    policy.export(network, tmp_path / "policy")
    theirs = WanTransformer3DModel.from_pretrained(tmp_path / "policy")
    assert torch.equal(ask(policy, theirs), ask(policy, network))
    assert not torch.equal(ask(policy, theirs), ask(policy, policy.build()))

    fresh = policy.build()
    put_weights(fresh, policy.load_export(tmp_path / "policy"))
    assert torch.equal(ask(policy, fresh), ask(policy, network))


@torch.no_grad()
def test_a_lora_export_is_the_policy_in_a_plain_pipeline(folders: Folders, tmp_path: Path) -> None:
    """With alpha != rank: diffusers must find the scale in the file."""
    policy = tiny_wan.policy(folders(), lora=Lora(rank=2, alpha=7))
    network = moved(policy.build(), by=0.5)
    policy.export(network, tmp_path / "policy")
    pipe = load_pipeline(folders())
    pipe.load_lora_weights(tmp_path / "policy")
    assert torch.equal(ask(policy, pipe.transformer), ask(policy, network))
    assert not torch.allclose(ask(policy, network), ask(policy, policy.build()), atol=1e-3)

    fresh = policy.build()
    put_weights(fresh, policy.load_export(tmp_path / "policy"))
    assert torch.equal(ask(policy, fresh), ask(policy, network))
    base = tiny_wan.policy(folders())
    plain = base.build()
    base.load_lora(plain, tmp_path / "policy" / LORA_FILE)
    assert torch.equal(ask(base, plain), ask(policy, network))


@torch.no_grad()
def test_a_lora_by_the_names_of_wans_authors_is_read(folders: Folders, tmp_path: Path) -> None:
    """Most LoRAs of Wan go by the names of the original code; they carry no alpha here."""
    policy = tiny_wan.policy(folders(), lora=Lora(rank=2, alpha=2))
    network = moved(policy.build(), by=0.5)
    policy.export(network, tmp_path)
    names = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v",
             "to_out.0": "o", "transformer.": "diffusion_model."}  # fmt: skip
    weights = {}
    for name, weight in load_file(tmp_path / LORA_FILE).items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    save_file(weights, tmp_path / "original.safetensors")
    base = tiny_wan.policy(folders())
    plain = base.build()
    base.load_lora(plain, tmp_path / "original.safetensors")
    assert torch.equal(ask(base, plain), ask(policy, network))


def test_a_file_that_is_no_lora_of_this_model_is_refused(folders: Folders, tmp_path: Path) -> None:
    policy = tiny_wan.policy(folders(), lora=Lora(rank=2, alpha=2))
    policy.export(policy.build(), tmp_path)
    layers = load_file(tmp_path / LORA_FILE)
    save_file({k: torch.cat([v, v], -1) for k, v in layers.items()}, tmp_path / "odd.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    base = tiny_wan.policy(folders())
    for name in ("odd", "text"):
        with pytest.raises(InputError, match=rf"{name}\.safetensors is no LoRA of this model"):
            base.load_lora(base.build(), tmp_path / f"{name}.safetensors")


# -------------------------------------------------------------------- what it is


def test_sizes_and_text_length_enter_the_identity(folders: Folders, tmp_path: Path) -> None:
    own = tiny_wan.policy(folders())
    assert own.size == (tiny_wan.FRAMES, tiny_wan.HEIGHT, tiny_wan.WIDTH)
    small = tiny_wan.policy(folders(), num_frames=5, height=8)
    assert small.latent_shape == (5, 2, 2, 8)
    others = [small, tiny_wan.policy(folders(), text_length=4), tiny_wan.policy(folders("euler"))]
    assert len({own.identity, *(other.identity for other in others)}) == 4
    copy = shutil.copytree(folders(), tmp_path / "copy")
    assert tiny_wan.policy(copy).identity == own.identity


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_frames": 8}, "num_frames=8: Wan 2.1 text-to-video makes 4k"),
        ({"shift": 0.0}, "shift=0.0: give a number, above 0"),
        ({"weighting": "snr"}, "weighting=snr"),
        ({"lora": {"rank": 2}}, "lora=.*give it _target_=ipo_lightning.backbones.wan.Lora"),
    ],
)
def test_wrong_settings_are_refused_at_once(
    folders: Folders, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        tiny_wan.policy(folders(), **settings)


def test_sizes_off_the_grid_are_refused(folders: Folders) -> None:
    with pytest.raises(InputError, match="16 x 20 pixels; give multiples of 8"):
        _ = tiny_wan.policy(folders(), width=20).latent_shape


INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        (INDEX, {"_class_name": "WanImageToVideoPipeline"}, "is a WanImageToVideoPipeline"),
        (INDEX, {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "Wan 2.2 A14B"),
        (INDEX, {"boundary_ratio": 0.875}, "Wan 2.2 A14B"),
        (INDEX, {"expand_timesteps": True}, "Wan 2.2 TI2V"),
        ("transformer/config.json", {"in_channels": 12}, "needs an image or a video"),
        (SCHEDULER, {"prediction_type": "epsilon"}, "prediction_type=epsilon is not Wan"),
        (SCHEDULER, {"use_flow_sigmas": False}, "use_flow_sigmas=False is not Wan"),
    ],
)
def test_other_models_are_refused_by_name(
    folders: Folders, tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    policy = tiny_wan.policy(changed(folders(), tmp_path / "odd", file, **changes))
    asks = [policy.objective] if file == SCHEDULER else [policy.build, lambda: policy.latent_shape]
    for ask_it in asks:
        with pytest.raises(InputError, match=said):
            ask_it()


def test_a_folder_of_another_family_is_refused_by_name(folders: Folders, tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path / "cogvideox")
    with pytest.raises(InputError, match="is a CogVideoXPipeline; Wan 2.1 text-to-video is a Wan"):
        _ = tiny_wan.policy(folder).latent_shape
    with pytest.raises(InputError, match="is a WanPipeline; CogVideoX is a CogVideoXPipeline"):
        _ = tiny.policy(folders()).latent_shape
