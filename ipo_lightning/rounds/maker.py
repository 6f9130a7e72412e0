"""Brings a round through its stages, from any state that a run was left in."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.rounds.labels import LabellingStage
from ipo_lightning.rounds.policies import RoundPolicies
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.rounds.training import TrainingClock, TrainingStage
from ipo_lightning.storage.layout import RoundData, RunDir, Stage
from ipo_lightning.storage.store import LostBlob

ATTEMPTS = 3
"""How often a round's stages are gone through where files of theirs prove damaged."""


class StageReached(Exception):
    """Raised to leave the fit once the stage named by ``until`` is finished."""

    def __init__(self, stage: Stage, number: int) -> None:
        super().__init__(f"stopped after the {stage} of round {number}, as asked")
        self.stage, self.number = stage, number


class RoundMaker:
    """Makes, exports and closes the rounds of a run; what is on disk is found, not made again.

    A `RoundSource`. The iteration callback makes one for a Lightning trainer; without a trainer::

        maker = RoundMaker(RunDir("outputs/mine"), module, round_stages(...))
        maker.bring(1, "labelling")               # videos, verdicts and labels of round 1
        data = maker.ensure_round(1, draws=640)   # all that round 1 trains on
        ...                                       # your own training steps on module.network
        maker.close_round(1)                      # export and evaluate what the module holds

    Args:
        run: the run's folder.
        module: its policy and its network, which is built here where no trainer has built it.
        stages: of a round, in order, see `round_stages`.
        runtime: device, precision and processes; None: one process on the CPU in float32.
        last_round: the last round that is made; None: there is no last one.
        until: a stage of the last round after which `StageReached` is raised.
        clock: how long a round has trained.
        on_closed: called on all ranks with the number of a round that has just been closed.
    """

    def __init__(
        self,
        run: RunDir,
        module: PreferenceModule,
        stages: Sequence[RoundStage],
        runtime: Runtime | None = None,
        *,
        last_round: int | None = None,
        until: Stage | None = None,
        clock: TrainingClock | None = None,
        on_closed: Callable[[int], None] | None = None,
    ) -> None:
        self.run, self.module, self.runtime = run, module, runtime or Runtime()
        self.policies = RoundPolicies(run, module)
        self.last_round, self.until = last_round, until
        self.clock, self.on_closed = clock or TrainingClock(), on_closed
        self._seen: set[int] = set()
        """Rounds that were closed here, or found so."""
        names = [stage.name for stage in stages]
        training = names.index(TrainingStage.name)
        self.before, self.after = list(stages[:training]), list(stages[training:])

    def ensure_round(self, number: int, draws: int) -> RoundData:
        """Everything that round ``number`` trains on, made or found; see `RoundSource`."""
        for earlier in range(number):
            if earlier == number - 1 or earlier not in self._seen:
                self.close_round(earlier)
        if self.last_round is not None:
            number = min(number, self.last_round)  # a finished run is asked for one round too many
        data = self._go_through(self.before, self._begin(number, draws)).data
        reference = self.policies.reference_of(number)
        online = self.module.reference.answers == "online"
        self.policies.go_to_start(number)
        self.module.begin_round(number, self.policies.weights(reference) if online else None)
        return data

    def bring(self, number: int, stage: str) -> None:
        """Make what a round lacks before its training, up to and including a stage.

        Raises:
            ValueError: no stage before the training has this name.
        """
        names = [one.name for one in self.before]
        self._go_through(self.before[: names.index(stage) + 1], self._begin(number))

    def close_round(self, number: int) -> None:
        """Export, evaluate and record the policy of a trained round; 0 is the base model.

        What was lost or damaged since of a finished round is made anew.
        """
        self._seen.add(number)
        finished = self._agree(lambda: self.run.line(number) is not None)
        if finished and self._agree(lambda: self.run.closed(number)):
            return
        if finished and number:
            self.bring(number, LabellingStage.name)
        stages = self.after if number else self.after[1:]
        self._go_through(stages, self._begin(number))
        if self.on_closed is not None and not finished:
            self.on_closed(number)

    def _begin(self, number: int, draws: int = 0) -> Round:
        """A round before its first stage; it has a folder and a network."""
        self._build_network()
        data, seconds = RoundData(number, (), {}), self.clock.seconds
        begun = Round(
            number,
            self.run,
            self.module,
            self.policies,
            self.runtime,
            data,
            draws,
            seconds,
            last=self.last_round,
        )
        if begun.workers.leads:
            begun.folder.path.mkdir(parents=True, exist_ok=True)
        begun.workers.barrier()
        return begun

    def _build_network(self) -> None:
        if hasattr(self.module, "network"):
            return  # by the trainer, as its strategy wants it
        self.module.configure_model()
        self.module.to(self.runtime.device)
        self.module.reference.attach(self.module.policy, self.module.network)

    def _go_through(self, stages: Sequence[RoundStage], current: Round) -> Round:
        """A round after these stages; what proves damaged where it is used is made anew.

        Raises:
            LostBlob: the store loses what was just made, time and again.
        """
        for _ in range(ATTEMPTS - 1):
            try:
                return self._attempt(stages, current)
            except LostBlob:
                current.workers.barrier()  # no rank is in the midst of a stage
        return self._attempt(stages, current)

    def _attempt(self, stages: Sequence[RoundStage], current: Round) -> Round:
        """Stop after the stage that was asked for."""
        for stage in stages:
            if not self._agree(partial(stage.done, current)):
                self._run(stage, current)
            if stage.name == self.until and current.number == self.last_round:
                raise StageReached(self.until, current.number)
            current = replace(current, data=stage.load(current))
        return current

    def _run(self, stage: RoundStage, current: Round) -> None:
        """Run a stage and time it."""
        started = time.monotonic()
        stage.run(current)
        if stage.name and current.workers.leads:
            current.folder.add_seconds(stage.name, time.monotonic() - started)
        current.workers.barrier()

    def _agree(self, find: Callable[[], bool]) -> bool:
        return self.runtime.workers.agree(find)
