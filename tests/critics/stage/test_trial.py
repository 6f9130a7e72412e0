"""Critics are tried on a video before any is made for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.critics.stage.trial import drawn, to_try, tried
from ipo_lightning.errors import InputError
from ipo_lightning.rounds import trial
from ipo_lightning.video import Clip
from tests.conftest import ComposeTrain
from train import train

VIDEO = Watched(5, 16, 24, 8.0)


class Mine:
    """Somebody's critic, of unknown cost."""

    identity = "mine@1"

    def __init__(self, fails: Exception | None = None, fault: str = "") -> None:
        self.fails, self.fault, self.held, self.seen = fails, fault, False, 0

    def load(self, device: str) -> None:
        self.held = True
        if self.fails is not None:
            raise self.fails

    def release(self) -> None:
        self.held = False

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        assert self.held and clips[0].frames.shape == (5, 16, 24, 3)
        self.seen += 1
        return [Rating(None if self.fault else 1.0, fault=self.fault)]


class Members:
    """Several as one."""

    def __init__(self, **members: Any) -> None:
        self.members = members

    def rate(self) -> None: ...


class Rules(Mine):
    def cost(self, video: Watched) -> Cost:
        return Cost("rules", "none")


def test_a_critic_is_asked_once_and_released() -> None:
    critic, before = Mine(), torch.random.get_rng_state()
    tried(critic, VIDEO, "a dog", "cpu")
    assert critic.seen == 1 and not critic.held
    assert torch.equal(before, torch.random.get_rng_state())
    assert drawn(VIDEO).frames.float().std() > 0


def test_memory_that_is_lacking_is_named_and_what_is_held_is_released() -> None:
    critic = Mine(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(InputError, match=r"mine@1 needs more memory than cpu has: .*batch_size=1"):
        tried(critic, VIDEO, "a dog", "cpu")
    assert not critic.held


def test_no_verdict_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="no verdict on a trial video .unreadable."):
        tried(Mine(fault="unreadable"), VIDEO, "a dog", "cpu")


class Served(Mine):
    def cost(self, video: Watched) -> Cost:
        return Cost("served", "server")


def test_members_are_tried_one_by_one_and_rules_not_at_all() -> None:
    one, two = Mine(), Mine()
    assert to_try(Members(one=one, rules=Rules(), served=Served(), two=two), VIDEO) == [one, two]


def test_a_judge_that_cannot_be_loaded_ends_the_run_before_its_first_video(
    compose_train: ComposeTrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ipo_lightning.shapes.judge import ShapesJudge

    def full(self: ShapesJudge, device: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as context:
        context.setattr(ShapesJudge, "load", full)
        with pytest.raises(InputError, match="^eval_critic, tried before .* needs more memory"):
            train(compose_train("round=1"))
    cfg = compose_train("round=1")
    assert not list(Path(cfg.paths.store).glob("videos/**/*.mp4"))
    assert not list(Path(cfg.paths.store).glob("tried/**/*.json"))


@pytest.mark.slow
def test_runs_that_share_a_store_try_a_critic_once(
    compose_train: ComposeTrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    monkeypatch.setattr(trial, "tried", lambda critic, *_: tries.append(critic.identity))
    small = ("evaluation.prompts=2", "evaluation.n=1", "evaluation.choice_n=0", "rollout.prompts=2")
    for more in (["until=rollout"], ["until=critique"], ["until=rollout", "name=again"]):
        train(compose_train("round=1", *small, *more))
    assert tries == ["shapes-judge@1"]
