"""The reference's errors, computed once: what they are, when they are shared, when they are not."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.draws.dataset import Draws
from ipo_lightning.draws.reference_errors import ReferenceErrors
from ipo_lightning.objectives import squared_error
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.layout import RoundData
from ipo_lightning.storage.store import Store
from tests.datamodules.test_datamodule import round_data
from tests.helpers import tiny

COUNT = 10


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CogVideoX:
    return tiny.policy(tiny.save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def errors_of(policy: CogVideoX, store: Store, **changed: Any) -> ReferenceErrors:
    settings = {"network": "base", "precision": "32-true", "batch_size": 4, **changed}
    return ReferenceErrors(policy, policy.objective(), store, **settings)


def compute(
    table: ReferenceErrors, draws: Draws, network: nn.Module, workers: Workers | None = None
) -> None:
    table.compute(draws, network, workers or Workers(), nullcontext, "errors")


@torch.no_grad()
def one_by_one(policy: CogVideoX, network: nn.Module, draws: Draws) -> Tensor:
    """Each draw's errors alone, by the module's own arithmetic."""
    objective, rows = policy.objective(), []
    for place in range(len(draws)):
        one = draws[place]
        latents = [one.win, one.lose] if hasattr(one, "win") else [one.latents]
        noised = objective.noise(
            torch.stack(latents), torch.stack([one.noise] * len(latents)),
            torch.stack([one.u] * len(latents)),
        )  # fmt: skip
        text = torch.stack([one.text] * len(latents))
        answer = policy.predict(network, noised.sample, noised.timestep, text)
        rows.append(squared_error(answer, noised))
    return torch.stack(rows)


@pytest.mark.parametrize("label_kind", ["pairs", "points"])
def test_they_are_what_a_live_reference_would_answer(
    policy: CogVideoX, store: Store, label_kind: str
) -> None:
    draws, network = (
        Draws(round_data(store, label_kind=label_kind), store, 0, COUNT),
        policy.build().eval(),
    )
    table = errors_of(policy, store)
    compute(table, draws, network)
    found = table.table(draws)
    assert (
        found.shape == (COUNT, 2 if label_kind == "pairs" else 1) and found.dtype == torch.float32
    )
    assert torch.allclose(found, one_by_one(policy, network, draws), rtol=1e-5, atol=1e-6)


class Counted:
    """A policy that counts the videos it predicts."""

    def __init__(self, policy: CogVideoX) -> None:
        self.policy, self.videos = policy, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def predict(self, network: nn.Module, sample: Tensor, *rest: Tensor) -> Tensor:
        self.videos += len(sample)
        return self.policy.predict(network, sample, *rest)


def test_they_are_computed_once(policy: CogVideoX, store: Store) -> None:
    draws, network = Draws(round_data(store), store, 0, COUNT), policy.build().eval()
    counted: Any = Counted(policy)
    compute(errors_of(counted, store), draws, network)
    assert counted.videos == 2 * COUNT
    compute(errors_of(counted, store), draws, network)
    assert counted.videos == 2 * COUNT
    longer = Draws(round_data(store), store, 0, COUNT + 4)  # more updates: whole chunks are kept
    assert errors_of(counted, store).missing(longer) == [range(8, 12), range(12, 14)]


def test_two_ranks_share_the_work(policy: CogVideoX, store: Store, tmp_path: Path) -> None:
    draws, network = Draws(round_data(store), store, 0, COUNT), policy.build().eval()
    alone = errors_of(policy, Store(tmp_path / "alone"))
    compute(alone, draws, network)
    table = errors_of(policy, store)
    todo = table.missing(draws)
    for rank in range(2):  # one after the other: both were told the same list
        workers = Workers(rank, 2, broadcast=lambda _: todo)
        compute(table, draws, network, workers)
        assert len(table.missing(draws)) == (1 if rank == 0 else 0)
    assert torch.equal(table.table(draws), alone.table(draws))


def changed_data(store: Store, name: str) -> RoundData:
    data = round_data(store)
    if name == "text":
        text = store.put_tensors("text", {"text": tiny.normal(7, *tiny.TEXT_SHAPE)})
        return data._replace(texts=dict.fromkeys(data.texts, text))
    return data


@pytest.mark.parametrize(
    "changed", ["network", "precision", "weighting", "window", "base", "seed", "round", "text"]
)
def test_whatever_changes_them_is_part_of_their_name(
    policy: CogVideoX, store: Store, changed: str, tmp_path: Path
) -> None:
    draws = Draws(round_data(store), store, 0, COUNT)
    compute(errors_of(policy, store), draws, policy.build().eval())
    other, settings = policy, {}
    if changed in ("network", "precision"):
        settings = {changed: "other"}
    if changed == "weighting":
        other = tiny.policy(Path(policy.path), weighting="x0")
    if changed == "window":
        other = tiny.policy(Path(policy.path), window=(0.0, 0.5))
    if changed == "base":
        other = tiny.policy(tiny.save_pipeline(tmp_path / "other", seed=1))
    data = changed_data(store, changed)._replace(number=2 if changed == "round" else 1)
    asked = Draws(data, store, 1 if changed == "seed" else 0, COUNT)
    assert len(errors_of(other, store, **settings).missing(asked)) == 3


def test_another_weight_of_the_labels_changes_nothing(policy: CogVideoX, store: Store) -> None:
    """A sweep over losses, betas, learning rates and label weights finds them."""
    data = round_data(store)
    compute(errors_of(policy, store), Draws(data, store, 0, COUNT), policy.build().eval())
    heavier = [type(row)(**{**row.row(), "weight": 9.0}) for row in data.rows]
    asked = Draws(data._replace(rows=heavier), store, 0, COUNT)
    assert errors_of(policy, store).missing(asked) == []


def test_a_broken_reference_is_named(policy: CogVideoX, store: Store) -> None:
    network = policy.build().eval()
    with torch.no_grad():
        next(network.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the reference's error at label"):
        compute(errors_of(policy, store), Draws(round_data(store), store, 0, COUNT), network)


def test_errors_that_are_gone_are_named(policy: CogVideoX, store: Store) -> None:
    with pytest.raises(OSError, match="do all ranks see this folder"):
        errors_of(policy, store).table(Draws(round_data(store), store, 0, COUNT))
