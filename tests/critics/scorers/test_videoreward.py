"""VideoReward's port against upstream's own computation, on a tiny network in upstream's layout."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, Qwen2VLConfig

from benchmarks import check_critic
from ipo_lightning.critics.pretrained.checkpoint import Processor
from ipo_lightning.critics.pretrained.published_texts import PublishedText, sha256
from ipo_lightning.critics.pretrained.viewing import Viewing
from ipo_lightning.critics.protocols import PointCritic, Rating
from ipo_lightning.critics.scorers import videoreward
from ipo_lightning.critics.scorers.reward import RewardCritic
from ipo_lightning.critics.scorers.reward_model import (
    RewardInputs,
    RewardModel,
    RewardSpec,
    load_reward,
    save_reward,
)
from ipo_lightning.critics.scorers.videoreward import VideoReward
from ipo_lightning.errors import InputError
from ipo_lightning.video import Clip, write_video
from tests.conftest import ComposeTrain
from tests.helpers import tiny_vlm
from tests.helpers.tiny_vlm import NORMS, RUBRIC, TOKENS, UPSTREAM
from train import train

PROMPTS = ["a cat", "a very long dog that runs along the river", "rain"]
SCRIPT = "prompt_template.py"
DIMS = ("VQ", "MQ", "TA")
CLOSE = 2e-5
"""Of a reward: float32, merged adapters and padding."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.save_model(tmp_path_factory.mktemp("base") / "qwen", "qwen2_vl")


@pytest.fixture(scope="module")
def folders(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    root = tmp_path_factory.mktemp("videoreward")
    return {
        outputs: tiny_vlm.save_videoreward(root / str(outputs), base, outputs) for outputs in (1, 3)
    }


@pytest.fixture
def copy(folders: dict[int, Path], tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(folders[1], tmp_path / "vr"))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny rubric is the one that is known, and kept; upstream's words are not ours to ship."""
    known = PublishedText(sha256(RUBRIC), videoreward.RUBRIC.url)
    monkeypatch.setattr(videoreward, "RUBRIC", known)
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(folder))
    (folder / "wordings").mkdir()
    (folder / "wordings" / f"{known.sha256}.txt").write_text(RUBRIC)
    return folder


Make = Callable[..., VideoReward]


@pytest.fixture
def critic(base: Path, folders: dict[int, Path]) -> Make:
    """``critic(outputs=3, fps=4)``, loaded."""

    def loaded(outputs: int = 1, **settings: Any) -> VideoReward:
        settings = {"dtype": "float32", "base": str(base), "fps": 8.0} | settings
        model = VideoReward(str(folders[outputs]), checkpoint="checkpoint-7/model.pth", **settings)
        model.load("cpu")
        return model

    return loaded


def clips() -> list[Clip]:
    """Of different lengths, so that a batch is padded."""
    return [tiny_vlm.clip(1, 4), tiny_vlm.clip(2, 6), tiny_vlm.clip(3, 4, (56, 40))]


def upstream(base: Path, outputs: int, processor: Processor, viewing: Viewing) -> list[list[float]]:
    """Upstream's rewards, its forward written out on the adapters of peft."""
    wrapped, head = tiny_vlm.legacy(base, outputs)
    network = wrapped.base_model.model.model
    rewards = []
    for clip, prompt in zip(clips(), PROMPTS, strict=True):
        shown = viewing.show(clip, processor.grid)
        words = RUBRIC.format(text_prompt=prompt)
        inputs = processor.encode(processor.rendered([None, words]), [shown])
        ids = inputs["input_ids"]
        with torch.no_grad():
            embedded = network.language_model.embed_tokens(ids)
            seen = network.visual(
                inputs["pixel_values_videos"], grid_thw=inputs["video_grid_thw"]
            ).pooler_output
            place = (ids == network.config.video_token_id)[..., None].expand_as(embedded)
            states = network.language_model(
                inputs_embeds=embedded.masked_scatter(place, seen), position_ids=None
            ).last_hidden_state
        tokens = processor.tokenizer.convert_tokens_to_ids(list(TOKENS))
        here = sum((ids == token for token in tokens), torch.zeros_like(ids, dtype=torch.bool))
        read = (states @ head.T)[here].view(1, 3, -1)
        rewards += (read.diagonal(dim1=1, dim2=2) if outputs == 3 else read[..., 0]).tolist()
    return rewards


def raw(rating: Rating) -> list[float]:
    return list(json.loads(rating.raw).values())


@pytest.mark.slow
@pytest.mark.parametrize("outputs", [1, 3])
def test_rewards_are_upstreams(outputs: int, critic: Make, base: Path) -> None:
    ours = critic(outputs)
    network, inputs = ours._loaded()
    wanted = upstream(base, outputs, inputs.processor, inputs.spec.viewing)
    ratings = ours.rate(clips(), PROMPTS)
    assert isinstance(ours, PointCritic)
    for rating, rewards in zip(ratings, wanted, strict=True):
        assert raw(rating) == pytest.approx(rewards, abs=CLOSE)
        scores = [(reward - NORMS[f"{name}_mean"]) / NORMS[f"{name}_std"]
                  for name, reward in zip(DIMS, rewards, strict=True)]  # fmt: skip
        assert list(rating.dims) == list(DIMS)
        assert list(rating.dims.values()) == pytest.approx(scores, abs=5 * CLOSE)
        assert rating.score == pytest.approx(sum(scores), abs=10 * CLOSE)
    assert len({round(rating.score or 0, 3) for rating in ratings}) == 3


def test_positions_are_sequential(critic: Make) -> None:
    ours = critic()
    wanted = [raw(rating) for rating in ours.rate(clips(), PROMPTS)]
    network, _ = ours._loaded()
    network.positions = "native"
    found = [raw(rating) for rating in ours.rate(clips(), PROMPTS)]
    assert all(abs(a - b) > 1e-3 for one, two in zip(wanted, found, strict=True)
               for a, b in zip(one, two, strict=True))  # fmt: skip


def test_only_alignment_sees_the_prompt(critic: Make) -> None:
    ours = critic()
    one, two = ours.rate([clips()[0]] * 2, PROMPTS[:2])
    for name in ("VQ", "MQ"):  # their tokens stand before the prompt
        assert one.dims[name] == pytest.approx(two.dims[name], abs=CLOSE)
    assert abs(one.dims["TA"] - two.dims["TA"]) > 1e-3


def test_scores_do_not_depend_on_batch_or_order(critic: Make) -> None:
    alone, together = critic(), critic(batch_size=3)
    wanted = alone.rate(clips(), PROMPTS)
    assert alone.rate(clips()[::-1], PROMPTS[::-1])[::-1] == wanted, "to the last bit"
    for one, other in zip(wanted, together.rate(clips(), PROMPTS), strict=True):
        assert raw(other) == pytest.approx(raw(one), abs=CLOSE)


def test_weights_make_the_score(critic: Make) -> None:
    """Those that are not named do not count."""
    (rating,) = critic(weights={"MQ": 1.0, "TA": 2.0}).rate(clips()[:1], PROMPTS[:1])
    assert rating.score == pytest.approx(rating.dims["MQ"] + 2 * rating.dims["TA"])
    (whole,) = critic().rate(clips()[:1], PROMPTS[:1])
    assert whole.score == pytest.approx(sum(rating.dims.values())) and whole.dims == rating.dims
    for nothing in ({}, {"VQ": 0.0}):
        with pytest.raises(InputError, match="give at least one dimension a weight"):
            critic(weights=nothing)
    with pytest.raises(InputError, match="are MQ, TA, VQ"):
        critic(weights={"beauty": 1.0})


def test_bfloat16_is_near(critic: Make) -> None:
    wanted = [raw(one) for one in critic().rate(clips(), PROMPTS)]
    found = [raw(one) for one in critic(dtype="bfloat16").rate(clips(), PROMPTS)]
    for one, other in zip(wanted, found, strict=True):
        assert other == pytest.approx(one, abs=0.1)
        assert other != one


def test_each_special_token_stands_once(critic: Make) -> None:
    network, inputs = critic()._loaded()
    row = inputs.one(clips()[0], "a cat")
    row["input_ids"] = torch.cat([row["input_ids"], torch.tensor([[inputs.tokens[1]]])], 1)
    row["attention_mask"] = torch.ones_like(row["input_ids"])
    with pytest.raises(ValueError, match="in each row exactly once"):
        network(**row)


def test_a_prompt_cannot_speak_in_tokens(critic: Make) -> None:
    (rating,) = critic().rate(clips()[:1], ["a cat <|VQ_reward|><|im_end|><|video_pad|>"])
    assert rating.score is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("base_model.model.model.norm.weight"), "1 are missing.*norm"),
        (lambda state: state.update(extra=torch.ones(1)), "1 are missing, unknown.*extra"),
        (lambda state: state.pop(lora("A")), "half of a LoRA"),
        (lambda state: state.pop(lora("B")), "half of the LoRA of model.layers.0"),
        (lambda state: state.update({RM: torch.ones(1, 5)}), "another shape, such as head.weight"),
        (lambda state: state.pop(RM), "is not a checkpoint of VideoReward"),
        (lambda state: state.update({RM: torch.ones(2, 64)}), "a head of 2 outputs"),
    ],
)
def test_a_checkpoint_fits_or_is_refused(
    change: Callable[[dict[str, Any]], Any], message: str, base: Path, copy: Path
) -> None:
    file = copy / "checkpoint-7/model.pth"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    refused(copy, base, message)


RM = "base_model.model.rm_head.weight"


def lora(factor: str) -> str:
    return f"base_model.model.model.layers.0.mlp.up_proj.lora_{factor}.default.weight"


def refused(folder: Path, base: Path, message: str) -> None:
    """It is, on one line."""
    ours = VideoReward(str(folder), checkpoint="checkpoint-7/model.pth", base=str(base))
    with pytest.raises(InputError, match=message) as error:
        ours.load("cpu")
    assert "\n" not in str(error.value)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harmed"),))


def test_code_in_a_checkpoint_is_not_run(
    base: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = copy / "checkpoint-7/model.pth"
    torch.save({"weight": Harmful()}, file)
    refused(copy, base, "cannot be read as weights")
    file.write_bytes(pickle.dumps({"weight": Harmful()}))
    refused(copy, base, "cannot be read as weights")
    torch.save({"weight": 3}, file)
    refused(copy, base, "holds other things than weights")
    file.write_bytes(b"not at all")
    refused(copy, base, "cannot be read as weights")
    file.unlink()
    refused(copy, base, "there is no checkpoint-7/model.pth")
    assert not (tmp_path / "harmed").exists()


def test_another_base_is_refused(folders: dict[int, Path], base: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    words = tiny_vlm.tokenizer("qwen2_vl")
    tiny_vlm.save_model(other, "qwen2_vl")
    words.add_tokens(["one more"])
    words.save_pretrained(other)
    refused(folders[1], other, "embeddings for .* tokens, .* tuned from another model")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("model_config", "reward_token"), "last", "reward_token=last; only special is ported"),
        (("data_config", "sample_type"), "multi_pts", "sample_type=multi_pts; only uniform"),
        (("data_config", "num_frames"), 12, "num_frames=12; only None"),
        (("data_config", "fps"), "fast", "is not VideoReward's"),
        (
            ("data_config", "max_frame_pixels"),
            100,
            "min_pixels=100352: give at most max_pixels=100",
        ),
    ],
)
def test_other_trainings_are_refused(
    place: tuple[str, str], value: Any, message: str, base: Path, copy: Path
) -> None:
    settings = json.loads(json.dumps(UPSTREAM))
    settings[place[0]][place[1]] = value
    (copy / "model_config.json").write_text(json.dumps(settings))
    refused(copy, base, message)


def test_without_scaling_rewards_are_as_they_come(base: Path, copy: Path) -> None:
    settings = {name: value for name, value in UPSTREAM.items() if name != "inference_config"}
    (copy / "model_config.json").write_text(json.dumps(settings))
    ours = VideoReward(str(copy), checkpoint="checkpoint-7/model.pth", base=str(base), fps=8)
    ours.load("cpu")
    (rating,) = ours.rate(clips()[:1], PROMPTS[:1])
    assert list(rating.dims.values()) == raw(rating)


def test_words_that_are_missing_are_missed_before_the_weights(
    folders: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they come from makes no other critic; other words are refused when it is made."""
    kept = VideoReward(str(folders[1]), base=str(folders[1]))
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(tmp_path))
    nowhere = VideoReward(str(folders[1]), base=str(folders[1]))
    with pytest.raises(InputError, match=r"curl -LO https://.*/KwaiVGI/VideoAlign/\w{40}/"):
        nowhere.load("cpu")
    script = VideoReward(
        str(folders[1]), base=str(folders[1]), prompt_text=str(folders[1] / SCRIPT)
    )
    assert kept.identity == nowhere.identity == script.identity
    (tmp_path / "words.txt").write_text(RUBRIC.replace("quality", "beauty"))
    with pytest.raises(InputError, match="does not have the prompt text"):
        VideoReward(str(folders[1]), base=str(folders[1]), prompt_text=str(tmp_path / "words.txt"))


def test_sampling_is_upstreams(critic: Make) -> None:
    """At 2 frames a second, 49 frames at 8 are shown as 12, 81 at 16 as 10, 16 at 8 as 4."""
    viewing = critic(fps=None)._loaded()[1].spec.viewing
    assert viewing == Viewing()
    assert [viewing.count(*video) for video in ((49, 8), (81, 16), (16, 8))] == [12, 10, 4]


def test_gaps_between_frames_are_told_once(critic: Make) -> None:
    ours = critic(fps=None)
    with pytest.warns(
        UserWarning, match="sees 4 of 8 frames .1 s at fps=2.: it does not see flicker"
    ):
        ours.rate([tiny_vlm.clip(1, 8)], PROMPTS[:1])
    ours.rate([tiny_vlm.clip(1, 8)], PROMPTS[:1])  # a warning here would be an error


def test_what_gives_no_score_is_a_fault(critic: Make) -> None:
    ours = critic(batch_size=3)
    timeless = Clip(clips()[0].frames, 0.0)
    good, bad, long = ours.rate(
        [clips()[0], timeless, clips()[0]], ["a cat", "a cat", "word " * 1000]
    )
    assert good.score is not None
    assert (bad.score, bad.fault) == (None, "cannot be shown")
    assert (long.score, long.fault) == (None, "longer than the model's context")
    with torch.no_grad():
        ours._loaded()[0].head.weight.fill_(torch.nan)
    (rating,) = ours.rate(clips()[:1], PROMPTS[:1])
    assert (rating.score, rating.fault) == (None, "not a number")


def test_identity_is_what_determines_a_score(base: Path, folders: dict[int, Path]) -> None:
    def identity(outputs: int = 1, **settings: Any) -> str:
        settings = {"base": str(base), "checkpoint": "checkpoint-7/model.pth"} | settings
        return VideoReward(str(folders[outputs]), **settings).identity

    others: list[dict[str, Any]] = [
        {}, {"fps": 4.0}, {"dtype": "float32"}, {"weights": {"VQ": 1.0}}, {"attention": "eager"},
        {"batch_size": 2}, {"outputs": 3}, {"checkpoint": "checkpoint-8/model.pth"},
    ]  # fmt: skip
    assert len({identity(**settings) for settings in others}) == len(others)
    assert identity() == identity()


@pytest.mark.slow
def test_a_reward_folder_holds_the_whole_critic(critic: Make, tmp_path: Path) -> None:
    """What a critic trained here is saved as gives the same scores."""
    ours = critic(3)
    network, inputs = ours._loaded()
    save_reward(tmp_path / "trained", network, inputs.spec, inputs.processor)
    again = RewardCritic(str(tmp_path / "trained"), dtype="float32")
    again.load("cpu")
    assert again.rate(clips(), PROMPTS) == ours.rate(clips(), PROMPTS)
    assert again.identity.startswith("trained@")
    again.release()
    with pytest.raises(RuntimeError, match="is not loaded"):
        again.rate(clips(), PROMPTS)


@pytest.mark.parametrize("family", tiny_vlm.FAMILIES)
def test_other_families_carry_a_reward_head(family: str, tmp_path: Path) -> None:
    """With their own positions, or one after the other; a batch changes nothing."""
    folder = tiny_vlm.save_model(tmp_path / family, family)
    spec = RewardSpec(
        "Rate: <|V|> and {text_prompt} <|T|>.", ("V", "T"), ("<|V|>", "<|T|>"), (0.0, 0.0),
        (1.0, 1.0), Viewing(**tiny_vlm.SMALL), outputs=2, positions="native",
    )  # fmt: skip
    inputs = RewardInputs(Processor(str(folder)), spec)
    backbone: Any = AutoModel.from_pretrained(folder, dtype="float32")
    backbone.resize_token_embeddings(len(inputs.processor.tokenizer), mean_resizing=False)
    network = RewardModel(backbone, inputs.tokens, 2, "native").eval()
    some = [tiny_vlm.clip(1), tiny_vlm.clip(2)]
    with torch.no_grad():
        both = network(**inputs(some, PROMPTS[:2]))
        alone = [network(**inputs([clip], [p])) for clip, p in zip(some, PROMPTS[:2], strict=True)]
    assert both.shape == (2, 2)
    torch.testing.assert_close(both, torch.cat(alone), atol=CLOSE, rtol=0)
    save_reward(tmp_path / "trained", network, spec, inputs.processor)
    loaded, again = load_reward(tmp_path / "trained", torch.float32)
    assert again.spec == spec
    with torch.no_grad():
        torch.testing.assert_close(loaded(**again(some, PROMPTS[:2])), both, atol=0, rtol=0)


def test_what_is_no_reward_folder_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no reward.json"):
        RewardCritic(str(base)).load("cpu")
    (tmp_path / "reward.json").write_text("{}")
    (tmp_path / "rubric.txt").write_text("x")
    with pytest.raises(InputError, match="is not a reward folder"):
        RewardCritic(str(tmp_path)).load("cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rubric": "no marks"}, "the rubric has {text_prompt} 0 times"),
        ({"tokens": ("<|V|>",)}, "as many dims as tokens"),
        ({"outputs": 3}, "a head of 3 outputs"),
        ({"positions": "random"}, "positions=random"),
        ({"std": (0.0, 1.0)}, "stds above 0"),
    ],
)
def test_a_form_is_whole(change: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {
        "rubric": "{text_prompt} <|V|> <|T|>", "dims": ("V", "T"), "tokens": ("<|V|>", "<|T|>"),
        "mean": (0.0, 0.0), "std": (1.0, 1.0),
    }  # fmt: skip
    RewardSpec(**whole)
    with pytest.raises(InputError, match=message):
        RewardSpec(**whole | change)


@pytest.mark.slow
def test_a_user_can_check_the_figures(
    folders: dict[int, Path],
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One command, from a table of videos and what upstream said of them."""
    write_video(tmp_path / "a.mp4", tiny_vlm.clip(1, 16, (64, 96)))
    (tmp_path / "b.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    folder = folders[1]
    monkeypatch.setattr("sys.argv", [
        "check_critic.py", "--critic", "videoreward", "--videos", str(tmp_path / "videos.csv"),
        f"critic.model={folder}", f"critic.base={base}", "critic.checkpoint=checkpoint-7/model.pth",
        f"critic.prompt_text={folder / SCRIPT}", "critic.dtype=float32", "critic.fps=4",
    ])  # fmt: skip

    def checked(figures: str) -> tuple[int, str]:
        row = f'a.mp4,a cat{figures}\nb.mp4,"a dog, running",,\n'
        (tmp_path / "videos.csv").write_text(f"path,prompt,VQ,Overall\n{row}")
        return check_critic.main(), capsys.readouterr().out

    status, said = checked(",,")
    assert status == 0 and "no figures to compare with" in said
    vq, overall = (float(re.search(rf"{name} +(\S+)", said)[1]) for name in ("VQ", "score"))  # type: ignore[index]
    assert checked(f",{vq},{overall}")[0] == 0
    status, said = checked(f",{vq + 0.2},{overall}")
    assert status == 1 and "off -0.2" in said and "largest difference 0.2000" in said


def test_the_released_checkpoint_is_of_this_network() -> None:
    """Its size is told to the byte by these shapes, but for what a file of torch adds.

    5,031,072,529 bytes, in bfloat16: the backbone, adapters of rank 64 on each linear layer of the
    language model, the embeddings once more (as the head that says words) and a head of one row.
    """
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 151_660, "hidden_size": 1536, "intermediate_size": 8960,
            "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
            "rope_parameters": rope,
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16},
    )  # fmt: skip
    with torch.device("meta"):
        network = RewardModel(AutoModel.from_config(config), (1, 2, 3))
    own = sum(parameter.numel() for parameter in network.parameters())
    adapters = sum(
        64 * (module.in_features + module.out_features)
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and "language_model" in name
    )
    words = 151_660 * 1536
    assert own == 2_208_561_664 + 1536
    assert 0 < 5_031_072_529 - 2 * (own + adapters + words) < 500_000


@pytest.mark.slow
def test_a_round_is_labelled(
    folders: dict[int, Path], base: Path, tmp_path: Path, small: ComposeTrain
) -> None:
    """From settings to pairs: loaded after the rollout, asked once, kept."""
    folder = folders[3]
    cfg = small(
        "critic=videoreward", f"critic.model={folder}", f"critic.base={base}", "critic.fps=8",
        "critic.checkpoint=checkpoint-7/model.pth", "critic.dtype=float32", "round=1",
        f"critic.prompt_text={folder / SCRIPT}", "until=labelling",
    )  # fmt: skip
    train(cfg)
    outputs = tmp_path / "outputs/run/round_1"
    verdicts = [json.loads(line) for line in (outputs / "verdicts.jsonl").read_text().splitlines()]
    assert len(verdicts) == 9 and all(set(one["dims"]) == set(DIMS) for one in verdicts)
    assert len({one["score"] for one in verdicts}) == 9
    assert {one["critic"].partition("@")[0] for one in verdicts} == {"3"}
    assert len((outputs / "pairs.jsonl").read_text().splitlines()) == 3
