"""Bounds on a video's gauges, whatever its score."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from ipo_lightning.errors import InputError
from ipo_lightning.settings import Endless, NotNegative, Share, checked
from ipo_lightning.storage.records import Candidate

NO_LIMIT = {"motion": math.inf, "flow": math.inf, "frozen": 1.0, "empty": 1.0}
"""Upper bounds that exclude no video."""


@checked
@dataclass(frozen=True)
class Filters:
    """Bounds on the gauges of a candidate; one outside of them gets no label, whatever its score.

    Many critics reward still videos, and take jitter for motion. These bounds exclude videos that
    do not move, shake or are blank. Each is on the gauge of its name
    (`ipo_lightning.metrics.gauges`).
    """

    min_motion: NotNegative = 0.0
    """Mean change between neighbouring frames, in grey levels (0..255)."""
    max_motion: Annotated[NotNegative, Endless()] = math.inf
    motion_ratio: Share = 0.0
    """A winner must move at least this share of its loser's motion, in [0, 1]."""
    min_flow: NotNegative = 0.0
    """Optical flow: speed of the moving parts, in percent of the frame's height a frame."""
    max_flow: Annotated[NotNegative, Endless()] = math.inf
    max_frozen: Share = 1.0
    """Share of frames that are equal to the one before, in [0, 1]."""
    max_empty: Share = 1.0
    """Share of frames of one colour, in [0, 1]."""

    def __post_init__(self) -> None:
        for name, (low, high) in self._bounds().items():
            if not low <= high:
                left = f"it is above max_{name}={high}: no video could pass"
                raise InputError(setting=f"min_{name}", value=low, expected=left)

    def refuse(self, gauges: Mapping[str, float]) -> str | None:
        """Why a candidate gets no label; None: it passes.

        Raises:
            InputError: a bound is on a gauge that the candidate does not have.
        """
        if gauges["blank"]:
            return "blank"
        for name, (low, high) in self._bounds().items():
            if low > 0 and _gauge(gauges, name) < low:
                return f"{name} below min_{name}"
            if high < NO_LIMIT[name] and _gauge(gauges, name) > high:
                return f"{name} above max_{name}"
        return None

    def _bounds(self) -> dict[str, tuple[float, float]]:
        return {
            "motion": (self.min_motion, self.max_motion),
            "flow": (self.min_flow, self.max_flow),
            "frozen": (0.0, self.max_frozen),
            "empty": (0.0, self.max_empty),
        }

    def still_winner(self, winner: Candidate, loser: Candidate) -> bool:
        """Whether a winner moves too little, compared with its loser."""
        if not winner.video:
            return False  # a draft that is not decoded
        return winner.gauges["motion"] < self.motion_ratio * loser.gauges["motion"]


def _gauge(gauges: Mapping[str, float], name: str) -> float:
    if name not in gauges:
        raise InputError(
            f"labelling.filters: a bound on {name}, which was not measured on these videos; remove "
            "the bound, or give another name=NAME, whose videos are measured again"
        )
    return gauges[name]
