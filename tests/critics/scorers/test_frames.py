"""Image scorers on frames, on tiny models of the real classes: every number read out by hand."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
)

from ipo_lightning.critics.protocols import PointCritic
from ipo_lightning.critics.scorers.frames import ClipCritic
from ipo_lightning.errors import InputError
from ipo_lightning.video import Clip
from tests.helpers import tiny_clip

PROMPTS = ("a ring", "a red cross", "a ring")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.save_model(tmp_path_factory.mktemp("clip"))


def clip(seed: int, frames: int = 9, size: tuple[int, int] = (40, 56)) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(frames, 3, 5, 7, generator=generator)
    fine = torch.nn.functional.interpolate(noise, size=size, mode="bilinear")
    pixels = (fine * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return Clip(pixels.contiguous(), 8.0)


CLIPS = [clip(0), clip(1, frames=5), clip(2, size=(48, 48))]


def logits(folder: Path, frames: Tensor, prompt: str) -> Tensor:
    """transformers' own ``logits_per_image``, (K,)."""
    model = CLIPModel.from_pretrained(folder)
    images = [Image.fromarray(frame.numpy()) for frame in frames]
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=images, return_tensors="pt")
    words = PreTrainedTokenizerFast.from_pretrained(folder)(prompt, return_tensors="pt")
    with torch.no_grad():
        return model(**pixels, **words).logits_per_image[:, 0]


def test_scaled_similarity_is_transformers_own_logits(clip_folder: Path) -> None:
    critic = ClipCritic(str(clip_folder), scaled=True, frames=3)
    rating = critic.rate([CLIPS[0]], ["a ring"])[0]
    wanted = logits(clip_folder, CLIPS[0].frames[[0, 4, 8]], "a ring")
    assert wanted.std() > 1e-2  # frames differ, or the test would show nothing
    assert rating.score == pytest.approx(wanted.mean().item(), rel=1e-5)
    assert rating.dims == {"text": rating.score}
    assert json.loads(rating.raw)["text"] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_plain_similarity_is_the_cosine(clip_folder: Path) -> None:
    scale = CLIPModel.from_pretrained(clip_folder).logit_scale.exp().item()
    plain = ClipCritic(str(clip_folder), frames=3).rate([CLIPS[0]], ["a ring"])[0].score
    wanted = logits(clip_folder, CLIPS[0].frames[[0, 4, 8]], "a ring").mean().item() / scale
    assert plain == pytest.approx(wanted, rel=1e-5)
    assert -1 < wanted < 1


def test_the_worst_frame_counts_if_asked(clip_folder: Path) -> None:
    critic = ClipCritic(str(clip_folder), scaled=True, frames=4, over="min")
    frames = CLIPS[0].frames[[0, 3, 5, 8]]
    wanted = logits(clip_folder, frames, "a ring").min().item()
    assert critic.rate([CLIPS[0]], ["a ring"])[0].score == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_batch_and_order_do_not_change_a_bit(clip_folder: Path) -> None:
    critic = ClipCritic(str(clip_folder))
    assert isinstance(critic, PointCritic)
    together = critic.rate(CLIPS, PROMPTS)
    backwards = critic.rate(CLIPS[::-1], PROMPTS[::-1])[::-1]
    alone = [critic.rate([one], [prompt])[0] for one, prompt in zip(CLIPS, PROMPTS, strict=True)]
    assert together == backwards == alone
    assert len({rating.score for rating in together}) == 3
    critic.release()
    assert critic.rate(CLIPS, PROMPTS) == together  # loads by itself


def test_frames_in_another_order_score_alike(clip_folder: Path) -> None:
    """The blindness that the docs tell of."""
    critic = ClipCritic(str(clip_folder), frames=9)
    shuffled = Clip(CLIPS[0].frames.flip(0), 8.0)
    there, back = critic.rate([CLIPS[0], shuffled], ["a ring"] * 2)
    assert there.score == pytest.approx(back.score, abs=1e-6)


def test_pictures_are_prepared_the_same_without_torchvision(clip_folder: Path) -> None:
    """Frames as arrays, by PIL: what the processor makes of pictures."""
    processor = ClipCritic(str(clip_folder)).processors[1]
    assert isinstance(processor, CLIPImageProcessorPil)
    frame = CLIPS[0].frames[0]
    arrays = processor(images=[frame.numpy()], return_tensors="pt")["pixel_values"]
    pictures = processor(images=[Image.fromarray(frame.numpy())], return_tensors="pt")
    assert torch.equal(arrays, pictures["pixel_values"])
    other = AutoImageProcessor.from_pretrained(clip_folder)
    assert arrays.shape == other(images=[frame.numpy()], return_tensors="pt")["pixel_values"].shape


@pytest.mark.slow
def test_a_long_prompt_is_cut_and_told_of_once(clip_folder: Path) -> None:
    critic = ClipCritic(str(clip_folder))
    long = "a red ring moving left and right"
    longer, same = critic.rate([CLIPS[0]] * 2, [long, long[: tiny_clip.CONTEXT - 2]])
    assert longer.score == same.score
    with pytest.warns(UserWarning, match="1 prompts are longer than the 16 tokens"):
        critic.release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        critic.rate([CLIPS[0]], [long])
        critic.release()


def aesthetic_file(folder: Path, suffix: str, width: int = tiny_clip.WIDTH) -> tuple[str, Tensor]:
    weight = torch.linspace(-1, 1, width)[None]
    tensors = {"weight": weight, "bias": torch.tensor([5.0])}
    path = folder / f"head{suffix}"
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    return str(path), weight


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_aesthetic_head_by_hand(clip_folder: Path, tmp_path: Path, suffix: str) -> None:
    file, weight = aesthetic_file(tmp_path, suffix)
    weights = {"text": 2.0, "aesthetic": 0.5}
    critic = ClipCritic(str(clip_folder), aesthetic=file, weights=weights, frames=2)
    rating = critic.rate([CLIPS[0]], ["a ring"])[0]
    model = CLIPModel.from_pretrained(clip_folder)
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    pixels = processor(images=list(CLIPS[0].frames[[0, 8]].numpy()), return_tensors="pt")
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(**pixels).pooler_output)
        wanted = ((features / features.norm(dim=-1, keepdim=True)) @ weight[0] + 5) / 10
    assert rating.dims["aesthetic"] == pytest.approx(wanted.mean().item(), rel=1e-5)
    total = 2 * rating.dims["text"] + 0.5 * rating.dims["aesthetic"]
    assert rating.score == pytest.approx(total)


def test_bfloat16_is_near_float32_and_read_out_in_float32(clip_folder: Path) -> None:
    fine = ClipCritic(str(clip_folder), scaled=True).rate([CLIPS[0]], ["a ring"])[0].score
    coarse = ClipCritic(str(clip_folder), scaled=True, dtype="bfloat16")
    rating = coarse.rate([CLIPS[0]], ["a ring"])[0]
    assert fine is not None and rating.score == pytest.approx(fine, abs=0.5)
    values = torch.tensor(json.loads(rating.raw)["text"])
    assert not torch.equal(values.bfloat16().float(), values)


def test_what_is_not_a_number_is_a_fault_of_its_clip_alone(clip_folder: Path) -> None:
    critic = ClipCritic(str(clip_folder))
    critic.load("cpu")
    good = critic.rate([CLIPS[0]], ["a ring"])[0]
    critic._texts["broken"] = torch.full((tiny_clip.WIDTH,), math.nan)
    bad, same = critic.rate([CLIPS[0]] * 2, ["broken", "a ring"])
    assert bad.score is None and bad.fault == "not a number"
    assert same == good


def test_identity_tells_settings_weights_and_processor_apart(
    clip_folder: Path, tmp_path: Path
) -> None:
    other = tiny_clip.save_model(tmp_path / "other", seed=1)
    file, _ = aesthetic_file(tmp_path, ".pth")
    path = str(clip_folder)
    critics = [
        ClipCritic(path), ClipCritic(path, frames=4), ClipCritic(path, over="min"),
        ClipCritic(path, dtype="bfloat16"), ClipCritic(path, scaled=True), ClipCritic(str(other)),
        ClipCritic(path, processor=str(other)), ClipCritic(path, aesthetic=file),
        ClipCritic(path, aesthetic=file, weights={"aesthetic": 1.0}),
    ]  # fmt: skip
    assert len({critic.identity for critic in critics}) == len(critics)
    assert ClipCritic(path).identity == critics[0].identity


def test_wrong_settings_are_refused_in_a_sentence(clip_folder: Path, tmp_path: Path) -> None:
    path = str(clip_folder)
    for settings, match in (
        ({"frames": 0}, "frames=0: give a whole number, at least 1"),
        ({"over": "max"}, "over=max: choose one of mean, min"),
        ({"dtype": "float16"}, "dtype=float16"),
        ({"weights": {"aesthetic": 1.0}}, "needs the file of its head"),
        ({"weights": {}}, "give a weight"),
        ({"aesthetic": "nowhere.pth"}, "there is no such file"),
        ({"processor": "./nowhere"}, "processor=./nowhere"),
    ):
        with pytest.raises(InputError, match=match):
            ClipCritic(path, **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        ClipCritic("./nowhere")
    file, _ = aesthetic_file(tmp_path, ".pth", width=5)
    with pytest.raises(InputError, match="this model's head has"):
        ClipCritic(path, aesthetic=file).load("cpu")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"no tensors")
    with pytest.raises(InputError, match="cannot be read"):
        ClipCritic(path, aesthetic=str(broken)).load("cpu")
