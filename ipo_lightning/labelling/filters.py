"""Bounds that a video must keep before a critic's word counts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from ipo_lightning.errors import InputError
from ipo_lightning.settings import Endless, NotNegative, Share, checked
from ipo_lightning.storage.records import Candidate

NO_LIMIT = {"motion": math.inf, "flow": math.inf, "frozen": 1.0, "empty": 1.0}
"""Upper bounds that every video keeps."""


@checked
@dataclass(frozen=True)
class Filters:
    """Model-free bounds that a candidate must keep before a critic's word counts.

    Real critics reward stillness, and jitter passes for motion; a video that does not move, shakes,
    or is blank, is no example of anything. Each bound is on the gauge of its name
    (`ipo_lightning.metrics.gauges`).
    """

    min_motion: NotNegative = 0.0
    """Mean change between neighbouring frames, in grey levels (0..255)."""
    max_motion: Annotated[NotNegative, Endless()] = math.inf
    motion_ratio: Share = 0.0
    """A winner must move at least this share of its loser's motion, in [0, 1]."""
    min_flow: NotNegative = 0.0
    """Optical flow: how fast what moves moves, in percent of the frame's height a frame."""
    max_flow: Annotated[NotNegative, Endless()] = math.inf
    max_frozen: Share = 1.0
    """Share of frames that repeat the one before, in [0, 1]."""
    max_empty: Share = 1.0
    """Share of frames that show nothing, in [0, 1]."""

    def __post_init__(self) -> None:
        for name, (low, high) in self._bounds().items():
            if not low <= high:
                left = f"it is above max_{name}={high}: no video would be left"
                raise InputError(setting=f"min_{name}", value=low, expected=left)

    def refuse(self, gauges: Mapping[str, float]) -> str | None:
        """Why a candidate is left out, or None.

        Raises:
            InputError: a bound is on a gauge that the candidate was not measured by.
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
        """Whether a winner moves too little beside its loser."""
        return winner.gauges["motion"] < self.motion_ratio * loser.gauges["motion"]


def _gauge(gauges: Mapping[str, float], name: str) -> float:
    if name not in gauges:
        raise InputError(
            f"labelling.filters: a bound on {name}, but these videos were not measured by it; give "
            "another name=NAME, so that they are measured anew, or take the bound off"
        )
    return gauges[name]
