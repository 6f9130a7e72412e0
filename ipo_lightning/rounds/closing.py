"""The end of a round: its policy is evaluated, and its line and model card are written."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ipo_lightning.evaluation import EvaluatedVideo, Evaluation, chosen, summary
from ipo_lightning.guards import Guards, RoundFacts, best_of
from ipo_lightning.hub.cards import Data, base_of, model_card
from ipo_lightning.rounds.labels import label_counts
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.storage.layout import RoundDir, RunDir, start_of
from ipo_lightning.storage.run_files import read_typed
from ipo_lightning.storage.store import write_atomically


class EvaluationStage(RoundStage):
    """Measures the round's policy on held-out prompts: ``evaluation.jsonl``, ``choice.jsonl``.

    Args:
        evaluation: whose figures are reported.
        choice: by whose figures rounds are chosen, on other prompts; None: by the reported ones.
    """

    name = "evaluation"

    def __init__(self, evaluation: Evaluation, choice: Evaluation | None = None) -> None:
        self.evaluation, self.choice = evaluation, choice

    def done(self, round: Round) -> bool:
        """Whether the round has its line, since what it says is not all in the files, and these."""
        folder = round.folder
        files = [folder.evaluation_file, *([folder.choice_file] if self._choice(round) else [])]
        return round.run.line(round.number) is not None and all(map(folder.intact, files))

    def run(self, round: Round) -> None:
        """Both critics score the videos; the policy's error on real clips becomes a gauge."""
        module, folder = round.module, round.folder
        with round.policies.network(round.number) as network:
            rows = self._videos(round, self.evaluation, network, evaluated)
            chosen_by = []
            if (choice := self._choice(round)) is not None:
                chosen_by = self._videos(round, choice, network, for_choice)
            error = self.evaluation.real_error(module.policy, network, module.objective)
        if error is not None:
            round.gauges["real_error"] = error
        if not round.number and (spread := self.evaluation.real_diversity()) is not None:
            round.gauges["diversity_real"] = spread
        if round.workers.leads:
            folder.write(folder.evaluation_file, rows)
            if chosen_by:
                folder.write(folder.choice_file, chosen_by)

    def _choice(self, round: Round) -> Evaluation | None:
        """What gives the round other videos to be chosen by; None in a run whose base has none."""
        begun = round.number > 0 or round.run.line(0) is not None
        return self.choice if round.run.round(0).choice_file.exists() or not begun else None

    @staticmethod
    def _videos(
        round: Round,
        evaluation: Evaluation,
        network: nn.Module,
        read: Callable[[RoundDir], list[EvaluatedVideo]],
    ) -> list[EvaluatedVideo]:
        return evaluation.evaluate(
            round.policies.fingerprint(round.number),
            network,
            round.runtime,
            round.heading,
            read(round.run.round(0)) if round.number else None,
        )


class RecordStage(RoundStage):
    """The round's model card, then its line of ``rounds.jsonl``, which says that it is finished.

    Args:
        evaluation: whose held-out prompts the card counts.
        guards: that look at the round first; what they find is part of its line. None: there are
            none.
        rollouts: the stages whose network evaluations the line counts.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        guards: Guards | None = None,
        rollouts: Sequence[RoundStage] = (),
    ) -> None:
        self.evaluation, self.guards, self.rollouts = evaluation, guards, rollouts

    def done(self, round: Round) -> bool:
        """Whether the line is there."""
        return round.run.line(round.number) is not None

    def run(self, round: Round) -> None:
        """Write both on the leading rank."""
        if not round.workers.leads:
            return
        line, before = line_of(round), _lines_before(round)
        sampled = sum(stage.evaluations(round) for stage in self.rollouts) if round.number else 0
        line["evaluations"] = sampled or None  # imported labels take none
        if self.guards is not None:
            facts = [facts_of(round.run, one) for one in (*before, line)]
            line |= self.guards.told(self.guards.look(facts))
        if round.number:
            card = self._card(round, [*before, line])
            write_atomically(round.folder.policy / "README.md", card.encode())
        round.run.append(line)
        best = best_of(round.run.lines())
        write_atomically(round.run.best_file, json.dumps(best).encode())

    def _card(self, round: Round, lines: Sequence[Mapping[str, Any]]) -> str:
        policy, config, number = round.module.policy, round.run.config_file, round.number
        held_out = self.evaluation.units
        return model_card(
            name=round.run.path.name,
            base=base_of(policy),
            adapter=policy.adapter is not None,
            lines=lines,
            data=[data_of(round.run.round(one)) for one in range(1, number + 1)],
            held_out=Data(number, len(held_out), sum(len(one.seeds) for one in held_out)),
            settings=config.read_text() if config.exists() else "",
            command=started_with(),
        )


def line_of(current: Round) -> dict[str, Any]:
    """What ``rounds.jsonl`` says of a round."""
    folder, number = current.folder, current.number
    figures = summary(evaluated(folder), evaluated(current.run.round(0)))
    figures["gauges"] |= {name: round(value, 8) for name, value in current.gauges.items()}
    labels = label_counts(current) if number else {}
    health = folder.figures(folder.training_file) if number else {}
    if folder.choice_file.exists():
        base = for_choice(current.run.round(0))
        figures["choice"] = {"split": "select", **chosen(for_choice(folder), base)}
    if (start := start_of(folder)) is not None:
        figures["start"] = start
    return {
        "round": number,
        **figures,
        "n_pairs": labels.get("kept", 0),
        "labelling": labels,
        "seconds": folder.seconds(),
        "train": {name: round(value, 8) for name, value in health.items()} or None,
        "policy": current.policies.fingerprint(number),
    }


def evaluated(folder: RoundDir) -> list[EvaluatedVideo]:
    """A round's evaluation videos."""
    return read_typed(folder.evaluation_file, EvaluatedVideo)


def for_choice(folder: RoundDir) -> list[EvaluatedVideo]:
    """A round's videos by which rounds are chosen."""
    return read_typed(folder.choice_file, EvaluatedVideo)


def facts_of(run: RunDir, line: Mapping[str, Any]) -> RoundFacts:
    """What guards see of a finished round."""
    folder = run.round(line["round"])
    rows = for_choice(folder) if "choice" in line else evaluated(folder)
    return RoundFacts(folder.number, line, rows)


def _lines_before(round: Round) -> list[dict[str, Any]]:
    return [old for old in round.run.lines() if old["round"] < round.number]


def data_of(folder: RoundDir) -> Data:
    """How much a round was trained on; a round whose list was removed by hand counts none."""
    rows = folder.candidates() if folder.candidates_file.exists() else []
    return Data(folder.number, len({row.prompt_index for row in rows}), len(rows))


def started_with() -> list[str]:
    """The command line, where it is one of this project's own; nothing within another program."""
    return ["python", *sys.argv] if Path(sys.argv[0]).name == "train.py" else []
