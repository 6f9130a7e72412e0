"""Settings of critics are checked before anything is loaded, and named by their full keys."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.checks import check
from app.entry import build, refuse_misspelt
from ipo_lightning.critics.scorers.frames import ClipCritic
from ipo_lightning.critics.vlm.critics import Letters
from ipo_lightning.critics.vlm.local import LocalVLM
from ipo_lightning.errors import InputError
from tests.conftest import ComposeTrain
from tests.helpers import tiny_clip
from train import train


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (["critic=clip", "critic.weights={text: abc}"], "critic.weights.text=abc: give a number"),
        (["critic=clip", "critic.weights={text: null}"], "critic.weights.text=None: give a number"),
        (["critic=clip", "critic.weights=3"], "critic.weights=3: give a number to each name"),
        (["critic=clip", "critic.weights={text: inf}"], "critic.weights.text=inf: give a number"),
        (["eval_critic=clip", "eval_critic.weights={text: true}"], "eval_critic.weights.text=True"),
        (
            ["critic=ipo_form_points", "critic.prompt_template.grades.Bad=x"],
            "critic.prompt_template.grades.Bad=x",
        ),
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["critic=clip", "critic._target_=mine.Own"],
        ["critic=ensemble", "critic.members.clip._target_=mine.Own"],
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


@pytest.mark.slow
def test_shipped_critics_within_one_of_ones_own_are_checked(compose_train: ComposeTrain) -> None:
    """Unless it takes their settings as they are, and builds them itself."""
    words = ["critic=ensemble", "critic._target_=mine.Own"]
    check(compose_train(*words, "critic.weights=file.json"))
    for word in ("frames=all", "scaled=log", "weights=file.json"):
        wrong = [*words, f"critic.members.clip.{word}"]
        with pytest.raises(InputError, match=f"^critic.members.clip.{word}: "):
            check(compose_train(*wrong))
        check(compose_train(*wrong, "+critic._recursive_=false"))


def test_a_chat_of_ones_own_beneath_a_shipped_form(compose_train: ComposeTrain) -> None:
    cfg = compose_train("critic=ipo_form", "critic.vlm._target_=mine.Chat",
                        "critic.vlm.samples=many")  # fmt: skip
    own = {
        "_target_": "mine.Chat",
        "template": "letter.jinja",
        "server": "http://gpu7",
        "viewing": 0,
    }
    for settings in (cfg.critic.vlm, own):
        cfg.critic.vlm = settings
        check(cfg)
    cfg.critic.prompt_template = {
        "_target_": "mine.Form",
        "weights": "flat",
        "grades": 3,
        "prompt_text": None,
    }
    check(cfg)


@pytest.mark.slow
def test_what_a_labelling_has_of_itself_may_be_left_out(compose_train: ComposeTrain) -> None:
    for part in ("schedule", "weight"):
        check(compose_train(f"~labelling.{part}"))
    with pytest.raises(InputError, match=r"labelling\.schedule=None: give the settings of a part"):
        check(compose_train("labelling.schedule=null"))


@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf")], ids=["huge", "nan", "inf"])
def test_numbers_out_of_reach_are_no_numbers(compose_train: ComposeTrain, value: float) -> None:
    cfg = compose_train("critic=human")
    cfg.critic.repeats = value
    with pytest.raises(InputError, match=r"^critic\.repeats="):
        check(cfg)


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["vlm_pairwise", "vlm_pointwise"])
@pytest.mark.parametrize("vlm", ["local", "openai"])
def test_several_samples_of_a_probability_are_refused(
    compose_train: ComposeTrain, choice: str, vlm: str
) -> None:
    words = [f"critic={choice}", f"critic/vlm={vlm}", "critic.vlm.model=me/mine",
             "critic.vlm.samples=3", "critic.vlm.temperature=0.7"]  # fmt: skip
    with pytest.raises(InputError, match=r"^critic\.vlm\.samples=3: probabilities are read from"):
        build(compose_train(*words).critic, "critic")
    words[0] = "critic=ipo_form"
    assert build(compose_train(*words).critic, "critic").vlm.samples == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "word"), [("human", "annotators=2"), ("trained", "path=p"), ("compared", "ties=2")]
)
def test_a_judge_has_the_settings_of_its_critic(
    compose_train: ComposeTrain, choice: str, word: str
) -> None:
    words = [f"critic={choice}", f"critic.{word}"]
    judge = compose_train(*(f"eval_{word}" for word in words)).eval_critic
    assert judge == compose_train(*words).critic


WRONG = (
    """
critic=ipo_form critic.prompt_template.aspects=[motion] \
    | critic.prompt_template.aspects=['motion']: give a question
critic=ipo_form critic.prompt_template.aspects={motion: 3} \
    | critic.prompt_template.aspects.motion=3: give a question
critic=vlm_pairwise critic.aspects=abc           | critic.aspects=abc: give a question to each name
critic=vlm_pointwise critic.questions=["x?"]     | critic.questions.0=x?: give each ask and dim
critic=vlm_pointwise critic.questions=abc        | critic.questions=abc: give a list
critic=vlm_pointwise critic.questions={a: b}     | critic.questions={a: b}: a list, a mapping
critic=vlm_pointwise critic.questions=[{ask: "x?", dim: a, weight: b}] \
    | critic.questions.0.weight=b: give a number
critic=vlm_pointwise critic.questions=[{ask: "x?", dim: 3}] | critic.questions.0.dim=3: give a text
critic=vlm_pointwise critic.questions=[{ask: 3, dim: a}]    | critic.questions.0.ask=3: give a text
critic=vlm_pointwise critic/vlm=openai critic.vlm.model=m critic.vlm.top_logprobs=null \
    | critic.vlm.top_logprobs=None: this critic reads
critic=ipo_form critic.prompt_template.prompt_text=3 \
    | critic.prompt_template.prompt_text=3: give own or a file; one that
critic=ipo_form critic.prompt_template.prompt_text=nowhere.txt \
    | critic.prompt_template.prompt_text=nowhere.txt:
critic=ipo_form critic.vlm=openai \
    | critic.vlm=openai: to choose its settings by a name give critic/vlm=NAME
eval_critic=ipo_form eval_critic.vlm=openai     | give critic/vlm@eval_critic.vlm=NAME
critic=ipo_form critic.vlm=null                 | critic.vlm=None: give the settings of a part
critic=ipo_form critic.vlm.viewing=3            | critic.vlm.viewing=3: give the settings of a part
critic=ipo_form critic.vlm.viewing.fps=inf      | critic.vlm.viewing.fps=inf: give a number
critic=ipo_form critic.vlm.viewing.least_frames=20 \
    | critic.vlm.viewing.least_frames=20: give at most most_frames=
critic=ipo_form critic.vlm.dtype=[a]            | critic.vlm.dtype=['a']: choose one of bfloat16
critic=ipo_form critic.vlm.template=abc         | critic.vlm.template=abc: give {NAME: VALUE}
critic=ipo_form critic.vlm.seed=null            | critic.vlm.seed=None: give a whole number
critic=ipo_form critic.vlm.temperature=inf      | critic.vlm.temperature=inf: give a number
critic=ipo_form critic.vlm.samples=3 \
    | critic.vlm.samples=3: several replies need a temperature
critic=ipo_form critic/vlm=openai critic.vlm.model=m critic.vlm.server.base_url=localhost \
    | critic.vlm.server.base_url=localhost: give http
critic=clip critic.path=null                     | critic.path=None: give a text
critic=clip critic.path=./nowhere                | critic.path=./nowhere: this is neither a folder
critic=clip critic.revision=12                   | critic.revision="12"
critic=clip critic.frames=nan                    | critic.frames=nan: give a whole number
critic=clip critic.weights={}                    | critic.weights={}: give a weight
critic=gauges critic.bands=null                  | critic.bands=None: give a band
critic=gauges critic.bands.flow.high=nan         | critic.bands.flow.high=nan: give a number
critic=ensemble critic.members.clip=null \
    | critic.members.clip=None: give the settings of a part
critic=ensemble critic.members.clip=clip         | give critic@critic.members.clip=NAME
critic=ensemble critic.members.clip.over=max     | critic.members.clip.over=max: choose one
critic=ensemble critic.weights={nope: 1}         | critic.weights.nope: the members are
critic=ensemble +critic@critic.members.form=ipo_form \
    | critic.members.form: PairVLMCritic cannot rate
critic=compared critic.critic=clip               | give critic@critic.critic=NAME
critic=compared critic@critic.critic=ipo_form    | critic.critic: PairVLMCritic compares; give one
critic=human critic.dims=3                       | critic.dims=3: give a list of names
critic=trained critic.path=/tmp critic.network=null \
    | critic.network=None: give the settings of a part
critic=trained critic.path=/nowhere              | critic.path=/nowhere: there is no such folder
eval_critic=trained eval_critic.path=/nowhere    | eval_critic.path=/nowhere: there is no such
eval_critic=human eval_critic.repeats=2 \
    | eval_critic.repeats=2: give a number, at least 0 and at most 1
labelling=pairwise labelling.schedule=all_pairs \
    | labelling.schedule=all_pairs: give the settings of a part
labelling=pairwise labelling.filters=null \
    | labelling.filters=None: give the settings of a part
labelling=pairwise +labelling.schedule.extra=abc \
    | labelling.schedule.extra=abc: give a whole number, at least 0
labelling=pairwise +labelling.schedule.final=abc | labelling.schedule.final=abc: give true or false
labelling=top_k +labelling.pair_rule.foo=1       | labelling.pair_rule.foo=1: top_against_bottom
labelling=top_k labelling.ridge=inf              | labelling.ridge=inf: give a number
""".replace("\\\n", "")
    .strip()
    .splitlines()
)


@pytest.mark.slow
@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_is_named_with_its_full_key(compose_train: ComposeTrain, line: str) -> None:
    """In one sentence, before a video is made."""
    left, _, named = line.partition("|")
    words = re.split(r" (?=[\w./@+]+=)", left.strip())
    with pytest.raises(InputError) as refused:
        refuse_misspelt("train", words)
        train(compose_train(*words, "round=1"))
    assert named.strip() in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
def test_words_that_are_missing_are_asked_for_by_their_full_key(
    compose_train: ComposeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(tmp_path / "none"))
    for words, key in (
        (["critic=unifiedreward"], "critic.prompt_template.prompt_text"),
        (["critic=hpsv3"], "critic.prompt_text"),
        (["eval_critic=videoreward"], "eval_critic.prompt_text"),
        (
            ["critic=ensemble", "critic@critic.members.clip=hpsv3"],
            "critic.members.clip.prompt_text",
        ),
    ):
        with pytest.raises(InputError, match=rf"^{key}: .* give that file as {key}=\w+\.py$"):
            train(compose_train(*words, "round=1"))


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
             "critic.vlm.template={enable_thinking: false}"]  # fmt: skip
    refuse_misspelt("train", words)
    letters: Letters = build(compose_train(*words).critic, "critic")
    assert letters.dims == ("motion",)
    assert isinstance(letters.vlm, LocalVLM)
    assert letters.vlm.template == {"enable_thinking": False}


def test_no_mapping_is_an_empty_one(compose_train: ComposeTrain, tmp_path: Path) -> None:
    """Verdicts of earlier versions are found again: the identity is the same."""
    folder = tiny_clip.save_model(tmp_path / "clip")
    clip = build(compose_train("critic=clip", f"critic.path={folder}").critic, "critic")
    assert clip.identity == ClipCritic(str(folder), weights={"text": 1.0}).identity
    words = ["critic=vlm_pairwise", f"critic.vlm.model={folder}"]
    letters = build(compose_train(*words).critic, "critic")
    vlm = LocalVLM(str(folder), template={}, viewing=letters.vlm.viewing)
    assert letters.identity == Letters(vlm, aspects={}).identity
