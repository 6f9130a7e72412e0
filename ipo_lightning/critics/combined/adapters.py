"""From one kind of critic to the other.

Scores become comparisons here; comparisons become scores by Bradley and Terry, prompt by prompt, in
the labelling.
"""

import json
import math
from collections.abc import Sequence
from typing import Annotated

from ipo_lightning.critics.protocols import Comparison, PointCritic, Rating, check_ready, kind_of
from ipo_lightning.errors import InputError, within
from ipo_lightning.metrics.preferences import rao_kupper
from ipo_lightning.settings import AtLeast, Positive, checked
from ipo_lightning.video import Clip


@checked
class ScoresToComparisons:
    """A critic that rates, as one that compares: ``d = scale (score - score')`` in logits.

    Fair to both places: exchanging the two videos mirrors its answer exactly, and two videos of
    equal score tie. The scale and the ties want fitting to people's choices (``audit.py``).

    Args:
        critic: the one that rates.
        scale: logits that one unit of the score, and of each dimension, is worth; above 0.
        ties: k >= 1 of `ipo_lightning.metrics.preferences.rao_kupper`; 1 leaves no room for ties.
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
        """See `Critic`."""
        scale, ties = (repr(one).removesuffix(".0") for one in (self.scale, self.ties))
        return f"{self.critic.identity}#pairs-1,{scale},{ties}"

    def ready(self) -> None:
        """See `Critic`."""
        with within("critic"):
            check_ready(self.critic)

    def load(self, device: str) -> None:
        """Load the critic that rates."""
        with within("critic"):
            self.critic.load(device)

    def release(self) -> None:
        """Release it."""
        self.critic.release()

    def compare(
        self, first: Sequence[Clip], second: Sequence[Clip], prompts: Sequence[str]
    ) -> list[Comparison]:
        """One comparison a prompt; where a rating is missing, so is the comparison.

        A video that is shown in several of them is rated once.
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
        """What two ratings say; as sure as the less certain of them."""
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
    """Whether there is a verdict: not a number is none."""
    return rating.score is not None and math.isfinite(rating.score)
