"""The rule critic as one that compares, and with the vices of critics that compare.

What a policy of labelling is worth shows where the critic is bad in a known way: these prefer the
video that they see first, or say the opposite of what they mean.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, get_args

from ipo_lightning.critics.protocols import Comparison, Rating
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.metrics.preferences import Outcome, Preference, rao_kupper
from ipo_lightning.settings import AtLeast, Positive, Share, checked
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.video import Clip


@checked
class ShapesPairs:
    """Compares two clips by the difference of their ratings.

    Args:
        sharpness: logits that a whole unit of the rating is worth.
        ties: k of Rao and Kupper, >= 1: how readily it calls a tie.
        bias: logits that the first place is worth; below 0 the second.
        noise: share of its answers that are turned round, in [0, 1]. Which ones is a function of
            the two clips in their order and the prompt: to ask again is no use, but the other order
            is another draw.
        words: answers the likeliest outcome alone, as a judge in words does, however near it was.
    """

    def __init__(
        self,
        sharpness: Positive = 20.0,
        ties: Annotated[float, AtLeast(1)] = 1.2,
        bias: float = 0.0,
        noise: Share = 0.0,
        words: bool = False,
    ) -> None:
        self.sharpness, self.ties, self.bias = sharpness, ties, bias
        self.noise, self.words = noise, words
        self.rules = ShapesCritic()

    @property
    def identity(self) -> str:
        """The rules' and all settings."""
        settings = f"sharpness={self.sharpness},ties={self.ties},bias={self.bias}"
        return f"{self.rules.identity}#pairs-1#{settings},noise={self.noise},words={self.words}"

    def cost(self, video: Watched) -> Cost:
        """Nothing of a device, see `cost_of`."""
        return Cost("rules", "none")

    def load(self, device: str) -> None:
        """Nothing to load: the rules run on the CPU whatever the device."""

    def release(self) -> None:
        """Nothing to give back."""

    def compare(
        self, first: Sequence[Clip], second: Sequence[Clip], prompts: Sequence[str]
    ) -> list[Comparison]:
        """One comparison a prompt, from the ratings of both clips."""
        shown = zip(self.rules.rate(first, prompts), self.rules.rate(second, prompts), strict=True)
        turned = [
            self._chance(*one) < self.noise for one in zip(first, second, prompts, strict=True)
        ]
        return [
            self._comparison(*two, turned=turn) for two, turn in zip(shown, turned, strict=True)
        ]

    def _comparison(self, first: Rating, second: Rating, *, turned: bool) -> Comparison:
        assert first.score is not None and second.score is not None  # rules always have one
        parts = {name: first.dims[name] - second.dims[name] for name in first.dims}
        dims = {name: self._preference(gap, turned).expected for name, gap in parts.items()}
        return Comparison(self._preference(first.score - second.score, turned), dims)

    def _preference(self, gap: float, turned: bool) -> Preference:
        found = rao_kupper(self.sharpness * gap + self.bias, self.ties)
        if self.words:
            found = Preference(*(float(found.outcome == name) for name in get_args(Outcome)))
        return found.mirrored() if turned else found

    @staticmethod
    def _chance(first: Clip, second: Clip, prompt: str) -> float:
        """A number of the question, uniform in [0, 1)."""
        digest = hashlib.sha256(prompt.encode())
        for clip in (first, second):
            digest.update(clip.frames.contiguous().numpy().tobytes())
        return int.from_bytes(digest.digest()[:8], "big") / 2**64
