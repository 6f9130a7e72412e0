"""Guards that look at what a round was trained on, and at what it did to the winners."""

from collections.abc import Sequence

from ipo_lightning.guards.guard import RoundFacts
from ipo_lightning.settings import Count, NotNegative, checked


@checked
class FewLabels:
    """So few labels were kept that each is trained on again and again.

    Args:
        least: labels of a round.
    """

    def __init__(self, least: Count = 8) -> None:
        self.least = least

    def look(self, rounds: Sequence[RoundFacts], level: float) -> tuple[bool, str] | None:
        """See `Guard`."""
        kept = rounds[-1].line.get("n_pairs")
        if kept is None:
            return None
        return kept < self.least, f"the round was trained on {kept} labels"


@checked
class WinnersError:
    """The policy denoises the winners worse than the reference does: it earns its margin by
    unlearning the losers.

    Args:
        rise: share of the reference's error on the winners that may be added, over a round's draws.
    """

    def __init__(self, rise: NotNegative = 0.1) -> None:
        self.rise = rise

    def look(self, rounds: Sequence[RoundFacts], level: float) -> tuple[bool, str] | None:
        """See `Guard`."""
        figures = rounds[-1].line.get("train") or {}
        error, change = figures.get("error_win"), figures.get("error_win_change")
        if error is None or change is None or error <= change:
            return None
        share = change / (error - change)
        return share > self.rise, f"the winners' error changed by {100 * share:+.1f} % in training"
