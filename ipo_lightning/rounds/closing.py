"""The end of a round: its policy is evaluated, and its line and model card are written."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ipo_lightning.evaluation import EvaluatedVideo, Evaluation, summary
from ipo_lightning.guards import Finding, Guards, RoundFacts
from ipo_lightning.hub.cards import Base, Data, model_card
from ipo_lightning.rounds.labels import label_counts
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.storage.layout import RoundDir
from ipo_lightning.storage.run_files import read_typed
from ipo_lightning.storage.store import write_atomically


class EvaluationStage(RoundStage):
    """Measures the round's policy on held-out prompts: ``evaluation.jsonl``."""

    name = "evaluation"

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation

    def done(self, round: Round) -> bool:
        """Whether the round has its line, since what it says is not all in the file, and that."""
        has_line = round.run.line(round.number) is not None
        return has_line and round.folder.intact(round.folder.evaluation_file)

    def run(self, round: Round) -> None:
        """Both critics score the videos; the policy's error on real clips becomes a gauge."""
        module = round.module
        with round.policies.network(round.number) as network:
            rows = self.evaluation.evaluate(
                round.policies.fingerprint(round.number),
                network,
                round.runtime,
                round.heading,
                evaluated(round.run.round(0)) if round.number else None,
            )
            error = self.evaluation.real_error(module.policy, network, module.objective)
        if error is not None:
            round.gauges["real_error"] = error
        if round.workers.leads:
            if (spread := self.evaluation.diversity(rows)) is not None:
                round.gauges["diversity"] = spread
            round.folder.write(round.folder.evaluation_file, rows)


class RecordStage(RoundStage):
    """The round's model card, then its line of ``rounds.jsonl``, which says that it is finished.

    Args:
        evaluation: whose held-out prompts the card counts.
        guards: that look at the round first; what they find is part of its line. None: there are
            none.
    """

    def __init__(self, evaluation: Evaluation, guards: Guards | None = None) -> None:
        self.evaluation, self.guards = evaluation, guards

    def done(self, round: Round) -> bool:
        """Whether the line is there."""
        return round.run.line(round.number) is not None

    def run(self, round: Round) -> None:
        """Write both on the leading rank."""
        if not round.workers.leads:
            return
        line = line_of(round)
        line["guards"] = [asdict(found) for found in self._look(round, line)]
        if round.number:
            card = self._card(round, line)
            write_atomically(round.folder.policy / "README.md", card.encode())
        round.run.append(line)

    def _look(self, round: Round, line: Mapping[str, Any]) -> list[Finding]:
        if self.guards is None:
            return []
        lines = [*(old for old in round.run.lines() if old["round"] < round.number), line]
        facts = [
            RoundFacts(one["round"], one, evaluated(round.run.round(one["round"]))) for one in lines
        ]
        return self.guards.look(facts)

    def _card(self, round: Round, line: Mapping[str, Any]) -> str:
        policy, config, number = round.module.policy, round.run.config_file, round.number
        held_out = self.evaluation.units
        return model_card(
            name=round.run.path.name,
            base=Base(policy.name, policy.path, policy.revision, *policy.diffusers_classes),
            adapter=policy.adapter is not None,
            lines=[*(old for old in round.run.lines() if old["round"] < number), line],
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


def data_of(folder: RoundDir) -> Data:
    """How much a round was trained on; a round whose list was removed by hand counts none."""
    rows = folder.candidates() if folder.candidates_file.exists() else []
    return Data(folder.number, len({row.prompt_index for row in rows}), len(rows))


def started_with() -> list[str]:
    """The command line, where it is one of this project's own; nothing within another program."""
    return ["python", *sys.argv] if Path(sys.argv[0]).name == "train.py" else []
