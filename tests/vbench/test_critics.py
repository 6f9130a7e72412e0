"""VBench's dimensions as critics: settings, files, faults, the ensemble of them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from omegaconf import OmegaConf
from torch import nn
from transformers import CLIPModel

from app.entry import CONF
from ipo_lightning.critics.combined.ensemble import Ensemble
from ipo_lightning.critics.protocols import PointCritic, check_ready
from ipo_lightning.critics.scorers.frames import unit
from ipo_lightning.errors import InputError
from ipo_lightning.vbench import files
from ipo_lightning.vbench.critics import (
    AestheticQuality,
    BackgroundConsistency,
    DynamicDegree,
    ImagingQuality,
    SubjectConsistency,
    TemporalFlickering,
)
from ipo_lightning.vbench.files import filled, published
from ipo_lightning.vbench.measures import at_flow_rate, for_clip, is_dynamic
from ipo_lightning.vbench.metrics import DimensionMean
from ipo_lightning.vbench.scores import QUALITY, scaled
from ipo_lightning.video import Clip
from tests.helpers import tiny_clip, tiny_vbench

STILL = Clip(tiny_vbench.SMALL[0].frames[:1].repeat(4, 1, 1, 1), 8.0)
PROMPTS = ["a ring"] * len(tiny_vbench.SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("weights")
    tiny_vbench.save_dino(made / "dino")
    tiny_vbench.save_clip(made / "clip")
    torch.save(tiny_vbench.head(), made / "head.pth")
    return made


def test_a_rating_is_the_value_on_vbenchs_scale(folder: Path) -> None:
    critic = SubjectConsistency(str(folder / "dino"))
    assert isinstance(critic, PointCritic)
    check_ready(critic)
    together = critic.rate(tiny_vbench.SMALL, PROMPTS)
    alone = [critic.rate([clip], ["another"])[0] for clip in tiny_vbench.SMALL]
    assert together == alone  # to the bit
    value = float(critic.measure(tiny_vbench.SMALL[0]).mean())
    assert together[0].score == pytest.approx(scaled("subject_consistency", value))
    assert together[0].raw == f'{{"subject_consistency": {round(value, 6)}}}'
    critic.release()
    assert critic.rate(tiny_vbench.SMALL, PROMPTS) == together  # loads by itself
    (still,) = critic.rate([STILL], ["a ring"])
    assert still.score == pytest.approx(1, abs=1e-5)


def test_a_whole_clip_is_read_quietly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """As on the hub, with the half that reads; the embedding is that of the whole model."""
    critic = BackgroundConsistency(str(tiny_clip.save_model(tmp_path / "whole")))
    critic.load("cpu")
    assert "UNEXPECTED" not in caplog.text + "".join(capfd.readouterr())
    pixels = for_clip(tiny_vbench.SMALL[0].frames.permute(0, 3, 1, 2).float(), tiny_clip.SIDE)
    with torch.no_grad():
        whole = CLIPModel.from_pretrained(critic.path).get_image_features(pixel_values=pixels)
    assert torch.allclose(unit(whole), critic.features(tiny_vbench.SMALL[0]), atol=1e-6)


def test_identities_tell_weights_and_heads_apart(folder: Path, tmp_path: Path) -> None:
    clip, head = str(folder / "clip"), tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(1, 64), "bias": torch.zeros(1)}, head)
    critics = (
        BackgroundConsistency(clip), AestheticQuality(clip),
        AestheticQuality(clip, head=str(head)), AestheticQuality(clip, head=f"{folder}/head.pth"),
        SubjectConsistency(str(folder / "dino")), TemporalFlickering(), DynamicDegree(),
        DynamicDegree(str(head)), ImagingQuality(str(head)),
    )  # fmt: skip
    assert len({critic.identity for critic in critics}) == len(critics)


def test_what_cannot_be_measured_has_no_score(folder: Path) -> None:
    single = Clip(STILL.frames[:1], 8.0)
    for critic in (TemporalFlickering(), DynamicDegree(), SubjectConsistency(f"{folder}/dino")):
        (rating,) = critic.rate([single], ["a ring"])
        assert (rating.score, rating.fault) == (None, "fewer than 2 frames")
    (rating,) = DynamicDegree().rate([STILL], ["a ring"])
    assert (rating.score, rating.fault) == (None, "frames below 128 px")
    critic: Any = ImagingQuality(str(folder / "head.pth"))
    critic._model = lambda frame: torch.tensor(float("nan"))
    assert critic.rate([single], ["a ring"])[0].fault == "not a number"
    mean = DimensionMean(TemporalFlickering())
    mean.update([single, STILL])
    assert (float(mean.compute()), int(mean.unmeasured)) == (1.0, 1)


def test_dynamic_by_hand() -> None:
    """16 frames of 256 pixels: 4 pairs have to move by more than 6 pixels."""
    speeds = torch.tensor([6.5] * 3 + [6.0] * 12)
    assert not is_dynamic(speeds, 256, 512)
    assert is_dynamic(torch.cat([speeds[1:], torch.tensor([7.0])]), 512, 240)
    assert is_dynamic(torch.zeros(1), 256, 256)  # two frames need no motion, as in VBench
    assert not is_dynamic(torch.zeros(0), 256, 256)
    frames = torch.arange(49)
    assert at_flow_rate(frames, 8.0).tolist() == frames.tolist()
    assert at_flow_rate(frames, 16.0).tolist() == frames[::2].tolist()
    assert at_flow_rate(frames, 30.0).tolist() == frames[::4].tolist()
    assert at_flow_rate(frames, 2.0).tolist() == frames.tolist()


def test_the_shipped_settings_weigh_as_vbench_does(folder: Path) -> None:
    settings: Any = OmegaConf.load(CONF / "critic/vbench.yaml")
    assert dict(settings.weights) == {name: QUALITY[name].weight for name in settings.weights}
    assert settings.weights.keys() == settings.members.keys()
    names = ("subject_consistency", "temporal_flickering")
    members = {names[0]: SubjectConsistency(f"{folder}/dino"), names[1]: TemporalFlickering()}
    ensemble = Ensemble(members, {names[0]: 1.0, names[1]: 0.5})  # type: ignore[arg-type]
    (rating,) = ensemble.rate([tiny_vbench.SMALL[0]], ["a ring"])
    scores = [members[name].rate([tiny_vbench.SMALL[0]], [""])[0].score or 0 for name in names]
    assert rating.score == pytest.approx((scores[0] + 0.5 * scores[1]) / 1.5)
    assert rating.dims == dict(zip(names, scores, strict=True))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SubjectConsistency("no/such/folder"), "path=no/such/folder: this is neither"),
        (lambda: AestheticQuality("a/b", head="none.pth"), "head=none.pth: there is no such file"),
        (lambda: DynamicDegree("none.pth"), "weights=none.pth: there is no such file"),
        (lambda: ImagingQuality("none.pth"), "weights=none.pth: there is no such file"),
    ],
)
def test_wrong_paths_are_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        make()


def test_missing_weights_are_told_before_videos_are_made(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    (tmp_path / "config.json").write_text((folder / "dino/config.json").read_text())
    with pytest.raises(InputError, match="path=.*there is no pytorch_model.bin"):
        SubjectConsistency(str(tmp_path)).ready()
    with pytest.raises(InputError, match="imaging_quality needs the package pyiqa"):
        ImagingQuality(str(folder / "head.pth")).ready()


def test_downloads_are_checked_by_their_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPO_LIGHTNING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "there.pth").write_bytes(b"weights")
    sha256 = files.file_sha256(tmp_path / "there.pth")
    source = (f"file://{tmp_path}/there.pth", sha256[:8])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    kept = Path(published("head", None, source))
    assert (kept.read_bytes(), kept.parent) == (b"weights", tmp_path / "cache/weights")
    kept.write_bytes(b"damaged")
    assert Path(published("head", None, source)).read_bytes() == b"weights"
    other = (source[0], "0" * 64)
    with pytest.raises(InputError, match=r"head: there.pth cannot be downloaded \(invalid hash"):
        published("head", None, other)
    kept.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set.*curl -LO .*head=there.pth"):
        published("head", None, source)
    assert published("head", "mine.pth", source) == "mine.pth"


def test_other_weights_are_refused(tmp_path: Path, folder: Path) -> None:
    layer = nn.Linear(3, 1)
    with pytest.raises(InputError, match="head=.*size mismatch for weight"):
        filled("head", layer, str(folder / "head.pth"))
    for content in (b"no weights", b""):
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(InputError, match=r"head=.*a\.pth: it cannot be read"):
            filled("head", layer, str(tmp_path / "a.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"head=.*list\.pth: it cannot be read"):
        filled("head", layer, str(tmp_path / "list.pth"))
