"""Networks in shards on two ranks do what one process does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import tiny, tiny_wan
from tests.helpers.ranks import ranks
from tests.helpers.shard_ranks import STEPS, folder_of, start, step, videos, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """A pipeline of each family."""
    place = tmp_path_factory.mktemp("pipelines")
    return {family.__name__: family.save_pipeline(place / family.__name__)
            for family in (tiny, tiny_wan)}  # fmt: skip


@pytest.fixture(scope="module")
def found(folders: dict[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each case comes to, by rank."""
    out = tmp_path_factory.mktemp("ranks")
    assert ranks(write, folders, out) == 0
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_an_adapter_starts_alike_under_every_strategy(
    found: list[Any], folders: dict[Any, Path], kind: str
) -> None:
    """To the bit; tests/devices has a second device beside the CPU."""
    one = start(folders[tiny.__name__], "one process")
    assert any(bool(weight.any()) for weight in one.values())
    for rank in found:
        ours = rank[f"start: {kind}"]
        assert ours.keys() == one.keys()
        assert all(torch.equal(ours[name], weight) for name, weight in one.items())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # as torch.compile reads it
@pytest.mark.parametrize("name", STEPS)
def test_a_step_in_shards_is_that_of_one_process(
    found: list[Any], folders: dict[Any, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ranks have the same pairs. Errors are equal to the bit; gradients that come from all
    blocks are summed in another order where torch shards."""
    monkeypatch.setattr(torch.nn.Module, "compile", torch.nn.Module.compile)  # put back at the end
    one, first, second = step(folder_of(name, folders), name), *(rank[name] for rank in found)
    assert torch.equal(first["error"], one["error"])
    assert first["norm"] == pytest.approx(one["norm"], rel=1e-2)
    assert first["calls"] == 1, "shards are gathered outside of checkpointing"
    for kind in ("gradients", "weights"):
        assert first[kind].keys() == second[kind].keys() == one[kind].keys() and one[kind]
        for weight, wanted in one[kind].items():
            ours = first[kind][weight]
            assert torch.equal(ours, second[kind][weight]) and ours.dtype == wanted.dtype
            near = (2e-2 if wanted.dtype == torch.bfloat16 else 1e-5) * float(wanted.abs().max())
            assert torch.allclose(ours, wanted, rtol=0, atol=near), (kind, weight)


@pytest.mark.parametrize("name", ["wan, bfloat16", "cogvideox, checkpointing"])
def test_ranks_with_unequal_work_sample_from_shards(
    found: list[Any], folders: dict[Any, Path], name: str
) -> None:
    wanted = videos(folder_of(name, folders), name, range(3))
    assert not found[1][f"videos: {name}"] and len(wanted) == 3
    for prompt, latents in wanted.items():
        assert torch.equal(found[0][f"videos: {name}"][prompt], latents)
