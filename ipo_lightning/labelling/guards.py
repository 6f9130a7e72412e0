"""Bounds that a video must keep before a critic's word counts."""

from collections.abc import Mapping
from dataclasses import dataclass

from ipo_lightning.records import Candidate


@dataclass(frozen=True)
class Guards:
    """Model-free bounds that a candidate must keep before a critic's word counts.

    Real critics reward stillness; a video that does not move, or is blank, is no example of
    anything. ``motion`` is the mean change between neighbouring frames, in grey levels (0..255).
    """

    min_motion: float = 0.0
    max_motion: float = float("inf")
    motion_ratio: float = 0.0
    """A winner must move at least this share of its loser's motion, in [0, 1]."""

    def refuse(self, gauges: Mapping[str, float]) -> str | None:
        """Why a candidate is left out, or None."""
        motion = gauges["motion"]
        if gauges["blank"]:
            return "blank"
        if motion < self.min_motion:
            return "motion below min_motion"
        if motion > self.max_motion:
            return "motion above max_motion"
        return None

    def still_winner(self, winner: Candidate, loser: Candidate) -> bool:
        """Whether a winner moves too little beside its loser."""
        return winner.gauges["motion"] < self.motion_ratio * loser.gauges["motion"]
