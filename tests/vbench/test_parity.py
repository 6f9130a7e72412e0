"""Each dimension against VBench's own functions, on the same tiny weights and videos.

golden.json has what the functions of vbench 0.1.5 gave (tests/helpers/official_vbench.py); where
that package is installed they are asked again.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ipo_lightning.vbench.critics import (
    AestheticQuality,
    BackgroundConsistency,
    Dimension,
    DynamicDegree,
    ImagingQuality,
    SubjectConsistency,
    TemporalFlickering,
)
from ipo_lightning.vbench.measures import is_dynamic
from ipo_lightning.vbench.metrics import DimensionMean
from ipo_lightning.video import Clip
from tests.helpers import tiny_vbench

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())
TOLERANCE = 2e-6
"""Of a value in [0, 1]: float32 arithmetic in another order."""
VIDEOS: Mapping[str, Sequence[Clip]] = {
    "imaging_quality": tiny_vbench.LARGE,
    "dynamic_degree": tiny_vbench.MOVING,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Dimension]:
    """A dimension by its name, with its tiny network loaded."""
    folder = tmp_path_factory.mktemp("weights")
    dino, clip = (
        str(tiny_vbench.save_dino(folder / "dino")), str(tiny_vbench.save_clip(folder / "clip"))
    )  # fmt: skip
    head, raft = folder / "head.pth", folder / "raft.pth"
    torch.save(tiny_vbench.head(), head)

    def dimension(name: str) -> Dimension:
        if name == "dynamic_degree":
            torch.save(tiny_vbench.raft(), raft)
        built: Mapping[str, Callable[[], Dimension]] = {
            "subject_consistency": lambda: SubjectConsistency(dino),
            "background_consistency": lambda: BackgroundConsistency(clip),
            "temporal_flickering": TemporalFlickering,
            "aesthetic_quality": lambda: AestheticQuality(clip, head=str(head)),
            "imaging_quality": lambda: ImagingQuality(str(head)),
            "dynamic_degree": lambda: DynamicDegree(str(raft)),
        }
        critic: Any = built[name]()
        if name == "imaging_quality":  # pyiqa is for noncommercial use: its network is a stand-in
            critic._model = tiny_vbench.musiq
        else:
            critic.load("cpu")
        return critic  # type: ignore[no-any-return]

    return dimension


def agree(name: str, dimension: Dimension, official: Mapping[str, Any]) -> None:
    """A dimension's values of each video, and their mean, are VBench's own."""
    clips = VIDEOS.get(name, tiny_vbench.SMALL)
    if isinstance(dimension, DynamicDegree):
        check_motion(dimension, official)
    scale = 100 if name == "imaging_quality" else 1  # of a video; VBench divides the mean alone
    values = [float(dimension.measure(clip).mean()) for clip in clips]
    assert values == pytest.approx([one / scale for one in official["videos"]], abs=TOLERANCE)
    mean = DimensionMean(dimension)
    mean.update(clips[:1])
    mean.update(clips[1:])
    assert float(mean.compute()) == pytest.approx(official["mean"], abs=TOLERANCE)
    assert int(mean.unmeasured) == 0


def check_motion(dimension: DynamicDegree, official: Mapping[str, Any]) -> None:
    """Speeds, and what is made of speeds; those of the videos are measured once."""
    found = [dimension.speeds(clip) for clip in tiny_vbench.MOVING]
    assert torch.cat(found).tolist() == pytest.approx(official["speeds"], rel=1e-4)
    known = {id(clip): speeds for clip, speeds in zip(tiny_vbench.MOVING, found, strict=True)}
    dimension.speeds = lambda clip: known[id(clip)]  # type: ignore[method-assign]
    moves = [
        is_dynamic(torch.tensor(speeds), height, width)
        for height, width, speeds in tiny_vbench.SPEEDS
    ]
    assert moves == official["moves"]
    assert 10 < sum(moves) < 70


SLOW = {"dynamic_degree": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in GOLDEN])
def test_golden_figures(name: str, made: Callable[[str], Dimension]) -> None:
    agree(name, made(name), GOLDEN[name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_packages_own_functions(made: Callable[[str], Dimension]) -> None:
    for module in ("vbench", "clip", "cv2", "easydict", "scipy", "decord"):
        pytest.importorskip(module)
    from tests.helpers import official_vbench

    for name, official in official_vbench.figures().items():
        agree(name, made(name), official)
