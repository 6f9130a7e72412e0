"""Guards that compare rounds by the held-out judge, on videos of the same prompts and seeds."""

import math
from collections.abc import Sequence

from ipo_lightning.evaluation import compared
from ipo_lightning.guards.best import score_of
from ipo_lightning.guards.guard import RoundFacts


class JudgeFell:
    """The round is worse than the one before it, or than the best one: the interval of the judge's
    paired change lies below zero.

    The base model counts as the first round. Against the round before catches a policy that goes
    wrong while it is still better than the base.
    """

    def look(self, rounds: Sequence[RoundFacts], level: float) -> tuple[bool, str] | None:
        """See `Guard`."""
        newest = rounds[-1]
        best = max(rounds[:-1], key=lambda one: score_of(one.line))
        least: tuple[float, str] | None = None
        for other in {one.number: one for one in (rounds[-2], best)}.values():
            change = compared(newest.rows, other.rows, level).gain
            if math.isnan(change.high):
                continue
            told = (f"the judge's score changed by {change.value:+.3f} [{change.low:+.3f}, "
                    f"{change.high:+.3f}] against round {other.number}")  # fmt: skip
            if least is None or change.high < least[0]:
                least = change.high, told
        return None if least is None else (least[0] < 0, least[1])


class NotBetter:
    """The base model's videos win: the upper end of the win rate over it lies below one half."""

    def look(self, rounds: Sequence[RoundFacts], level: float) -> tuple[bool, str] | None:
        """See `Guard`."""
        wins = compared(rounds[-1].rows, rounds[0].rows, level).win_rate
        if math.isnan(wins.rate):
            return None
        told = f"the win rate over the base is {wins.rate:.2f} [{wins.low:.2f}, {wins.high:.2f}]"
        return wins.high < 0.5, told


class CriticAlone:
    """The training critic sees a gain over the base, and the judge sees none: the policy may learn
    what pleases the critic.

    The critic's gain is sure where its interval lies above zero; the judge's is missing where it is
    zero or less.
    """

    def look(self, rounds: Sequence[RoundFacts], level: float) -> tuple[bool, str] | None:
        """See `Guard`."""
        against = rounds[-1].rows, rounds[0].rows
        critic = compared(*against, level, "score").gain
        judge = compared(*against, level).gain
        if math.isnan(critic.low) or math.isnan(judge.value):
            return None
        told = (f"against the base the critic's score changed by {critic.value:+.3f}, the judge's "
                f"by {judge.value:+.3f}")  # fmt: skip
        return critic.low > 0 >= judge.value, told
