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
        (
            ["critic=ensemble", "critic.members.clip.frames=abc"],
            "critic.members.clip.frames=abc: give a whole number",
        ),
        (["critic=ensemble", "critic.members.clip.scaled=abc"], "critic.members.clip.scaled=abc"),
        (
            ["critic=compared", "critic@critic.critic=clip", "critic.critic.weights=[1]"],
            "critic.critic.weights=[1]: give a number to each name",
        ),
        (["eval_critic=compared", "eval_critic.ties=0"], "eval_critic.ties=0: give a number"),
        (["critic=shapes_noisy", "critic.noise=abc"], "critic.noise=abc: give a number"),
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


@pytest.mark.parametrize(
    "words",
    [
        ["critic=clip", "critic._target_=mine.Own"],
        ["critic=ensemble", "critic.members.clip._target_=mine.Own"],
        ["critic=ensemble", "critic._target_=mine.Own"],
        ["critic=compared", "critic@critic.critic=clip", "critic.critic._target_=mine.Own"],
    ],
)
def test_what_a_critic_of_ones_own_takes_is_its_own_affair(
    compose_train: ComposeTrain, words: list[str]
) -> None:
    """Also where its settings are named as a shipped critic's."""
    place = {"ensemble": "critic.members.clip", "compared": "critic.critic"}
    key = place.get(words[0].partition("=")[2], "critic")
    taken = [f"{key}.frames=all", f"{key}.scaled=log", f"{key}.weights=file.json"]
    check(compose_train(*words, *taken))
    for word in taken:
        with pytest.raises(InputError, match=word.partition("=")[0]):
            check(compose_train(*[w for w in words if "mine.Own" not in w], word))


def test_a_chat_of_ones_own_beneath_a_shipped_form(compose_train: ComposeTrain) -> None:
    words = ["critic=ipo_form", "critic.chat._target_=mine.Chat", "critic.chat.samples=many"]
    check(compose_train(*words))


@pytest.mark.parametrize("choice", ["vlm_pairwise", "vlm_pointwise"])
@pytest.mark.parametrize("chat", ["local", "openai"])
def test_several_samples_of_a_probability_are_refused(
    compose_train: ComposeTrain, choice: str, chat: str
) -> None:
    words = [f"critic={choice}", f"critic/chat={chat}", "critic.chat.model=me/mine",
             "critic.chat.samples=3", "critic.chat.temperature=0.7"]  # fmt: skip
    with pytest.raises(InputError, match=r"^critic\.chat\.samples=3: probabilities are read off"):
        build(compose_train(*words).critic, "critic")
    words[0] = "critic=ipo_form"
    assert build(compose_train(*words).critic, "critic").chat.samples == 3


@pytest.mark.parametrize(
    ("choice", "word"), [("human", "annotators=2"), ("trained", "path=p"), ("compared", "ties=2")]
)
def test_a_judge_has_the_settings_of_its_critic(
    compose_train: ComposeTrain, choice: str, word: str
) -> None:
    words = [f"critic={choice}", f"critic.{word}"]
    judge = compose_train(*(f"eval_{word}" for word in words)).eval_critic
    assert judge == compose_train(*words).critic


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
