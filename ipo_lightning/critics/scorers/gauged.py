"""Gauges as a critic: how far a video's gauges are outside of given bands.

It needs no weights and ignores the prompt: it can tell broken videos from sound ones, not good ones
from dull ones. Use it as a gradual filter, as a member of ensembles, or where no model can run.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.errors import InputError
from ipo_lightning.metrics.gauges import GAUGES
from ipo_lightning.settings import Says, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip

Combine = Literal["min", "product"]
Bands = Annotated[
    Mapping[
        str, Annotated[Mapping[str, float | None], Says("low, high, soft, or leave the gauge out")]
    ],
    Says("a band to each gauge, as {flow: {low: 0.1}}"),
]


@dataclass(frozen=True)
class Band:
    """The range in which a gauge should lie, in the gauge's units."""

    low: float | None = None
    """None: no lower bound."""
    high: float | None = None
    """None: no upper bound."""
    soft: float = 0.0
    """How far outside of the band the grade reaches 0; 0: at once."""

    def grade(self, value: float) -> float:
        """1 within the band; outside it falls linearly, to 0 at a distance of ``soft``."""
        below = 0.0 if self.low is None else self.low - value
        above = 0.0 if self.high is None else value - self.high
        outside = max(below, above, 0.0)
        if outside == 0:
            return 1.0
        return max(0.0, 1 - outside / self.soft) if self.soft > 0 else 0.0


@checked
class GaugeCritic:
    """Grades a video by its gauges, each in [0, 1]; the score is the worst grade or their product.

    It ignores the prompt, and all sound videos tie at 1. Its certainty is 1: gauges are measured.

    Args:
        bands: gauge -> its band (`ipo_lightning.metrics.gauges.GAUGES` has the gauges, with units).
        combine: ``min``: the worst grade counts; ``product``: all faults count.
    """

    def __init__(self, bands: Bands, combine: Combine = "min") -> None:
        self.bands = {name: band(name, settings) for name, settings in sorted(bands.items())}
        if not self.bands:
            raise InputError(setting="bands", expected="give at least one gauge a band")
        self.combine = combine

    @property
    def identity(self) -> str:
        """A hash of all settings."""
        bands = [[name, one.low, one.high, one.soft] for name, one in self.bands.items()]
        return f"gauges@1#{fingerprint([bands, self.combine])[:12]}"

    def cost(self, video: Watched) -> Cost:
        """Nothing of a device, see `cost_of`: gauges are measured on the CPU."""
        return Cost("gauges", "none")

    def load(self, device: str) -> None:
        """Nothing to load."""

    def release(self) -> None:
        """Nothing to release."""

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip; prompts are ignored. ``raw`` has the gauges' values."""
        return [self.rating(clip) for clip, _ in zip(clips, prompts, strict=True)]

    def rating(self, clip: Clip) -> Rating:
        """The rating of one clip."""
        videos = clip.frames[None]
        values = {name: round(float(GAUGES[name](videos)[0]), 6) for name in self.bands}
        dims = {name: one.grade(values[name]) for name, one in self.bands.items()}
        score = min(dims.values()) if self.combine == "min" else math.prod(dims.values())
        return Rating(score, dims, raw=json.dumps(values))


def band(gauge: str, settings: Mapping[str, float | None]) -> Band:
    """A band from its settings.

    Raises:
        InputError: there is no such gauge, or no value can be in the band.
    """
    if gauge not in GAUGES:
        known = f"there is no such gauge; choose among {', '.join(GAUGES)}"
        raise InputError(setting=f"bands.{gauge}", expected=known)
    unknown = sorted(set(settings) - {"low", "high", "soft"})
    if unknown:
        known = "a band has low, high and soft"
        raise InputError(setting=f"bands.{gauge}.{unknown[0]}", expected=known)
    numbers = {name: None if value is None else float(value) for name, value in settings.items()}
    low, high, soft = numbers.get("low"), numbers.get("high"), numbers.get("soft") or 0.0
    crossed = low is not None and high is not None and low > high
    if (low is None and high is None) or crossed or soft < 0:
        raise InputError(
            setting=f"bands.{gauge}",
            expected=f"low={low}, high={high}, soft={soft}: give low or high, low <= high, and "
            "soft >= 0",
        )
    return Band(low, high, soft)
