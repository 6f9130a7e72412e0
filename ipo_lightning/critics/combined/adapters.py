"""A critic that rates, turned into one that compares.

The other way round needs no adapter: the labelling computes scores of comparisons (Bradley-Terry).
"""

import json
import math
from collections.abc import Sequence
from typing import Annotated

from ipo_lightning.critics.protocols import Comparison, PointCritic, Rating, check_ready, kind_of
from ipo_lightning.critics.stage.costs import Cost, Watched, cost_of
from ipo_lightning.errors import InputError, within
from ipo_lightning.metrics.preferences import rao_kupper
from ipo_lightning.settings import AtLeast, Positive, checked
from ipo_lightning.video import Clip


@checked
class ScoresToComparisons:
    """A critic that compares by the scores of another: ``d = scale (score - score')`` in logits.

    It has no position bias: exchanging the two videos mirrors its answer exactly, and two videos of
    equal score tie. Fit scale and ties to people's choices (``audit.py``).

    Args:
        critic: one that rates.
        scale: logits a unit of the score, and of each dimension; above 0.
        ties: k >= 1 of `ipo_lightning.metrics.preferences.rao_kupper`; 1: only equal scores tie.
    """

    def __init__(
        self,
        critic: PointCritic,
        scale: Positive = 1.0,
        ties: Annotated[float, AtLeast(1)] = 1.0,
    ) -> None:
        with within("critic"):
            kind = kind_of(critic)
        if kind != "rates":
            compares = f"{type(critic).__name__} compares; give one that rates"
            raise InputError(setting="critic", expected=compares)
        self.critic, self.scale, self.ties = critic, float(scale), float(ties)

    @property
    def identity(self) -> str:
        """The identity of the critic that rates, with scale and ties."""
        scale, ties = (repr(one).removesuffix(".0") for one in (self.scale, self.ties))
        return f"{self.critic.identity}#pairs-1,{scale},{ties}"

    def cost(self, video: Watched) -> Cost:
        """That of two ratings, see `cost_of`."""
        return cost_of(self.critic, video).several(2)

    def ready(self) -> None:
        """Check that the critic that rates can be asked."""
        with within("critic"):
            check_ready(self.critic)

    def load(self, device: str) -> None:
        """Load the critic that rates."""
        with within("critic"):
            self.critic.load(device)

    def release(self) -> None:
        """Release the critic that rates."""
        self.critic.release()

    def compare(
        self, first: Sequence[Clip], second: Sequence[Clip], prompts: Sequence[str]
    ) -> list[Comparison]:
        """One comparison a prompt; without one of the two ratings it has no verdict.

        A video in several comparisons is rated once.
        """
        shown = list(zip([*first, *second], [*prompts, *prompts], strict=True))
        keys = [(id(clip), prompt) for clip, prompt in shown]
        asked = dict(zip(keys, shown, strict=True))
        said = self.critic.rate(
            [clip for clip, _ in asked.values()], [p for _, p in asked.values()]
        )
        ratings = dict(zip(asked, said, strict=True))
        sides = keys[: len(prompts)], keys[len(prompts) :]
        return [self.compared(ratings[a], ratings[b]) for a, b in zip(*sides, strict=True)]

    def compared(self, first: Rating, second: Rating) -> Comparison:
        """The comparison that two ratings make; its certainty is the smaller of theirs."""
        raw = json.dumps([first.raw, second.raw])
        missing = [one for one in (first, second) if not has_score(one)]
        if missing:
            reasons = sorted({one.fault or "unreadable" for one in missing})
            lasting = not all(one.transient for one in missing)
            return Comparison(None, raw=raw, fault=", ".join(reasons), transient=not lasting)
        assert first.score is not None and second.score is not None
        dims = {
            name: rao_kupper(self.scale * (first.dims[name] - second.dims[name]), self.ties)
            for name in sorted(first.dims.keys() & second.dims.keys())
        }
        return Comparison(
            preference=rao_kupper(self.scale * (first.score - second.score), self.ties),
            dims={name: value.expected for name, value in dims.items() if not math.isnan(value[0])},
            certainty=min(first.certainty, second.certainty),
            raw=raw,
            transient=first.transient or second.transient,
        )


def has_score(rating: Rating) -> bool:
    """Whether the rating has a finite score."""
    return rating.score is not None and math.isfinite(rating.score)
