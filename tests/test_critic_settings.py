"""What the settings of critics tell before anything is loaded."""

import warnings

import pytest

from conf.checks import check, makes_of
from ipo_lightning.errors import InputError
from tests.conftest import ComposeTrain


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (["critic=clip", "critic.weights.text=abc"], "critic.weights.text=abc: give a number"),
        (["critic=clip", "critic.weights.text=null"], "critic.weights.text=None: give a number"),
        (["critic=clip", "critic.weights=3"], "critic.weights=3: give a number to each name"),
        (["critic=clip", "critic.weights.text=inf"], "critic.weights.text=inf: give a number"),
        (["eval_critic=clip", "eval_critic.weights.text=true"], "eval_critic.weights.text=True"),
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
