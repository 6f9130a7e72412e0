"""Several critics as one: their scores are normalised, then averaged with weights."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Generic, Literal, TypeVar

from ipo_lightning.critics.combined.adapters import has_score
from ipo_lightning.critics.combined.normalisation import parts_of, read_normalisation
from ipo_lightning.critics.protocols import (
    Comparison,
    Critic,
    PairCritic,
    PointCritic,
    Rating,
    check_ready,
)
from ipo_lightning.critics.stage.costs import Cost, Watched, combined, cost_of
from ipo_lightning.errors import InputError, within
from ipo_lightning.metrics.preferences import Preference
from ipo_lightning.settings import Text, checked
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip

OnMissing = Literal["fault", "rest"]
C = TypeVar("C", bound=Critic)


class Members(Generic[C]):
    """What both kinds of ensemble share: their members' settings and memory.

    Args:
        concurrent: whether all members are in memory together from `load` to `release`; else each
            is loaded and released in every call.
    """

    method: Literal["rate", "compare"]
    """The method that each member must have."""
    in_turn = False
    """Whether a run asks the members one after the other, whatever ``concurrent`` says."""

    def __init__(self, members: Mapping[str, C], on_missing: OnMissing, concurrent: bool):
        if not members:
            raise InputError(setting="members", expected="give an ensemble one member or more")
        if any("." in name for name in members):
            dotted = f"{', '.join(members)}: a name must not have a full stop"
            raise InputError(setting="members", expected=dotted)
        for name, member in members.items():
            if not hasattr(member, self.method):
                raise InputError(
                    setting=f"members.{name}",
                    expected=f"{type(member).__name__} cannot {self.method}; give one that can "
                    "(docs/critics.md on ensembles of both kinds)",
                )
        self.members, self.on_missing, self.concurrent = dict(members), on_missing, concurrent
        self.device = "cpu"

    def cost(self, video: Watched) -> Cost:
        """Of the members, together or one after the other, see `cost_of`."""
        found = [replace(cost_of(one, video), member=name) for name, one in self.members.items()]
        return combined(found, together=self.concurrent and not self.in_turn)

    def ready(self) -> None:
        """Check that each member can be asked."""
        for name, member in self.members.items():
            with within(f"members.{name}"):
                check_ready(member)

    def load(self, device: str) -> None:
        """Load all members if they are ``concurrent``; else remember the device."""
        self.device = device
        for name, member in self.members.items() if self.concurrent else ():
            with within(f"members.{name}"):
                member.load(device)

    def release(self) -> None:
        """Release what `load` loaded."""
        for member in self.members.values() if self.concurrent else ():
            member.release()

    @contextmanager
    def within_reach(self, member: C) -> Iterator[C]:
        """The member, loaded."""
        if self.concurrent:
            yield member
            return
        try:
            member.load(self.device)
            yield member
        finally:
            member.release()

    def lacking(self, missing: Mapping[str, tuple[str, bool]], rest: int) -> tuple[str, bool]:
        """Why there is no verdict, and whether asking again may help; "" where there is one.

        Args:
            missing: member -> (fault, whether it is transient). rest: how many members answered.
        """
        if not missing or (self.on_missing == "rest" and rest):
            return "", False
        faults = ", ".join(f"{name}: {fault}" for name, (fault, _) in sorted(missing.items()))
        passing = [transient for _, transient in missing.values()]
        # With "rest", one more answer may change the result.
        return faults, any(passing) if self.on_missing == "rest" else all(passing)


@checked
class Ensemble(Members[PointCritic]):
    """Critics that rate, as one critic.

    A **part** is a number of a member's rating: ``clip`` is its score, ``clip.text`` one of its
    dimensions. z is a part minus its mean, divided by its standard deviation. The score is ``sum w
    z / sum |w|``; a part with a negative weight counts against the video. The certainty is ``a / (1
    + s^2)``: s is the weighted standard deviation of the parts' z about the score, and a the
    smallest of the members' certainties. So members that differ by one standard deviation halve the
    certainty. The dimensions are all parts, normalised.

    Args:
        members: by name.
        weights: part -> weight, not 0; None: every member's score counts 1.
        normalisation: a file of `ipo_lightning.critics.combined.normalisation`. None: parts are
            not normalised, for members with scores in the same units.
        on_missing: what to do where a weighted part is missing: ``fault``, no verdict; ``rest``,
            use the other parts.
        concurrent: see `Members`. The critique stage of a run always asks the members one after the
            other; the setting is for other uses of an ensemble, as in sample.py.
    """

    method, in_turn = "rate", True

    def __init__(
        self,
        members: Mapping[str, PointCritic],
        weights: Mapping[str, float] | None = None,
        normalisation: Text | None = None,
        on_missing: OnMissing = "fault",
        concurrent: bool = False,
    ) -> None:
        super().__init__(members, on_missing, concurrent)
        self.weights = dict.fromkeys(members, 1.0) if weights is None else dict(weights)
        self.normalisation = None if normalisation is None else read_normalisation(normalisation)
        self._check(normalisation)

    def _check(self, file: str | None) -> None:
        for part, weight in self.weights.items():
            if part.partition(".")[0] not in self.members:
                known = f"the members are {', '.join(self.members)}"
                raise InputError(setting=f"weights.{part}", expected=known)
            if weight == 0:
                other = "give a number other than 0"
                raise InputError(setting=f"weights.{part}", value=weight, expected=other)
            if self.normalisation is not None and part not in self.normalisation.scales:
                raise InputError(
                    setting="normalisation",
                    value=file,
                    expected=f"it has no scale for {part}: the verdicts that it was fitted to do "
                    "not have it, or it was always the same; fit a new file, or remove the weight",
                )
        if not self.weights:
            raise InputError(setting="weights", expected="give at least one part a weight")

    @cached_property
    def identity(self) -> str:
        """A hash of the members' identities, the weights and the normalisation's content.

        Raises:
            InputError: the normalisation was fitted to verdicts of another critic.
        """
        identities = {name: member.identity for name, member in self.members.items()}
        known = {} if self.normalisation is None else self.normalisation.identities
        for name, identity in known.items():
            if identities.get(name, identity) != identity:
                raise InputError(
                    f"member {name} is {identities[name]}, but the normalisation was fitted to "
                    f"{identity}: fit it to the verdicts of this one"
                )
        scales = None if self.normalisation is None else self.normalisation.scales
        settings = [identities, self.weights, scales, self.on_missing]
        return f"ensemble-1#{fingerprint(settings)[:16]}"

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip; one member after the other is asked about all clips."""
        said = {}
        for name, member in self.members.items():
            with self.within_reach(member) as critic:
                said[name] = critic.rate(clips, prompts)
        return [
            self.combine({name: ratings[at] for name, ratings in said.items()})
            for at in range(len(clips))
        ]

    def combine(self, ratings: Mapping[str, Rating]) -> Rating:
        """The members' ratings of one video as one rating."""
        values = self._normalised(ratings)
        raw = json.dumps({name: one.raw for name, one in ratings.items()})
        missing = {
            name: (one.fault or f"no {part}", one.transient)
            for part in self.weights
            for name in [part.partition(".")[0]]
            for one in [ratings[name]]
            if part not in values
        }
        parts = {part: weight for part, weight in self.weights.items() if part in values}
        fault, transient = self.lacking(missing, len(parts))
        if fault:
            return Rating(None, values, raw=raw, fault=fault, transient=transient)
        total = math.fsum(abs(weight) for weight in parts.values())
        turned = {part: values[part] if w > 0 else -values[part] for part, w in parts.items()}
        score = math.fsum(abs(w) * turned[part] for part, w in parts.items()) / total
        spread = math.fsum(abs(w) * (turned[part] - score) ** 2 for part, w in parts.items())
        sure = min(ratings[part.partition(".")[0]].certainty for part in parts)
        passing = any(rating.transient for rating in ratings.values())
        return Rating(score, values, sure / (1 + spread / total), raw, transient=passing)

    def _normalised(self, ratings: Mapping[str, Rating]) -> dict[str, float]:
        """The parts that the ratings have, normalised."""
        values: dict[str, float] = {}
        for name, rating in ratings.items():
            if has_score(rating):
                values |= parts_of(name, rating.score, rating.dims)
        if self.normalisation is None:
            return values
        scales = self.normalisation.scales
        return {
            part: (value - scales[part].mean) / scales[part].std
            for part, value in values.items()
            if part in scales
        }


@checked
class PairEnsemble(Members[PairCritic]):
    """Critics that compare, as one critic: the weighted mean of their preferences.

    With d = P(first) - P(second) of each member, the certainty is ``a (1 - m)``: m is the weighted
    mean of ``|d - mean d|``, 0 where all members agree, and a the smallest of their certainties.
    Exchanging the videos mirrors the answer exactly if it mirrors the members' answers. Dimensions
    are ``member.dimension``, and ``member``: the chance that the first is better.

    Args:
        members: by name.
        weights: member -> weight above 0; None: all count 1.
        on_missing: as in `Ensemble`.
        concurrent: see `Members`. There are few questions in a call: members that are loaded for
            each would be loaded all the time.
    """

    method = "compare"

    def __init__(
        self,
        members: Mapping[str, PairCritic],
        weights: Mapping[str, float] | None = None,
        on_missing: OnMissing = "fault",
        concurrent: bool = True,
    ) -> None:
        super().__init__(members, on_missing, concurrent)
        self.weights = dict.fromkeys(members, 1.0) if weights is None else dict(weights)
        if self.weights.keys() != self.members.keys() or not min(self.weights.values()) > 0:
            each = f"give each of {', '.join(members)} a weight above 0"
            raise InputError(setting="weights", value=self.weights, expected=each)

    @cached_property
    def identity(self) -> str:
        """A hash of the members' identities, the weights and ``on_missing``."""
        identities = {name: member.identity for name, member in self.members.items()}
        return f"pairs-1#{fingerprint([identities, self.weights, self.on_missing])[:16]}"

    def compare(
        self, first: Sequence[Clip], second: Sequence[Clip], prompts: Sequence[str]
    ) -> list[Comparison]:
        """One comparison a prompt."""
        said = {}
        for name, member in self.members.items():
            with self.within_reach(member) as critic:
                said[name] = critic.compare(first, second, prompts)
        return [
            self.combine({name: answers[at] for name, answers in said.items()})
            for at in range(len(prompts))
        ]

    def combine(self, answers: Mapping[str, Comparison]) -> Comparison:
        """The members' comparisons of two videos as one comparison."""
        raw = json.dumps({name: one.raw for name, one in answers.items()})
        known = {n: one.preference for n, one in answers.items() if one.preference is not None}
        missing = {
            name: (one.fault or "unreadable", one.transient)
            for name, one in answers.items()
            if name not in known
        }
        fault, transient = self.lacking(missing, len(known))
        if fault:
            return Comparison(None, raw=raw, fault=fault, transient=transient)
        weights = {name: self.weights[name] for name in known}
        mean = Preference(
            weighted(weights, known, lambda p: p.first),
            weighted(weights, known, lambda p: p.tie),
            weighted(weights, known, lambda p: p.second),
        )
        lean = mean.first - mean.second
        apart = weighted(weights, known, lambda p: abs(p.first - p.second - lean))
        dims = {name: preference.expected for name, preference in known.items()}
        for name in known:
            dims |= {f"{name}.{dim}": value for dim, value in answers[name].dims.items()}
        sure = min(answers[name].certainty for name in known)
        passing = any(answer.transient for answer in answers.values())
        return Comparison(mean, dims, sure * max(0.0, 1 - apart), raw, transient=passing)


def weighted(
    weights: Mapping[str, float],
    preferences: Mapping[str, Preference],
    value: Callable[[Preference], float],
) -> float:
    """The weighted mean of a number of each preference."""
    total = math.fsum(weights.values())
    return math.fsum(weight * value(preferences[name]) for name, weight in weights.items()) / total
