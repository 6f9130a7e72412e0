"""Draws to labels: their order, noise and place, on any number of ranks and after any stop."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import lightning as L
import pytest
import torch
from torch import Tensor

from ipo_lightning.draws.batch import PairBatch, PointBatch
from ipo_lightning.draws.dataset import Draws, collate, plan
from ipo_lightning.errors import InputError
from ipo_lightning.rounds.datamodule import DrawLoader, PreferenceDataModule
from ipo_lightning.seeds import gaussian
from ipo_lightning.storage.layout import RoundData
from ipo_lightning.storage.records import Pair, Point, RealClip
from ipo_lightning.storage.store import Store
from tests.helpers.tiny import LATENT_SHAPE, TEXT_SHAPE, normal

ROWS = 7


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def blob(store: Store, seed: int) -> str:
    return store.put_tensors("latents", {"latents": normal(seed, *LATENT_SHAPE).half()})


def round_data(
    store: Store, number: int = 1, rows: int = ROWS, label_kind: str = "pairs"
) -> RoundData:
    """A round of stored latents; row i belongs to prompt i modulo 3."""
    texts = {
        f"p{i}": store.put_tensors("text", {"text": normal(900 + i, *TEXT_SHAPE)}) for i in range(3)
    }
    if label_kind == "points":
        points = [
            Point(i, i % 3, f"p{i % 3}", 0, blob(store, i), "v", i % 2 == 0, 0.5, weight=i / 10)
            for i in range(rows)
        ]
        return RoundData(number, points, texts)
    pairs = [
        Pair(
            i, i % 3, f"p{i % 3}", 0, 1, blob(store, i), blob(store, 100 + i), "v", "w", 0.5,
            weight=i / 10,
        )
        for i in range(rows)
    ]  # fmt: skip
    return RoundData(number, pairs, texts)


def loader(
    store: Store, *, seed: int = 0, number: int = 1, rows: int = ROWS, label_kind: str = "pairs",
    batch_size: int = 2, batches: int = 6, **settings: Any,
) -> DrawLoader:  # fmt: skip
    count = batches * settings.get("world", 1) * batch_size
    draws = Draws(round_data(store, number, rows, label_kind), store, seed, count)
    return DrawLoader(draws, batch_size=batch_size, batches=batches, **settings)


def equal(one: Any, other: Any) -> bool:
    """Whether two draws or batches are the same; what no reference has answered is NaN."""
    if one is None or other is None:
        return one is other
    if isinstance(one, Tensor):
        return torch.equal(one.isnan(), other.isnan()) and torch.equal(
            one.nan_to_num(), other.nan_to_num()
        )
    return all(equal(a, b) for a, b in zip(one, other, strict=True))


def draw(draws: Draws, times: int, row: int) -> Any:
    """The draw of a row after ``times`` earlier ones."""
    return draws[draws.plan.index((times, row))]


def places(batches: Iterator[PairBatch | PointBatch] | list[Any]) -> list[list[int]]:
    return [batch.row.tolist() for batch in batches]


# -------------------------------------------------------------------- one draw


def test_a_pair_visit_is_its_row(store: Store) -> None:
    draws = Draws(round_data(store), store, seed=0, count=ROWS)
    one = cast(PairBatch, draw(draws, 0, 4))
    assert torch.equal(one.win, normal(4, *LATENT_SHAPE).half().float())
    assert torch.equal(one.lose, normal(104, *LATENT_SHAPE).half().float())
    assert torch.equal(one.text, normal(901, *TEXT_SHAPE))  # row 4 is of prompt 1
    assert one.win.dtype == one.lose.dtype == one.noise.dtype == torch.float32
    assert one.u.dtype == torch.float64 and 0 <= one.u < 1
    assert one.weight.item() == pytest.approx(0.4)
    assert one.row.item() == 4
    assert one.noise.shape == LATENT_SHAPE


def test_a_point_visit_is_its_row(store: Store) -> None:
    draws = Draws(round_data(store, label_kind="points"), store, seed=0, count=ROWS)
    one = cast(PointBatch, draw(draws, 0, 5))
    assert torch.equal(one.latents, normal(5, *LATENT_SHAPE).half().float())
    assert one.desirable.dtype == torch.bool and not one.desirable
    assert draw(draws, 0, 4).desirable
    assert one.weight.item() == pytest.approx(0.5)


def test_noise_and_timestep_are_a_function_of_the_draw(store: Store) -> None:
    asked = [(s, n, t, i) for s in (0, 1) for n in (1, 2) for t in (0, 1) for i in (0, 1)]

    def of(seed: int, number: int, times: int, row: int) -> Any:
        return draw(Draws(round_data(store, number), store, seed, 2 * ROWS), times, row)

    first = [of(*one) for one in asked]
    torch.manual_seed(5)
    again = [of(*one) for one in asked]
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({one.u.item() for one in first}) == len(asked)
    assert len({tuple(one.noise.flatten()[:4].tolist()) for one in first}) == len(asked)


def test_timesteps_are_uniform_and_noise_is_normal_over_draw(store: Store) -> None:
    draws = Draws(round_data(store), store, seed=3, count=60 * ROWS)
    drawn = [draws[place] for place in range(len(draws))]
    u = torch.stack([one.u for one in drawn])
    # Kolmogorov-Smirnov at 420 draws: 0.08 is beyond the 1 % point.
    even = (torch.arange(len(u)) + 0.5) / len(u)
    assert (u.sort().values - even).abs().max() < 0.08
    noise = torch.stack([one.noise for one in drawn])
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    # The noise must not be the stream that the timestep came of.
    assert abs(torch.corrcoef(torch.stack([u, noise.flatten(1).mean(1).double()]))[0, 1]) < 0.15


def test_lost_latents_are_named(store: Store, tmp_path: Path) -> None:
    draws = Draws(round_data(store), Store(tmp_path), seed=0, count=1)
    with pytest.raises(FileNotFoundError, match="missing from the store"):
        draws[0]


# -------------------------------------------------------------------- order


def test_the_order_is_a_function_of_seed_and_round(store: Store) -> None:
    order = loader(store).draws.plan
    torch.manual_seed(11)
    assert loader(store).draws.plan == order
    assert loader(store, seed=1).draws.plan != order
    assert loader(store, number=2).draws.plan != order


def test_a_longer_plan_begins_with_the_shorter_one() -> None:
    """More updates keep the errors that are known of the first ones."""
    long = plan(seed=3, number=2, rows=7, count=40)
    assert all(plan(3, 2, 7, count) == long[:count] for count in range(41))


@pytest.mark.parametrize(
    ("rows", "batches", "world"), [(7, 6, 1), (7, 5, 3), (1, 4, 2), (40, 3, 2)]
)
def test_all_ranks_yield_equal_batches_of_even_draw(
    store: Store, rows: int, batches: int, world: int
) -> None:
    """Permutation after permutation: counts differ by one at most."""
    loaders = [loader(store, rows=rows, batches=batches, rank=r, world=world) for r in range(world)]
    orders = [one.order() for one in loaders]
    assert [len(order) for order in orders] == [batches] * world
    assert {len(batch) for order in orders for batch in order} == {2}
    drawn = [place for order in orders for batch in order for place in batch]
    assert sorted(drawn) == list(range(batches * world * 2))  # none is drawn twice
    draws = loaders[0].draws.plan
    assert len(set(draws)) == len(draws) == len(drawn)
    counts = Counter(index for _, index in draws)
    full, rest = divmod(len(draws), rows)
    assert set(counts.values()) <= {full, full + 1}
    assert sum(count > full for count in counts.values()) == rest


@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_together_are_one_process_with_the_whole_batch(store: Store, world: int) -> None:
    whole = list(loader(store, batch_size=2 * world, batches=4))
    ranks = [list(loader(store, batches=4, rank=r, world=world)) for r in range(world)]
    for step, one in enumerate(whole):
        columns = zip(*(rank[step] for rank in ranks), strict=True)
        union = [None if parts[0] is None else torch.cat(parts) for parts in columns]
        assert equal(one, union)


def test_a_visit_does_not_depend_on_its_batch(store: Store) -> None:
    small = {}
    for batch in loader(store, batch_size=2, batches=6):
        for i, index in enumerate(batch.row.tolist()):
            small.setdefault(index, []).append([part[i] for part in batch[:-1]])
    for batch in loader(store, batch_size=6, batches=2):
        for i, index in enumerate(batch.row.tolist()):
            assert equal(small[index].pop(0), [part[i] for part in batch[:-1]])


def test_worker_processes_change_nothing(store: Store) -> None:
    here = list(loader(store, batches=4))
    there = list(loader(store, batches=4, num_workers=2))
    assert all(equal(a, b) for a, b in zip(here, there, strict=True))


def test_iterating_leaves_the_noise_alone_whatever_the_global_seed(store: Store) -> None:
    torch.manual_seed(1)
    first = list(loader(store))
    torch.manual_seed(2)
    assert all(equal(a, b) for a, b in zip(first, loader(store), strict=True))


# -------------------------------------------------------------------- what comes beside the labels


def test_errors_known_in_advance_come_with_their_draw(store: Store) -> None:
    known = torch.arange(24.0).view(12, 2)
    data = round_data(store)._replace(errors=known)
    loader = DrawLoader(Draws(data, store, 0, 12), batch_size=2, batches=6)
    seen = [torch.stack([batch.ref_win, batch.ref_lose], 1) for batch in loader]
    assert torch.equal(torch.cat(seen), known)
    points = round_data(store, label_kind="points")._replace(errors=known[:, :1])
    loader = DrawLoader(Draws(points, store, 0, 12), batch_size=3, batches=4)
    assert torch.equal(torch.cat([batch.ref for batch in loader]), known[:, 0])


def test_without_a_reference_nothing_is_known(store: Store) -> None:
    assert all(batch.ref_win.isnan().all() and batch.real is None for batch in loader(store))


def test_real_clips_come_one_a_label_with_draws_of_their_own(store: Store) -> None:
    clips = [RealClip(f"p{i % 3}", blob(store, 200 + i), f"{i}.mp4") for i in range(4)]
    data = round_data(store)._replace(real=clips)
    draws = Draws(data, store, 0, 12)
    batches = list(DrawLoader(draws, batch_size=3, batches=4))
    drawn = torch.cat([batch.real.latents for batch in batches])
    wanted = [normal(200 + draw.row, *LATENT_SHAPE).half().float() for draw in draws.real_plan]
    assert torch.equal(drawn, torch.stack(wanted))
    assert Counter(draw.row for draw in draws.real_plan) == {i: 3 for i in range(4)}
    u = torch.cat([batch.u for batch in batches] + [batch.real.u for batch in batches])
    assert len(u.unique()) == 24
    assert batches[0].real.text.shape == (3, *TEXT_SHAPE)
    plain = [Draws(round_data(store), store, 0, 12)[place] for place in range(12)]
    for place, batch in enumerate(batches):  # the labels' own draws are as without real clips
        few = collate(plain[3 * place : 3 * place + 3])
        assert equal(batch[:-1], few[:-1])


# -------------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize("consumed", range(6))
def test_a_stopped_loader_goes_on_with_exactly_the_rest(store: Store, consumed: int) -> None:
    whole = list(loader(store))
    stopped = loader(store)
    walk = iter(stopped)
    for _ in range(consumed):
        next(walk)
    state = stopped.state_dict()
    labels = state.pop("labels")
    assert state == {"round": 1, "consumed": consumed, "videos": 2}
    state["labels"] = labels
    resumed = loader(store)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert len(rest) == 6 - consumed
    assert all(equal(a, b) for a, b in zip(whole[consumed:], rest, strict=True))
    assert resumed.state_dict()["consumed"] == 0
    assert places(iter(resumed)) == places(whole)  # and starts anew when asked again


def test_a_state_at_the_end_of_a_round_starts_it_anew(store: Store) -> None:
    resumed = loader(store)
    resumed.load_state_dict({"round": 1, "consumed": 6, "videos": 2})
    assert len(list(resumed)) == 6


def test_the_state_of_another_round_says_nothing(store: Store) -> None:
    later = loader(store, number=2)
    later.load_state_dict({"round": 1, "consumed": 3, "videos": 2})
    assert len(list(later)) == 6


def test_a_round_is_not_resumed_with_another_number_of_labels_a_step(store: Store) -> None:
    state = loader(store).state_dict()
    loader(store, batches=6, rank=1, world=2, batch_size=1).load_state_dict(state)  # 2 as before
    with pytest.raises(InputError, match="begun with 2 labels a step.*now it is 4"):
        loader(store, world=2).load_state_dict(state)


def test_the_length_is_that_of_the_whole_round(store: Store) -> None:
    assert len(loader(store, batches=5, rank=1, world=2)) == 5


# -------------------------------------------------------------------- the datamodule


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"batch_size": 0, "optimizer_steps": 1}, "batch_size=0"),
        ({"batch_size": 1, "optimizer_steps": 0}, "optimizer_steps=0"),
        ({"batch_size": 1, "optimizer_steps": 1, "num_workers": -1}, "num_workers=-1"),
    ],
)
def test_impossible_settings_are_refused(store: Store, settings: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        PreferenceDataModule(store, **settings)


def test_without_a_source_of_rounds_it_says_what_is_missing(store: Store) -> None:
    with pytest.raises(RuntimeError, match="IterationCallback"):
        PreferenceDataModule(store, batch_size=1, optimizer_steps=1).train_dataloader()


def test_shared_noise_has_the_latents_shape(store: Store) -> None:
    batch = next(iter(loader(store)))
    assert batch.noise.shape == (2, *LATENT_SHAPE)
    assert not torch.equal(batch.noise[0], batch.noise[1])
    one: Tensor = batch.noise[0]
    assert not torch.equal(one, gaussian(0, LATENT_SHAPE))


@pytest.mark.parametrize(
    ("labels", "max_passes", "steps"), [(60, 100, 80), (3, 100, 38), (1, 1, 1), (3, None, 80)]
)
def test_with_few_labels_a_round_makes_fewer_steps(
    store: Store, labels: int, max_passes: int | None, steps: int
) -> None:
    """By hand: 3 labels, 100 passes, 8 a step: 300 / 8 = 37.5."""
    asked: list[int] = []

    class Source:
        def ensure_round(self, number: int, draws: int) -> RoundData:
            asked.append(draws)
            return round_data(store, number, labels)

    made = PreferenceDataModule(
        store, batch_size=2, optimizer_steps=80, max_passes=max_passes, source=Source()
    )
    made.trainer = L.Trainer(accumulate_grad_batches=4, logger=False, accelerator="cpu",
                             enable_checkpointing=False)  # fmt: skip
    found = made.train_dataloader()
    assert asked == [80 * 8]
    assert len(found) == 4 * steps and len(found.draws) == 8 * steps
    passes = Counter(row for _, row in found.draws.plan)
    assert max_passes is None or max(passes.values()) <= max_passes + 8
