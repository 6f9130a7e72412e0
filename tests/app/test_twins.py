"""A judge is never the critic's twin, whatever it is called and wherever its weights lie."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from app.checks import check
from app.twins import refuse_alike, refuse_twins
from ipo_lightning.critics.combined.adapters import ScoresToComparisons
from ipo_lightning.critics.combined.ensemble import Ensemble
from ipo_lightning.critics.people.human import HumanCritic
from ipo_lightning.critics.scorers.gauged import GaugeCritic
from ipo_lightning.errors import InputError
from ipo_lightning.shapes.biased import ShapesPairs
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.shapes.judge import ShapesJudge
from tests.conftest import ComposeTrain
from train import train

CLIP = "ipo_lightning.critics.scorers.frames.ClipCritic"
TRAINED = "ipo_lightning.reward.trained.TrainedCritic"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (["critic=clip", "eval_critic=clip"], "eval_critic is the twin of critic (openai/clip"),
        (["critic=clip", "eval_critic=clip", "eval_critic.revision=abc"], "eval_critic is the tw"),
        (["critic=clip", "eval_critic=pickscore"], None),  # one class, two models
        (["critic=compared", "critic@critic.critic=clip", "eval_critic=clip"],
         "eval_critic is the twin of critic.critic"),
        (["critic=ensemble", "eval_critic=gauges"], "eval_critic is the twin of critic.members.g"),
        (["critic=gauges", "eval_critic=ensemble"], "eval_critic.members.gauges is the twin of "),
        (["critic=clip", "eval_critic=vbench"], "eval_critic.members.aesthetic_quality is "),
        (["critic=ensemble", "eval_critic=pickscore"], None),
        (["critic=shapes", "eval_critic=shapes"], "eval_critic is the twin of critic"),
        (["critic=shapes", "eval_critic=compared", "critic@eval_critic.critic=shapes"],
         "eval_critic.critic is the twin of critic"),
        (["critic=shapes", "eval_critic=shapes_judge"], None),
        (["critic=vlm_pairwise", "eval_critic=ipo_form"], "eval_critic is the twin"),  # one model
        (["critic=hpsv3", "eval_critic=vlm_pairwise", "eval_critic.vlm.model=Qwen/Qwen2-VL-7B-Instr"
          "uct"], None),  # its base, of which no weights are used
        (["critic=human", "eval_critic=human"], None),
    ],
)  # fmt: skip
def test_a_twin_is_refused_by_its_settings(
    compose_train: ComposeTrain, choice: list[str], told: str | None
) -> None:
    cfg = compose_train(*choice)
    if told is None:
        check(cfg)
        return
    with pytest.raises(InputError) as refused:
        check(cfg)
    assert str(refused.value).startswith(told) and len(str(refused.value).splitlines()) <= 3


def weights(folder: Path, value: float = 1.0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((3,), value)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_twin_is_refused_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the folder, a single file of it, a hub's cache; on both sides within others."""
    one, other = weights(tmp_path / "one"), weights(tmp_path / "other", 2.0)
    copy = Path(shutil.copytree(one, tmp_path / "copy"))
    (copy / "model.safetensors").rename(copy / "renamed.pth")
    cache = tmp_path / "hub/models--me--mine/snapshots/abc"
    shutil.copytree(one, cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def trained(path: Any) -> dict[str, Any]:
        return {"_target_": TRAINED, "path": str(path), "network": {"_target_": "ipo_lightning.x"}}

    critic = {"_target_": CLIP, "path": str(one)}
    within = {
        "_target_": "ipo_lightning.E",
        "members": {"a": {"_target_": "mine.Own"}, "b": critic},
    }
    twins = [
        trained(one), trained(copy), trained("me/mine@main"),
        {"_target_": "mine.Cached", "inner": [trained(copy)]},
        {"_target_": "mine.Own", "file": str(copy / "renamed.pth")},
        {"_target_": "ipo_lightning.E", "members": {"c": trained(other), "d": trained(copy)}},
    ]  # fmt: skip
    for judge in twins:
        for theirs in (critic, within):
            with pytest.raises(InputError, match=r"eval_critic\S* is the twin of critic"):
                refuse_twins(theirs, judge)
    refuse_twins(within, trained(other))
    refuse_twins({"_target_": "mine.Own", "sign": 1}, {"_target_": "mine.Own", "sign": -1})
    with pytest.raises(InputError, match="twin"):
        refuse_twins({"_target_": "mine.Own", "sign": 1}, {"_target_": "mine.Own", "sign": 1})


def test_a_twin_is_refused_by_its_identity(tmp_path: Path) -> None:
    """What settings do not tell: rules within another class, other settings of the same rules."""
    gauges = GaugeCritic({"flow": {"low": 0.1}})
    twins: list[tuple[Any, Any]] = [
        (ShapesCritic(), ShapesPairs()),
        (ShapesPairs(noise=0.3), Ensemble({"a": ShapesCritic(), "b": ShapesJudge()})),
        (ScoresToComparisons(ShapesJudge()), ShapesJudge()),
        (gauges, GaugeCritic({"flow": {"low": 0.2}})),
    ]
    for critic, judge in twins:
        for both in ((critic, judge), (judge, critic)):
            with pytest.raises(InputError, match="eval_critic is the twin of critic"):
                refuse_alike(*both)
    refuse_alike(Ensemble({"a": gauges}), Ensemble({"a": ShapesJudge()}))
    people = HumanCritic(str(tmp_path))
    refuse_alike(people, people)


@pytest.mark.slow
def test_a_run_refuses_rules_within_another_class(small: ComposeTrain) -> None:
    with pytest.raises(InputError, match="eval_critic is the twin of critic"):
        train(small("eval_critic=shapes_pairwise"))
    assert not Path(small().paths.outputs, "run").exists()


@pytest.mark.slow
def test_an_ensemble_is_a_judge_whose_members_are_told(begun: ComposeTrain) -> None:
    """Each member's score is among the judge's dimensions, which the report shows."""
    words = ["eval_critic=ensemble", "~eval_critic.members.clip",
             "+eval_critic.members.judge._target_=ipo_lightning.shapes.judge.ShapesJudge",
    ]  # fmt: skip
    line = train(begun("round=1", "until=rollout", *words))
    assert line is not None and {"gauges", "judge"} <= line["eval_dims"].keys()
