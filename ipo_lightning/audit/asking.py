"""A critic's answers about the pairs that people compared, kept in the store as those of a run."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from ipo_lightning.audit.votes import Compared
from ipo_lightning.critics.protocols import (
    Comparison,
    PairCritic,
    PointCritic,
    Question,
    Rating,
    RecordedCritic,
    kind_of,
)
from ipo_lightning.critics.stage.comparing import Couples
from ipo_lightning.critics.stage.critique import PairCritique, PointCritique
from ipo_lightning.decoding.differences import READER, content_name, sha256_of
from ipo_lightning.errors import InputError
from ipo_lightning.labelling.tournaments import opposite
from ipo_lightning.metrics.preferences import Preference
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.storage.records import Candidate, PairVerdict, Verdict
from ipo_lightning.storage.store import Store, fingerprint
from ipo_lightning.video import Clip


class Answer(NamedTuple):
    """A critic's answer about one pair."""

    margin: float
    """Above 0 where it prefers the first; NaN: no verdict."""
    chance: float = math.nan
    """Its own P(first is better), a tie counting half; NaN of a critic that rates."""
    dims: Mapping[str, float] = {}
    """Margins by the critic's dimensions."""
    shown: float = math.nan
    """Of a critic that compares, shown (first, second): 1 for the video shown first, 0 for a tie,
    -1 for the other."""
    swapped: float = math.nan
    """The same, shown (second, first)."""
    raw: tuple[str, ...] = ()
    """Its texts: one a video, or one an order."""
    fault: str = ""
    """Why there is no verdict."""


class Shelf(Store):
    """A store that reads videos where their files are, without a copy."""

    def __init__(self, root: str | Path, *, bars: bool = True) -> None:
        super().__init__(root)
        self.bars = bars
        """Whether progress bars are shown."""
        self.files: dict[str, Path] = {}
        """By name, see `content_name`."""
        self.names: dict[Path, str] = {}

    def path(self, kind: str, name: str, suffix: str) -> Path:
        """The place of an artefact, whether or not it exists."""
        if kind == "videos" and name in self.files:
            return self.files[name]
        return super().path(kind, name, suffix)

    def place(self, files: Iterable[Path]) -> dict[Path, str]:
        """File -> its `content_name`, cached while the file's size and time do not change."""
        new = sorted(set(files) - self.names.keys())
        for file in tqdm(new, "names of videos", unit=" files", disable=not (new and self.bars)):
            self.names[file] = self._name(file)
            self.files[self.names[file]] = file
        return self.names

    def _name(self, file: Path) -> str:
        status = file.stat()
        seen = [str(file.resolve()), status.st_size, status.st_mtime_ns]
        key = fingerprint(["name of a file", READER, *seen])
        known = self.get_record("names", key)
        if isinstance(known, str):
            return known
        try:
            name = content_name(file)
        except OSError as error:
            raise InputError(f"video {file} cannot be read: {error.strerror}") from error
        self.put_record("names", key, name)
        return name


# --- Cost ----------------------------------------------------------------------------------------


class Ledger:
    """The time and tokens that a critic's answers took, over all audits that share the store."""

    def __init__(self, store: Store, identity: str, device: str) -> None:
        self.store, self.device = store, device
        self.key = fingerprint(["what answers took", identity, device])

    def read(self) -> dict[str, Any]:
        """``calls`` (videos rated, or comparisons), ``seconds``, and ``spent`` (such as tokens)."""
        known = self.store.get_record("costs", self.key)
        return known if isinstance(known, dict) else {"calls": 0, "seconds": 0.0, "spent": {}}

    def add(self, calls: int, seconds: float, spent: Mapping[str, float]) -> None:
        """Add the cost of further calls."""
        known = self.read()
        total = {name: known["spent"].get(name, 0) + value for name, value in spent.items()}
        self.store.put_record("costs", self.key, {
            "calls": known["calls"] + calls, "seconds": known["seconds"] + seconds,
            "spent": {**known["spent"], **total},
        })  # fmt: skip


def spent_by(critic: Any) -> dict[str, float]:
    """Requests, tokens and the like that a critic, or the VLM that it asks, has counted."""
    counted = getattr(critic, "spent", None) or getattr(getattr(critic, "vlm", None), "spent", None)
    numbers = vars(counted).items() if counted is not None else ()
    return {k: v for k, v in numbers if isinstance(v, int | float) and k != "seconds"}


class Metered:
    """A critic whose answers are timed.

    Args:
        turn: how often the same questions were asked before. It is part of the identity, so that
            the store does not answer for the critic.
    """

    def __init__(self, critic: Any, ledger: Ledger, turn: int = 0) -> None:
        self.critic, self.ledger, self.turn = critic, ledger, turn

    @property
    def identity(self) -> str:
        """The critic's, with the turn."""
        return f"{self.critic.identity}#again-{self.turn}" if self.turn else self.critic.identity

    def load(self, device: str) -> None:
        self.critic.load(device)

    def release(self) -> None:
        self.critic.release()

    def _timed(self, ask: Callable[[], list[Any]]) -> list[Any]:
        before, start = spent_by(self.critic), time.monotonic()
        answers = ask()
        seconds, after = time.monotonic() - start, spent_by(self.critic)
        self.ledger.add(len(answers), seconds, {k: v - before[k] for k, v in after.items()})
        return answers


class MeteredPoint(Metered):
    """A timed critic that rates."""

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        return self._timed(lambda: self.critic.rate(clips, prompts))


class MeteredPair(Metered):
    """A timed critic that compares."""

    def compare(
        self, first: Sequence[Clip], second: Sequence[Clip], prompts: Sequence[str]
    ) -> list[Comparison]:
        return self._timed(lambda: self.critic.compare(first, second, prompts))


# --- Scores --------------------------------------------------------------------------------------


class PairAsker(Protocol):
    """Asks a critic of some kind about pairs."""

    kind: str
    unit: str
    """What one question is about, in the plural."""
    identity: str
    ledger: Ledger

    def calls(self, pairs: Sequence[Compared]) -> int:
        """How many questions the pairs are, whether or not they were asked before."""
        ...

    def missing(self, pairs: Sequence[Compared], turn: int = 0) -> int:
        """How many questions must yet be asked; ``turn``: how often the same were asked before."""
        ...

    def ask(self, pairs: Sequence[Compared], device: str, turn: int = 0) -> list[Answer]:
        """One answer a pair."""
        ...


def asker_of(critic: Any, shelf: Shelf, device: str, together: int) -> PairAsker:
    """Asks a critic about pairs in the way of its kind: one that can rate is asked to, as in
    training.

    Args:
        together: pairs in one call of a critic that compares.

    Raises:
        InputError: it is not a critic.
    """
    if not hasattr(critic, "identity"):
        raise InputError(f"critic: {type(critic).__name__} is not a critic: it has no identity")
    ledger = Ledger(shelf, critic.identity, device)
    kind = kind_of(critic)
    if kind == "compares":
        return ComparingAsker(critic, shelf, ledger, together)
    if kind == "recorded":
        return RecordedAsker(critic, shelf, ledger)
    return RatingAsker(critic, shelf, ledger)


def label_of(turn: int) -> str:
    """The label of the progress bar."""
    return f"asking again ({turn})" if turn else "asking the critic"


def cost(asked: PairAsker, pairs: Sequence[Compared]) -> dict[str, Any]:
    """The cost of a thousand comparisons like these, from all answers that were timed."""
    known = asked.ledger.read()
    a_pair = asked.calls(pairs) / len(pairs)
    factor = 1000 * a_pair / known["calls"] if known["calls"] else 0.0
    return {
        "calls": known["calls"],
        "unit": asked.unit,
        "calls_a_pair": a_pair,
        "device": asked.ledger.device,
        "seconds_a_thousand": factor * known["seconds"],
        "spent_a_thousand": {name: factor * value for name, value in known["spent"].items()},
    }


class RatingAsker:
    """Asks a critic that rates one video at a time."""

    kind = "pointwise"
    unit = "videos to rate"

    def __init__(self, critic: PointCritic, shelf: Shelf, ledger: Ledger) -> None:
        self.critic, self.shelf, self.ledger = critic, shelf, ledger
        self.identity = critic.identity

    def calls(self, pairs: Sequence[Compared]) -> int:
        """How many videos the pairs have."""
        return len(self._candidates(pairs))

    def missing(self, pairs: Sequence[Compared], turn: int = 0) -> int:
        """How many videos must yet be rated."""
        return self._critique(turn).missing(list(self._candidates(pairs).values()))

    def ask(self, pairs: Sequence[Compared], device: str, turn: int = 0) -> list[Answer]:
        """One answer a pair: the difference of two scores."""
        candidates = self._candidates(pairs)
        todo = list(candidates.values())
        found = self._critique(turn).ask(
            todo, Workers(bars=self.shelf.bars), device, label_of(turn)
        )
        verdicts = dict(zip(candidates, found, strict=True))
        return [
            _difference(verdicts[pair.prompt, pair.first], verdicts[pair.prompt, pair.second])
            for pair in pairs
        ]

    def _critique(self, turn: int) -> PointCritique:
        return PointCritique(MeteredPoint(self.critic, self.ledger, turn), self.shelf)

    def _candidates(self, pairs: Sequence[Compared]) -> dict[tuple[str, Path], Candidate]:
        """Each video with its prompt, once, as a candidate without seed and latents."""
        places = {(pair.prompt, file): None for pair in pairs for file in (pair.first, pair.second)}
        names = self.shelf.place(file for _, file in places)
        return {
            (prompt, file): Candidate(0, prompt, number, 0, "", names[file])
            for number, (prompt, file) in enumerate(places)
        }


def _difference(first: Verdict, second: Verdict) -> Answer:
    """The difference of two ratings as an answer about the pair; NaN where one has no score."""
    dims = {
        name: first.dims[name] - second.dims[name] for name in first.dims if name in second.dims
    }
    raw = tuple(one.raw or _told(one) for one in (first, second))
    if first.score is None or second.score is None:
        return Answer(math.nan, dims=dims, raw=raw, fault=first.fault or second.fault)
    same = first.score == second.score  # also where both are infinite, without a difference
    return Answer(0.0 if same else first.score - second.score, dims=dims, raw=raw)


def _told(verdict: Verdict) -> str:
    """The score in words, for a critic that gives no text."""
    if verdict.score is None:
        return f"no score: {verdict.fault}"
    dims = "".join(f", {name} {value:.3g}" for name, value in verdict.dims.items())
    return f"score {verdict.score:.4g}{dims}"


# --- Comparisons ---------------------------------------------------------------------------------


class ComparingAsker:
    """Asks a critic that compares, in both orders.

    Args:
        together: pairs in one call of the critic.
    """

    kind = "pairwise"
    unit = "comparisons"

    def __init__(self, critic: PairCritic, shelf: Shelf, ledger: Ledger, together: int) -> None:
        self.critic, self.shelf, self.ledger, self.together = critic, shelf, ledger, together
        self.identity = critic.identity

    def calls(self, pairs: Sequence[Compared]) -> int:
        """Both orders of every pair."""
        return 2 * len(pairs)

    def missing(self, pairs: Sequence[Compared], turn: int = 0) -> int:
        """How many videos must yet be compared; where a call lacks an answer, all of the call."""
        return self._critique(turn).missing(self._candidates(pairs))

    def ask(self, pairs: Sequence[Compared], device: str, turn: int = 0) -> list[Answer]:
        """One answer a pair: what both orders say together."""
        verdicts = self._critique(turn).ask(
            self._candidates(pairs), Workers(bars=self.shelf.bars), device, label_of(turn)
        )
        found = {(one.prompt_index, one.first): one for one in verdicts}
        return [_compared(found[divmod(place, self.together)]) for place in range(len(pairs))]

    def _critique(self, turn: int) -> PairCritique:
        critic = MeteredPair(self.critic, self.ledger, turn)
        return PairCritique(critic, self.shelf, Couples(opposite))

    def _candidates(self, pairs: Sequence[Compared]) -> list[Candidate]:
        """The first videos of ``together`` pairs, then their second ones, as `opposite` couples."""
        names = self.shelf.place(file for pair in pairs for file in (pair.first, pair.second))
        found = []
        for start in range(0, len(pairs), self.together):
            group = pairs[start : start + self.together]
            videos = [(one.prompt, one.first) for one in group]
            videos += [(one.prompt, one.second) for one in group]
            unit = start // self.together
            found += [
                Candidate(unit, prompt, number, 0, "", names[file])
                for number, (prompt, file) in enumerate(videos)
            ]
        return found


SIDE = {"first": 1.0, "tie": 0.0, "second": -1.0}


def _compared(verdict: PairVerdict) -> Answer:
    """The verdict on the two videos as an answer about the pair."""
    shown, swapped = (
        math.nan if said is None else SIDE[Preference(*said).outcome] for said in verdict.shown
    )
    chance = math.nan if verdict.outcome is None else verdict.outcome
    return Answer(
        margin=2 * chance - 1,
        chance=chance,
        dims={name: 2 * value - 1 for name, value in verdict.dims.items()},
        shown=shown,
        swapped=swapped,
        raw=verdict.raw,
        fault=verdict.fault,
    )


class RecordedAsker:
    """Looks pairs up among recorded verdicts, such as other people's; nobody is asked."""

    kind = "recorded"
    unit = "verdicts to look up"

    def __init__(self, critic: RecordedCritic, shelf: Shelf, ledger: Ledger) -> None:
        self.critic, self.shelf, self.ledger = critic, shelf, ledger
        self.identity = critic.identity

    def calls(self, pairs: Sequence[Compared]) -> int:
        """A verdict each."""
        return len(pairs)

    def missing(self, pairs: Sequence[Compared], turn: int = 0) -> int:
        """None: a pair that is not among the verdicts has none."""
        return 0

    def ask(self, pairs: Sequence[Compared], device: str, turn: int = 0) -> list[Answer]:
        """One answer a pair, from the recorded verdicts."""
        names = self.shelf.place(file for pair in pairs for file in (pair.first, pair.second))
        hashes = {file: sha256_of(name) for file, name in names.items()}
        return [
            _remembered(
                self.critic.recall(Question(hashes[pair.first], hashes[pair.second], pair.prompt))
            )
            for pair in pairs
        ]


def _remembered(said: Comparison | None) -> Answer:
    if said is None or said.preference is None:
        return Answer(math.nan, fault="not among its verdicts" if said is None else said.fault)
    chance = said.preference.expected
    dims = {name: 2 * value - 1 for name, value in said.dims.items()}
    return Answer(2 * chance - 1, chance, dims, raw=(said.raw,) if said.raw else ())
