"""What a stage of a round is, and what it is given."""

from dataclasses import dataclass, field

from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.rounds.headings import heading
from ipo_lightning.rounds.policies import RoundPolicies
from ipo_lightning.storage.layout import RoundData, RoundDir, RunDir, drafts_in


@dataclass(frozen=True)
class Round:
    """A round on its way through the stages.

    A stage reads what earlier stages wrote to the round's folder and to the store.
    """

    number: int
    run: RunDir
    module: PreferenceModule
    policies: RoundPolicies
    runtime: Runtime
    data: RoundData
    """What the stages before this one loaded for the training."""
    draws: int = 0
    """Draws that the training will make, on all ranks together."""
    training_seconds: float = 0.0
    """Spent on the round's training so far."""
    gauges: dict[str, float] = field(default_factory=dict)
    """Further measurements of the round's policy; a stage adds to them, its line shows them."""
    last: int | None = None
    """The run's last round; None: there is none."""
    drafts: bool = False
    """Whether its videos are the drafts of candidates, see `ipo_lightning.rounds.drafts`."""

    @property
    def folder(self) -> RoundDir:
        """Where the round's files lie."""
        found = self.run.round(self.number)
        return drafts_in(found) if self.drafts else found

    @property
    def workers(self) -> Workers:
        """The processes that share the round's work."""
        return self.runtime.workers

    def label(self, work: str) -> str:
        """How a progress bar names some work of this round."""
        return f"{self.heading}: {work}{' of drafts' if self.drafts else ''}"

    @property
    def heading(self) -> str:
        """The round, and the time that is left of the run, for whom it is shown to."""
        return heading(self.run, self.number, self.last if self.workers.shows else None)


class RoundStage:
    """One stage of a round; one of your own overrides what it needs.

    All ranks call each method together, but for `done`, which the leading rank alone is asked. A
    stage that was stopped is run again and finds what it had finished: results go to the store, and
    to files that appear whole.
    """

    name: str = ""
    """Its name for ``until`` and its key among the seconds of a round; empty: it is not timed."""

    def done(self, round: Round) -> bool:
        """Whether nothing is left to make; asked of the leading rank, for all."""
        return True

    def run(self, round: Round) -> None:
        """Make what is missing. The leading rank alone writes files of the round."""

    def evaluations(self, round: Round) -> int:
        """Network evaluations (one video through the network once) that sampling a round's
        candidates takes in this stage; asked of the leading rank, when it is done."""
        return 0

    def load(self, round: Round) -> RoundData:
        """``round.data`` with this stage's part of it; called after `run`, or in its place."""
        return round.data
