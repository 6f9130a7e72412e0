"""The rows of a round's JSON-lines files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipo_lightning.metrics.preferences import Preference


class Row:
    """A frozen dataclass that becomes one JSON object."""

    def row(self) -> dict[str, Any]:
        """The row as plain JSON; its values are not copied, since a round has 100,000 of them."""
        return dict(vars(self))


@dataclass(frozen=True)
class Candidate(Row):
    """One generated video."""

    prompt_index: int
    """Index of the prompt in its split: part of the seed, unique in a round."""
    prompt: str
    candidate: int
    """0 .. N-1 among the videos of its prompt."""
    seed: int
    latents: str
    """Name of the blob with the sampler's own latents, the training data."""
    video: str
    """Name of the mp4 blob: what the critic and people see; empty of a draft that is judged by its
    latents, which has no gauges either."""
    gauges: Mapping[str, float] = field(default_factory=dict)
    """Model-free measurements of the pixels, see `ipo_lightning.metrics.gauges`."""


@dataclass(frozen=True)
class Verdict(Row):
    """What a critic said of one candidate."""

    prompt_index: int
    candidate: int
    video: str
    critic: str
    """The critic's identity."""
    score: float | None
    """None: the critic gave none."""
    dims: Mapping[str, float] = field(default_factory=dict)
    certainty: float = 1.0
    raw: str = ""
    fault: str = ""
    """Why there is no score."""


@dataclass(frozen=True)
class PairVerdict(Row):
    """What a critic said of two candidates of a prompt, both orders taken together."""

    prompt_index: int
    first: int
    """Candidate index; smaller than ``second``."""
    second: int
    first_video: str
    second_video: str
    critic: str
    """The critic's identity."""
    p_first: float | None
    """Chance that the first is better; with ``p_tie`` and ``p_second`` it sums to 1. All three are
    None where there is no verdict."""
    p_tie: float | None
    p_second: float | None
    dims: Mapping[str, float] = field(default_factory=dict)
    """By dimension: chance that the first is better; a tie counts half."""
    certainty: float = 1.0
    consistent: bool = True
    """Whether both orders had the same outcome. Where not, the two tie, whatever the mean."""
    shown: tuple[Sequence[float] | None, ...] = ()
    """The answer to each order, (first, second), then (second, first): the chances that the video
    shown first is better, neither, the video shown second. None: no answer, or not asked."""
    raw: tuple[str, ...] = ()
    """The critic's own words, one text an order, as in ``shown``."""
    fault: str = ""
    """Why there is no verdict."""

    @property
    def outcome(self) -> float | None:
        """Chance that the first is better, a tie counting half; 1/2 where the two orders disagree.
        None: there is no verdict."""
        if self.p_first is None or self.p_second is None:
            return None
        return 0.5 + 0.5 * (self.p_first - self.p_second) if self.consistent else 0.5

    @property
    def tied(self) -> bool:
        """Whether neither video won: the orders disagree, or a tie is the likeliest answer. The
        outcome may still differ from 1/2; strengths are computed from it."""
        if self.p_first is None or self.p_tie is None or self.p_second is None:
            return False
        likeliest = Preference(self.p_first, self.p_tie, self.p_second).outcome
        return not self.consistent or likeliest == "tie"


AnyVerdict = Verdict | PairVerdict
"""A row of verdicts.jsonl, by the kind of critic: one that rates, one that compares."""


@dataclass(frozen=True)
class Pair(Row):
    """A winner and a loser of one prompt."""

    pair: int
    prompt_index: int
    prompt: str
    winner: int
    loser: int
    winner_latents: str
    loser_latents: str
    winner_video: str
    loser_video: str
    margin: float
    """The winner's score minus the loser's."""
    weight: float = 1.0
    certainty: float = 1.0
    """How sure the critic is that the winner is better, in [0, 1]."""


@dataclass(frozen=True)
class Point(Row):
    """One video, desirable or not."""

    point: int
    prompt_index: int
    prompt: str
    candidate: int
    latents: str
    video: str
    desirable: bool
    score: float
    weight: float = 1.0
    reward: float = 0.5
    """In [0, 1], how good the video is among those of its prompt, for losses with graded rewards:
    ``0.5 + 0.5 clip((score - mean of its prompt's scores) / scale, -1, 1)``, where scale is the
    standard deviation of the round's scores about their prompts' means; 0.5 where that is 0.

    The formula is DiffusionNFT's. Its code uses 5 standard deviations of the raw scores as scale,
    which also contain the differences between prompts."""


@dataclass(frozen=True)
class RealClip(Row):
    """A real video with its caption."""

    caption: str
    latents: str
    """Name of the blob with the VAE's encoding of it."""
    file: str
    """The file that it was read from, for people."""
