"""Gauges as a critic: grades by hand, and what it refuses."""

import json
from typing import Any

import pytest
import torch

from ipo_lightning.critics.protocols import PointCritic
from ipo_lightning.critics.scorers.gauged import Band, GaugeCritic
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.gauges import GAUGES
from ipo_lightning.video import Clip

BANDS = {"exposure": {"low": 50.0, "high": 150.0, "soft": 100.0}, "blank": {"high": 0.0}}


def grey(level: int, spot: int = 255) -> Clip:
    """A grey clip of 100 pixels, one of them another level."""
    frames = torch.full((3, 10, 10, 3), level, dtype=torch.uint8)
    frames[:, 0, 0] = spot
    return Clip(frames, 8.0)


def test_grades_by_hand() -> None:
    band = Band(low=2.0, high=4.0, soft=2.0)
    assert [band.grade(value) for value in (2, 3, 4)] == [1, 1, 1]
    assert [band.grade(value) for value in (1.5, 5, 0, -9, 6)] == [0.75, 0.5, 0, 0, 0]
    assert Band(high=0.0).grade(1e-9) == 0
    assert Band(low=1.0).grade(1e9) == 1


def test_a_rating_by_hand() -> None:
    critic = GaugeCritic(BANDS)
    fine, dark = critic.rate([grey(100), grey(0)], ["a", "b"])
    assert fine.score == 1 and fine.dims == {"blank": 1, "exposure": 1}
    level = 255 / 100
    assert json.loads(dark.raw) == {"blank": 0, "exposure": pytest.approx(level, abs=1e-3)}
    assert dark.score == dark.dims["exposure"] == pytest.approx(1 - (50 - level) / 100, abs=1e-4)
    assert critic.rate([grey(100, spot=100)], ["a"])[0].score == 0  # blank


def test_the_worst_grade_or_their_product() -> None:
    bands = {"exposure": {"high": 0.0, "soft": 200.0}, "saturation": {"low": 10.0, "soft": 20.0}}
    clip = grey(100, spot=100)
    assert GaugeCritic(bands).rate([clip], ["a"])[0].score == pytest.approx(0.5)
    product = GaugeCritic(bands, combine="product").rate([clip], ["a"])[0]
    assert product.dims == {"exposure": pytest.approx(0.5), "saturation": 0.5}
    assert product.score == pytest.approx(0.25)


def test_batch_and_order_do_not_change_a_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 5, 24, 20, 3), generator=generator, dtype=torch.uint8)
    clips = [Clip(frames, 8.0) for frames in pixels]
    critic = GaugeCritic({name: {"low": 1.0, "high": 2.0, "soft": 300.0} for name in GAUGES})
    assert isinstance(critic, PointCritic)
    together = critic.rate(clips, list("abcd"))
    alone = [critic.rate([clip], ["x"])[0] for clip in clips]
    assert together == alone == critic.rate(clips[::-1], list("abcd"))[::-1]
    assert set(together[0].dims) == set(GAUGES)


def test_identity_holds_the_settings() -> None:
    wider = {**BANDS, "exposure": {**BANDS["exposure"], "high": 151.0}}
    critics = [GaugeCritic(BANDS), GaugeCritic(wider), GaugeCritic(BANDS, combine="product")]
    assert len({critic.identity for critic in critics}) == 3
    assert GaugeCritic(dict(reversed(BANDS.items()))).identity == critics[0].identity


@pytest.mark.parametrize(
    ("bands", "match"),
    [
        ({}, "give at least one gauge a band"),
        ({"beauty": {"low": 1}}, "bands.beauty: there is no such gauge; choose among motion"),
        ({"flow": {}}, "give low or high"),
        ({"flow": {"low": 2, "high": 1}}, "low <= high"),
        ({"flow": {"low": 2, "soft": -1}}, "soft >= 0"),
        ({"flow": None}, "bands.flow=None: give low, high, soft, or leave"),
        ({"flow": {"low": "abc"}}, "bands.flow.low=abc: give a number"),
        ({"flow": {"low": float("nan")}}, "bands.flow.low=nan: give a number"),
        ({"flow": {"least": 2}}, "bands.flow.least: a band has low, high and soft"),
    ],
)
def test_wrong_bands_are_refused_in_a_sentence(bands: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        GaugeCritic(bands)


def test_an_unknown_combination_is_refused() -> None:
    with pytest.raises(InputError, match="combine=mean"):
        GaugeCritic(BANDS, combine="mean")  # type: ignore[arg-type]
