"""Guards that look at pixels, at real clips and at how alike the videos of a prompt are."""

from collections.abc import Sequence

from ipo_lightning.guards.guard import RoundFacts
from ipo_lightning.settings import NotNegative, Positive, Share, checked


@checked
class GaugeBand:
    """A gauge has left a band around the base model's: a critic may reward stillness, brightness,
    saturation or noise.

    Args:
        names: of gauges; those that a run does not measure, or that the base has near zero, are
            passed over.
        below: share of the base's value that may be lost. above: that may be added.
        least: value of the base, in the gauge's units, under which its changes say nothing.
    """

    def __init__(
        self,
        names: Sequence[str],
        below: Share = 0.2,
        above: Positive = 0.2,
        least: NotNegative = 0.05,
    ) -> None:
        self.names, self.below, self.above, self.least = tuple(names), below, above, least

    def look(self, rounds: Sequence[RoundFacts], level: float) -> tuple[bool, str] | None:
        """See `Guard`."""
        changes = {}
        for name in self.names:
            before, now = rounds[0].gauge(name), rounds[-1].gauge(name)
            if before is not None and now is not None and before >= max(self.least, 1e-9):
                changes[name] = now / before - 1
        if not changes:
            return None
        out = {name: one for name, one in changes.items() if not -self.below <= one <= self.above}
        shown = out or dict([max(changes.items(), key=lambda item: abs(item[1]))])
        told = ", ".join(f"{name} {100 * one:+.0f} %" for name, one in shown.items())
        return bool(out), f"against the base: {told}"


@checked
class Drift:
    """The error on real clips rises faster than that of runs whose videos get better.

    Args:
        rise: share of the base's error that each round may add.
    """

    def __init__(self, rise: Positive = 0.1) -> None:
        self.rise = rise

    def look(self, rounds: Sequence[RoundFacts], level: float) -> tuple[bool, str] | None:
        """See `Guard`."""
        before, now = rounds[0].gauge("real_error"), rounds[-1].gauge("real_error")
        if not before or now is None:
            return None
        change, allowed = now / before - 1, self.rise * rounds[-1].number
        told = f"the error on real clips changed by {100 * change:+.0f} % against the base"
        return change > allowed, f"{told} ({100 * allowed:.0f} % is the bound of this round)"


@checked
class Diversity:
    """The videos of a prompt have become alike.

    Args:
        least: share of the base's diversity that has to be left, see
            `ipo_lightning.metrics.diversity`.
    """

    def __init__(self, least: Share = 0.4) -> None:
        self.least = least

    def look(self, rounds: Sequence[RoundFacts], level: float) -> tuple[bool, str] | None:
        """See `Guard`."""
        before, now = rounds[0].gauge("diversity"), rounds[-1].gauge("diversity")
        if not before or now is None:
            return None
        told = f"{100 * now / before:.0f} % of the base's diversity within a prompt is left"
        return now < self.least * before, told
