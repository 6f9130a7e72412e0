"""Two ranks that share a video's tokens do what one process does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.context_ranks import CASES, case, save_pipelines, write
from tests.helpers.ranks import ranks


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
