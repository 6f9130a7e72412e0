"""What a critic lacks is found before videos are made for it, and before its weights are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForImageTextToText

from ipo_lightning.critics.combined.ensemble import Ensemble
from ipo_lightning.critics.pretrained.checkpoint import (
    INDEX,
    WEIGHTS,
    Processor,
    check_weights,
    origin,
)
from ipo_lightning.critics.pretrained.published_texts import PublishedText, sha256
from ipo_lightning.critics.protocols import check_ready
from ipo_lightning.critics.scorers import hpsv3, videoreward
from ipo_lightning.critics.scorers.frames import ClipCritic
from ipo_lightning.critics.scorers.gauged import GaugeCritic
from ipo_lightning.critics.scorers.hpsv3 import HPSv3
from ipo_lightning.critics.scorers.reward import RewardCritic
from ipo_lightning.critics.scorers.reward_model import (
    SPEC,
    RewardInputs,
    RewardModel,
    RewardSpec,
    save_reward,
)
from ipo_lightning.critics.scorers.videoreward import SETTINGS, VideoReward
from ipo_lightning.critics.stage.critique import CombinedCritique
from ipo_lightning.critics.vlm.local import LocalVLM
from ipo_lightning.errors import InputError
from ipo_lightning.storage.store import Store
from tests.conftest import ComposeTrain
from tests.helpers import tiny_clip, tiny_vlm
from tests.helpers.hub import hub_server
from train import train


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The rubrics that are known are the tests' own, and are there; no checkpoint is."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(tmp_path / "words"))
    (tmp_path / "words" / "wordings").mkdir(parents=True)
    for module in (hpsv3, videoreward):
        known = PublishedText(sha256(tiny_vlm.RUBRIC), module.RUBRIC.url)
        monkeypatch.setattr(module, "RUBRIC", known)
        (tmp_path / "words" / "wordings" / f"{known.sha256}.txt").write_text(tiny_vlm.RUBRIC)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vlm.save_model(tmp_path_factory.mktemp("base"), "qwen2_vl")


# -------------------------------------------------------------------- out of reach


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "named"),
    [
        ("critic=clip", "openai/clip-vit-large-patch14"),
        ("critic=pickscore", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        ("critic=hpsv3", "Qwen/Qwen2-VL-7B-Instruct"),
        ("critic=videoreward", "KlingTeam/VideoReward"),
        ("critic=vlm_pointwise", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("critic=ensemble", "openai/clip-vit-large-patch14"),
        ("critic=compared critic@critic.critic=clip", "openai/clip-vit-large-patch14"),
        ("eval_critic=clip", "openai/clip-vit-large-patch14"),
    ],
)
def test_without_a_network_nothing_is_made(
    choice: str, named: str, small: ComposeTrain, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"{named}: it cannot be read"):
        train(small(*choice.split(), "round=1"))
    assert not list(tmp_path.rglob("*.mp4")) and not list(tmp_path.rglob("*.safetensors"))


def test_a_hub_is_asked_for_weights_but_not_to_send_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tiny_clip.save_model(tmp_path / "clip")
    with hub_server(monkeypatch) as hub:
        hub.files = folder
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        )  # fmt: skip
        assert origin("path", "me/clip", None) == f"me/clip@{'1' * 40}"
        check_weights("path", "me/clip")
        assert hub.sent == ["config.json"]
        (folder / WEIGHTS).unlink()
        with pytest.raises(
            InputError, match=f"path=me/clip: it cannot be read: there is no {WEIGHTS}"
        ):
            check_weights("path", "me/clip")
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "1.bin", "b": "2.bin"}}))
        (folder / "1.bin").touch()
        with pytest.raises(
            InputError, match=r"path=me/clip: it cannot be read: there is no 2\.bin"
        ):
            check_weights("path", "me/clip")
        (folder / "2.bin").touch()
        check_weights("path", "me/clip")
        assert hub.sent == ["config.json", INDEX]


# -------------------------------------------------------------------- folders


def clip(folder: Path, base: Path) -> ClipCritic:
    return ClipCritic(str(tiny_clip.save_model(folder)))


def vlm(folder: Path, base: Path) -> LocalVLM:
    return LocalVLM(str(shutil.copytree(base, folder)))


def ranker(folder: Path, base: Path) -> HPSv3:
    folder.mkdir()
    shutil.copy(base / WEIGHTS, folder / hpsv3.FILE)
    return HPSv3(str(folder), base=str(base))


def tuned(folder: Path, base: Path) -> VideoReward:
    tiny_vlm.save_videoreward(folder, base)
    return VideoReward(str(folder), checkpoint="checkpoint-7/model.pth", base=str(base))


def reward(folder: Path, base: Path) -> RewardCritic:
    rubric = "Judge. <|Q|> of {text_prompt}"
    prompt_template = RewardSpec(rubric, ("Q",), ("<|Q|>",), (0.0,), (1.0,))
    inputs = RewardInputs(Processor(str(base)), prompt_template)
    backbone = AutoModel.from_pretrained(base)
    save_reward(folder, RewardModel(backbone, inputs.tokens), prompt_template, inputs.processor)
    return RewardCritic(str(folder))


Make = Callable[[Path, Path], Any]
MADE: dict[Make, str] = {clip: WEIGHTS, vlm: WEIGHTS, ranker: hpsv3.FILE, reward: WEIGHTS,
                         tuned: "checkpoint-7/model.pth"}  # fmt: skip
"""A critic in a folder -> the file of its weights."""


@pytest.mark.parametrize("make", MADE)
def test_a_folder_without_weights_is_refused(make: Make, base: Path, tmp_path: Path) -> None:
    """And one whose weights were cut off, or are the few lines that stand for a large file."""
    folder, name = tmp_path / "critic", MADE[make]
    critic = make(folder, base)
    check_ready(critic)
    weights = (folder / name).read_bytes()
    if name.endswith(".safetensors"):
        for wrong in (weights[:-9], b"version https://git-lfs.github.com/spec/v1\n", b""):
            (folder / name).write_bytes(wrong)
            with pytest.raises(InputError, match=f"{folder}: it cannot be read"):
                critic.ready()
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"{folder}: it cannot be read: there is no {name}"):
        critic.ready()


@pytest.mark.parametrize(
    ("make", "missing", "said"),
    [
        (clip, "preprocessor_config.json", "cannot be read"),
        (clip, "tokenizer.json", "cannot be read"),
        (vlm, "tokenizer.json", "cannot be read"),
        (reward, SPEC, f"there is no {SPEC}"),
        (reward, "rubric.txt", "is not a reward folder"),
        (tuned, SETTINGS, f"there is no {SETTINGS}"),
    ],
)
def test_a_folder_without_some_other_file_is_refused(
    make: Make, missing: str, said: str, base: Path, tmp_path: Path
) -> None:
    critic = make(tmp_path / "critic", base)
    (tmp_path / "critic" / missing).unlink()
    with pytest.raises(InputError, match=said):
        check_ready(critic)


@pytest.mark.parametrize(
    "names", [{}, {"a": 3}, {"a": ["x"]}, {"a": "../1.safetensors"}, ["1.safetensors"], None]
)
def test_an_index_that_names_no_files_beside_it_is_refused(names: Any, tmp_path: Path) -> None:
    (tmp_path / "1.safetensors").touch()
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(InputError, match="does not name the files of the weights"):
        check_weights("path", str(tmp_path / "clip"))
    (tmp_path / "clip" / INDEX).write_text("[]")
    with pytest.raises(InputError, match="does not hold a JSON object"):
        check_weights("path", str(tmp_path / "clip"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_folder_of_adapters_wants_its_base(base: Path, tmp_path: Path) -> None:
    """As `PeftModel.save_pretrained` and a processor write one; transformers loads it."""
    whole, folder = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(base, whole)
    model = AutoModelForImageTextToText.from_pretrained(whole)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(folder)
    Processor(str(base)).whole.save_pretrained(folder)
    critic = LocalVLM(str(folder), dtype="float32")
    check_ready(critic)
    critic.load("cpu")
    critic.release()
    other = shutil.copytree(folder, tmp_path / "other")
    with open(whole / "config.json", "a") as config:
        config.write("\n")
    assert LocalVLM(str(other)).identity.split("+")[1] != critic.identity.split("+")[1]
    (other / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"there is no adapter_model\.safetensors"):
        LocalVLM(str(other)).ready()
    (whole / WEIGHTS).unlink()
    with pytest.raises(
        InputError, match=f"model={whole}: it cannot be read: there is no {WEIGHTS}"
    ):
        critic.ready()


class Nameless:
    """A critic that is ready, but for what its identity is made of."""

    def ready(self) -> None:
        """It lacks nothing."""

    @property
    def identity(self) -> str:
        """See `Identified`."""
        raise InputError("path=x: no commit of it is known")


def test_what_only_an_identity_tells_is_told_beforehand() -> None:
    with pytest.raises(InputError, match="no commit of it is known"):
        check_ready(Nameless())


def test_weights_of_dimensions_that_are_not_there_are_refused(base: Path, tmp_path: Path) -> None:
    reward(tmp_path / "own", base)
    with pytest.raises(InputError, match=r"weights=\{'VQ': 1\}: the dimensions of .* are Q"):
        RewardCritic(str(tmp_path / "own"), weights={"VQ": 1}).ready()
    tuned(tmp_path / "vr", base)
    critic = VideoReward(str(tmp_path / "vr"), checkpoint="checkpoint-7/model.pth", base=str(base),
                         weights={"Q": 1})  # fmt: skip
    with pytest.raises(InputError, match=r"weights=\{'Q': 1\}: .* are MQ, TA, VQ"):
        critic.ready()


def test_a_head_of_another_model_is_refused(tmp_path: Path) -> None:
    folder, head = tiny_clip.save_model(tmp_path / "clip"), tmp_path / "head.pth"
    head.write_text("not a head")
    with pytest.raises(InputError, match=f"aesthetic={head}: it cannot be read"):
        ClipCritic(str(folder), aesthetic=str(head)).ready()


def test_a_normalisation_of_other_members_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scales.json"
    member = {"identity": "other", "parts": {"one": [0.0, 1.0]}}
    file.write_text(json.dumps({"members": {"one": member}}))
    band = {"blank": {"high": 0}}
    ensemble = Ensemble({"one": GaugeCritic(band)}, normalisation=str(file))
    with pytest.raises(InputError, match="was fitted to other"):
        CombinedCritique(ensemble, Store(tmp_path)).ready()
