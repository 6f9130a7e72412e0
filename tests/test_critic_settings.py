"""What the settings of critics tell before anything is loaded."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from conf.checks import check, makes_of
from conf.entry import build, refuse_misspelt
from ipo_lightning.critics.frames import ClipCritic
from ipo_lightning.critics.judges import Letters
from ipo_lightning.critics.local import LocalChat
from ipo_lightning.errors import InputError
from tests import tiny_clip
from tests.conftest import ComposeTrain


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (["critic=clip", "critic.weights={text: abc}"], "critic.weights.text=abc: give a number"),
        (["critic=clip", "critic.weights={text: null}"], "critic.weights.text=None: give a number"),
        (["critic=clip", "critic.weights=3"], "critic.weights=3: give a number to each name"),
        (["critic=clip", "critic.weights={text: inf}"], "critic.weights.text=inf: give a number"),
        (["eval_critic=clip", "eval_critic.weights={text: true}"], "eval_critic.weights.text=True"),
        (["critic=ipo_form_points", "critic.form.grades.Bad=x"], "critic.form.grades.Bad=x"),
    ],
)
def test_wrong_values_are_refused_in_a_sentence(
    compose_train: ComposeTrain, choice: list[str], words: str
) -> None:
    cfg = compose_train(*choice)
    with pytest.raises(InputError) as refused:
        check(cfg)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("choice", "same"),
    [
        (["critic=clip", "eval_critic=clip"], True),
        (["critic=clip", "eval_critic=pickscore"], False),  # one class, two models
        (["critic=compared", "critic@critic.critic=clip", "eval_critic=clip"], True),
        (["critic=ensemble", "eval_critic=gauges"], True),
        (["critic=ensemble", "eval_critic=pickscore"], False),
        (["critic=shapes", "eval_critic=shapes"], True),
        (["critic=shapes", "eval_critic=shapes_judge"], False),
        (["critic=vlm_pairwise", "eval_critic=ipo_form"], True),  # of one model
    ],
)
def test_a_judge_of_the_critics_make_is_warned_of(
    compose_train: ComposeTrain, choice: list[str], same: bool
) -> None:
    cfg = compose_train(*choice)
    assert bool(makes_of(cfg.critic) & makes_of(cfg.eval_critic)) == same
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check(cfg)
    assert any("critic's own make" in str(one.message) for one in told) == same


# ---------------------------------------------------------------- settings that are mappings


def test_a_mapping_may_have_names_that_the_yaml_lacks(
    compose_train: ComposeTrain, tmp_path: Path
) -> None:
    """As docs/critics.md shows it; Hydra would merge a mapping into one that is shipped."""
    folder, head = tiny_clip.save_model(tmp_path / "clip"), tmp_path / "head.safetensors"
    save_file({"weight": torch.zeros(1, tiny_clip.WIDTH), "bias": torch.zeros(1)}, head)
    words = ["critic=clip", f"critic.path={folder}", f"critic.aesthetic={head}",
             "critic.weights={text: 1, aesthetic: 0.5}"]  # fmt: skip
    refuse_misspelt("train", words)
    clip: ClipCritic = build(compose_train(*words).critic, "critic")
    assert clip.weights == {"text": 1, "aesthetic": 0.5}

    words = ["critic=vlm_pairwise", 'critic.aspects={motion: "Which video moves more?"}',
             "critic.chat.template={enable_thinking: false}"]  # fmt: skip
    refuse_misspelt("train", words)
    letters: Letters = build(compose_train(*words).critic, "critic")
    assert letters.dims == ("motion",)
    assert isinstance(letters.chat, LocalChat)
    assert letters.chat.template == {"enable_thinking": False}


def test_no_mapping_is_an_empty_one(compose_train: ComposeTrain, tmp_path: Path) -> None:
    """Verdicts of earlier versions are found again: the identity is the same."""
    folder = tiny_clip.save_model(tmp_path / "clip")
    clip = build(compose_train("critic=clip", f"critic.path={folder}").critic, "critic")
    assert clip.identity == ClipCritic(str(folder), weights={"text": 1.0}).identity
    words = ["critic=vlm_pairwise", f"critic.chat.model={folder}"]
    letters = build(compose_train(*words).critic, "critic")
    chat = LocalChat(str(folder), template={}, viewing=letters.chat.viewing)
    assert letters.identity == Letters(chat, aspects={}).identity
