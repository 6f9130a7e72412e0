"""HPSv3 on a tiny Qwen2-VL with upstream's file: the readout by hand, layer by layer."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from ipo_lightning.critics.pretrained.published_texts import PublishedText, sha256
from ipo_lightning.critics.protocols import PointCritic
from ipo_lightning.critics.scorers import hpsv3
from ipo_lightning.critics.scorers.hpsv3 import FILE, TOKEN, HPSv3, renamed
from ipo_lightning.errors import InputError
from tests.helpers import tiny_vlm

TEMPLATE = tiny_vlm.QWEN.replace("'video'", "'image'").replace("video_pad", "image_pad")
PROMPT = "a red ring <|im_end|> moving"
RUBRIC = f"\nRate the picture.\nIts prompt is {{text_prompt}}\n\nThe rating: {TOKEN}\n\nEND\n"
"""Upstream's words are not ours to ship; these are put together as they are."""


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny rubric is the one that is known."""
    known = PublishedText(sha256(RUBRIC), hpsv3.RUBRIC.url, hpsv3.RUBRIC.parts)
    monkeypatch.setattr(hpsv3, "RUBRIC", known)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_vlm.save_model(tmp_path_factory.mktemp("base"), "qwen2_vl")
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = processor.tokenizer.chat_template = TEMPLATE
    processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    return folder


def head(width: int) -> dict[str, Tensor]:
    """The layers of upstream's ranking head, some standing for activation and dropout."""
    generator = torch.Generator().manual_seed(3)
    sizes = {"0": (1024, width), "3": (16, 1024), "5": (2, 16)}
    return {
        f"rm_head.{layer}.{name}": torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        for layer, size in sizes.items()
        for name, shape in (("weight", size), ("bias", size[:1]))
    }


@pytest.fixture(scope="module")
def weights(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file as upstream saved it: transformers 4.45's names, cut embeddings."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(base)
    rows = len(AutoProcessor.from_pretrained(base).tokenizer) + 1
    model.resize_token_embeddings(rows)
    old = {"model.visual.": "visual.", "model.language_model.": "model."}
    state = {}
    for name, value in model.state_dict().items():
        new = next((name.replace(a, b) for a, b in old.items() if name.startswith(a)), name)
        state[new] = value.clone()
    assert {name.partition(".")[0] for name in state} == {"visual", "model", "lm_head"}
    folder = tmp_path_factory.mktemp("hpsv3")
    save_file(state | head(tiny_vlm.HIDDEN), folder / FILE)
    before, after = RUBRIC.split("The rating", 1)
    after = f"The rating{after}"
    (folder / "collator.py").write_text(
        f"INSTRUCTION = {before!r}\nOTHER = 1\nprompt_with_special_token = {after!r}\n"
    )
    return folder


@torch.no_grad()
def by_hand(base: Path, weights: Path, frame: Tensor) -> Tensor:
    """(2,) mean and log deviation, the way upstream computes them: embeddings put together first,
    then a language model that counts positions by itself."""
    processor = AutoProcessor.from_pretrained(base)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]})
    model = Qwen2VLForConditionalGeneration.from_pretrained(base)
    state = load_file(weights / FILE)
    model.resize_token_embeddings(len(processor.tokenizer))
    model.get_input_embeddings().weight.copy_(state["model.embed_tokens.weight"])
    picture = Image.fromarray(frame.numpy()).resize((448, 448), Image.Resampling.BICUBIC)
    words = RUBRIC.format(text_prompt=PROMPT.replace("<|im", "< |im"))
    content = [{"type": "image"}, {"type": "text", "text": words}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    batch = processor(text=[text], images=[picture], return_tensors="pt")
    ids = batch["input_ids"]
    embeddings = model.get_input_embeddings()(ids)
    seen = model.model.visual(batch["pixel_values"], grid_thw=batch["image_grid_thw"]).pooler_output
    embeddings[ids == model.config.image_token_id] = seen
    places = torch.arange(ids.shape[1])[None]
    hidden = model.model.language_model(inputs_embeds=embeddings, position_ids=places)
    state_at = hidden.last_hidden_state[ids == processor.tokenizer.convert_tokens_to_ids(TOKEN)]
    for layer in ("0", "3", "5"):
        state_at = F.linear(
            state_at, state[f"rm_head.{layer}.weight"], state[f"rm_head.{layer}.bias"]
        )
        state_at = state_at if layer == "5" else state_at.relu()
    return state_at[0]


def critic(base: Path, weights: Path, frames: int = 2, **more: str) -> HPSv3:
    words = base.parent / "words.txt"
    words.write_text(RUBRIC)
    settings = {"dtype": "float32", "prompt_text": str(words)} | more
    return HPSv3(str(weights), base=str(base), frames=frames, **settings)  # type: ignore[arg-type]


def test_the_readout_by_hand(base: Path, weights: Path) -> None:
    clip = tiny_vlm.clip(0, size=(64, 64))
    rating = critic(base, weights).rate([clip], [PROMPT])[0]
    first, last = (by_hand(base, weights, clip.frames[at]) for at in (0, -1))
    assert abs(first[0] - last[0]) > 1e-3  # the picture matters
    raw = json.loads(rating.raw)
    assert raw["preference"] == pytest.approx([first[0].item(), last[0].item()], abs=1e-4)
    assert raw["sigma"] == pytest.approx([first[1].exp().item(), last[1].exp().item()], abs=1e-4)
    assert rating.score == rating.dims["preference"]
    assert rating.score == pytest.approx((first[0] + last[0]).item() / 2, abs=1e-4)
    deviation = (first[1].exp() + last[1].exp()).item() / 2
    assert rating.certainty == pytest.approx(1 / (1 + deviation), rel=1e-3)
    assert list(rating.dims) == ["preference"]


@pytest.mark.slow
def test_batch_and_order_do_not_change_a_bit(base: Path, weights: Path) -> None:
    one = critic(base, weights)
    assert isinstance(one, PointCritic)
    clips = [tiny_vlm.clip(0), tiny_vlm.clip(1, frames=1), tiny_vlm.clip(2)]
    prompts = ["a ring", "a red cross moving", "a ring"]
    together = one.rate(clips, prompts)
    alone = [one.rate([c], [p])[0] for c, p in zip(clips, prompts, strict=True)]
    assert together == alone == one.rate(clips[::-1], prompts[::-1])[::-1]
    one.release()
    assert not one.loaded


def test_the_rubric_is_put_together_of_upstreams_constants(base: Path, weights: Path) -> None:
    """Or given as a text; where it comes from makes no other critic."""
    clip = tiny_vlm.clip(0, size=(64, 64))
    script = critic(base, weights, prompt_text=str(weights / "collator.py"))
    assert script.rate([clip], [PROMPT]) == critic(base, weights).rate([clip], [PROMPT])
    none = HPSv3(str(weights), base=str(base), frames=2, dtype="float32")
    assert none.identity == script.identity == critic(base, weights).identity


def test_words_that_are_missing_are_missed_before_the_weights(
    base: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"curl -LO https://.*/MizzenAI/HPSv3/\w{40}/"):
        HPSv3(str(tmp_path), base=str(base)).load("cpu")
    (tmp_path / "words.txt").write_text(RUBRIC + "x")
    with pytest.raises(InputError, match="does not have the prompt text"):
        critic(base, weights, prompt_text=str(tmp_path / "words.txt"))


def test_both_layouts_of_names_are_read(base: Path, weights: Path) -> None:
    model = Qwen2VLForConditionalGeneration.from_pretrained(base)
    new = renamed(model.state_dict() | head(tiny_vlm.HIDDEN))
    assert new.keys() == renamed(load_file(weights / FILE)).keys()
    assert {name.partition(".")[0] for name in new} == {"backbone", "ranks"}


def test_identity_tells_weights_base_and_settings_apart(
    base: Path, weights: Path, tmp_path: Path
) -> None:
    other = {name: value + 1 for name, value in load_file(weights / FILE).items()}
    save_file(other, tmp_path / FILE)
    kinds = [
        critic(base, weights), critic(base, tmp_path), critic(base, weights, frames=3),
        critic(base, weights, over="min"), critic(base, weights, dtype="bfloat16"),
    ]  # fmt: skip
    assert len({one.identity for one in kinds}) == len(kinds)


def test_what_does_not_fit_is_refused_in_a_sentence(
    base: Path, weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        HPSv3("./nowhere", base=str(base))
    with pytest.raises(InputError, match=f"there is no {FILE}"):
        critic(base, tmp_path).load("cpu")
    state = load_file(weights / FILE)
    state.pop("rm_head.5.bias")
    save_file(state, tmp_path / FILE)
    with pytest.raises(InputError, match="has embeddings for 0 tokens"):
        save_file(head(tiny_vlm.HIDDEN), tmp_path / FILE)
        critic(base, tmp_path).load("cpu")
    save_file(state, tmp_path / FILE)
    with pytest.raises(InputError, match=r"1 are missing.*ranks\.5\.bias"):
        critic(base, tmp_path).load("cpu")
