"""Two ranks that share a video's tokens do what one process does."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from app.checks import check
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.context import check_policy
from ipo_lightning.parallel.degrees import Degrees
from ipo_lightning.parallel.workers import Workers
from tests.conftest import ComposeTrain
from tests.helpers.context_ranks import CASES, case, save_pipelines, train_in_group, write
from tests.helpers.ranks import ranks
from train import train


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipelines."""
    place = tmp_path_factory.mktemp("pipelines")
    save_pipelines(place)
    return place


@pytest.fixture(scope="module")
def found(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each case comes to, by rank."""
    out = tmp_path_factory.mktemp("ranks")
    assert ranks(write, folder, out) == 0
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_videos_errors_and_gradients_are_those_of_one_process(
    found: list[Any], folder: Path, name: str
) -> None:
    """Within rounding; both ranks have the same bits."""
    first, second = (rank[name] for rank in found)
    one = case(folder, name)
    for part in ("video", "reference", "policy", "total"):
        assert torch.equal(first[part], second[part]), part
        assert torch.allclose(first[part], one[part], rtol=1e-5, atol=1e-5), part
    assert first["gradients"].keys() == one["gradients"].keys() and one["gradients"]
    for weight, wanted in one["gradients"].items():
        near = 1e-4 * float(wanted.abs().max()) + 1e-7
        ours = first["gradients"][weight]
        assert torch.equal(ours, second["gradients"][weight])
        assert torch.allclose(ours, wanted, rtol=0, atol=near), weight


SHORT = (
    "round=1", "until=training", "rollout.prompts=3", "rollout.n=2", "rollout.steps=2",
    "data.optimizer_steps=3", "data.batch_size=2", "labelling.pair_rule.margin=0",
    "labelling.filters.motion_ratio=0", "evaluation.n=1", "evaluation.prompts=1",
    "evaluation.split=select", "evaluation.choice_n=0", "callbacks.progress=null",
    "callbacks.videos=null", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu",
    "logger=none", "name=run",
)  # fmt: skip
RUNS = {
    "ddp": ("trainer.accumulate_grad_batches=2",),
    "fsdp": ("backbone.checkpointing=true",),
}


@pytest.mark.slow
@pytest.mark.parametrize("trainer", RUNS)
def test_a_run_in_one_group_is_that_of_one_process(
    tmp_path: Path, compose_train: ComposeTrain, trainer: str
) -> None:
    """The group has one batch: as many labels a step as one process has."""
    one, two, words = tmp_path / "one", tmp_path / "two", (*SHORT, *RUNS[trainer])
    train(compose_train(*words, outputs=one))
    strategy = (f"trainer={trainer}", "trainer.devices=2", "trainer.strategy.ulysses=2")
    assert ranks(train_in_group, compose_train(*words, *strategy, outputs=two)) == 0
    ours, theirs = (
        json.loads((place / "run/round_1/training.json").read_text()) for place in (two, one)
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name
    pairs = [(place / "run/round_1/pairs.jsonl").read_text().splitlines() for place in (one, two)]
    assert len(pairs[0]) == len(pairs[1]) == 3


# -------------------------------------------------------------------- who does what


def test_a_group_does_a_unit_together_and_critics_work_alone() -> None:
    done: dict[int, list[int]] = {}
    for forwards in (False, True):
        for rank in range(4):
            workers = Workers(rank, 4, bars=False, peers=2)
            workers.run(range(5), done.setdefault(rank, []).append, "", "", forwards=forwards)
    assert done == {0: [0, 4, 0, 2, 4], 1: [1, 0, 2, 4], 2: [2, 1, 3], 3: [3, 1, 3]}
    assert [Workers(rank, 4, peers=2).keeps for rank in range(4)] == [True, False, True, False]


def test_a_group_hears_its_own_leading_rank() -> None:
    """And not that of the run."""
    said: list[Any] = []
    leading = Workers(2, 4, peers=2, share=lambda one: said.append(one) or one)
    other = Workers(3, 4, peers=2, share=lambda _: said[-1])
    assert leading.group.agree(lambda: "text") == "text"
    assert other.group.agree(lambda: pytest.fail("it looked")) == "text"


# -------------------------------------------------------------------- what is refused

GROUP = "trainer=ddp trainer.devices=4 trainer.strategy.ulysses=2"
REFUSED = {
    "trainer=ddp trainer.strategy.ulysses=0": r"^trainer.strategy.ulysses=0: give a whole number",
    "trainer=fsdp trainer.strategy.ring=two": r"^trainer.strategy.ring=two: give a whole number",
    f"{GROUP} trainer.strategy.ring=3": "groups of 6 devices, and there are 4",
    f"{GROUP} rollout.batch_size=auto": "rollout.batch_size=auto .* give a number",
    f"{GROUP} rollout.cache={{_target_:diffusers.FirstBlockCacheConfig}}": "leave blocks out",
    f"{GROUP} callbacks.iteration.parallel_prompts=2": "several prompts at a time",
    f"{GROUP} stages=ray": "makes its forwards alone; give stages=ranks",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_does_not_work_in_groups_is_refused_at_once(
    compose_train: ComposeTrain, overrides: str
) -> None:
    with pytest.raises(InputError, match=REFUSED[overrides]):
        check(compose_train(*overrides.split()))


@pytest.mark.parametrize(
    ("tokens", "degrees", "message"),
    [
        (17776, Degrees(ulysses=7), r"ulysses=7: the network has 48 attention heads; .*: 2, 4, 8"),
        (45106, Degrees(ulysses=2, ring=2), r"45106 tokens .* 4 devices .* product is 2, 19, 38"),
    ],
)
def test_degrees_that_divide_nothing_evenly_are_refused(
    tokens: int, degrees: Degrees, message: str
) -> None:
    """CogVideoX 5B at its own size, and 1.5 at its own."""
    policy = SimpleNamespace(divide_tokens=None, tokens=tokens, heads=48)
    with pytest.raises(InputError, match=message):
        check_policy(policy, degrees)
    check_policy(policy, Degrees(ulysses=2))
    with pytest.raises(InputError, match="has no divide_tokens"):
        check_policy(object(), degrees)
    check_policy(object(), Degrees())
