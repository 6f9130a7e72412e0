"""From a round's candidates to its labels: the critique and the labelling."""

import json

from ipo_lightning.critics.stage.critique import Critique
from ipo_lightning.errors import InputError
from ipo_lightning.labelling import Labelling
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.storage.layout import RoundData
from ipo_lightning.storage.records import Pair, Point
from ipo_lightning.storage.store import read_jsonl, write_atomically


class CritiqueStage(RoundStage):
    """A critic scores the candidates, or compares them: ``verdicts.jsonl``.

    Args:
        critique: asks the critic what the store does not know yet.
        labelling: refuses a round of which too many verdicts are missing.
    """

    name = "critique"

    def __init__(self, critique: Critique, labelling: Labelling) -> None:
        self.critique, self.labelling = critique, labelling

    def done(self, round: Round) -> bool:
        """Whether the list is there."""
        return round.folder.verdicts_file.exists()

    def run(self, round: Round) -> None:
        """Ask, and write the verdicts down."""
        verdicts = self.critique.ask(
            round.folder.candidates(),
            round.workers,
            str(round.runtime.device),
            round.label(self.name),
        )
        self.labelling.check_missing(verdicts)  # first: a file would say that all were asked
        if round.workers.leads:
            round.folder.write(round.folder.verdicts_file, verdicts)


class LabellingStage(RoundStage):
    """Verdicts become pairs or points: ``pairs.jsonl`` or ``points.jsonl``, ``labelling.json``."""

    name = "labelling"

    def __init__(self, labelling: Labelling) -> None:
        self.labelling = labelling

    def done(self, round: Round) -> bool:
        """Whether the labels that the loss trains on are there."""
        return round.folder.labels_file(round.module.label_kind).exists()

    def run(self, round: Round) -> None:
        """Label on the leading rank; no network takes part."""
        if not round.workers.leads:
            return
        folder, label_kind = round.folder, round.module.label_kind
        rule = self.labelling.pairs if label_kind == "pairwise" else self.labelling.points
        labels = rule(folder.candidates(), folder.verdicts())
        counts = {"kept": len(labels.rows), "dropped": labels.dropped, "figures": labels.figures}
        write_atomically(folder.labelling_file, json.dumps(counts).encode())
        folder.write(folder.labels_file(label_kind), labels.rows)

    def load(self, round: Round) -> RoundData:
        """The labels.

        Raises:
            InputError: there is none.
        """
        rows = read_labels(round)
        if not rows:
            raise InputError(
                f"round {round.number}: no label was kept ({label_counts(round)}); "
                "lower labelling.pair_rule.margin, or raise rollout.n or rollout.prompts"
            )
        return round.data._replace(rows=rows)


def read_labels(round: Round) -> list[Pair] | list[Point]:
    """The labels on disk, of the kind that the loss trains on."""
    return round.folder.pairs() if round.module.label_kind == "pairwise" else round.folder.points()


def label_counts(round: Round) -> dict[str, object]:
    """How many labels were kept and dropped; labels written by hand come without a count."""
    folder = round.folder
    if folder.labelling_file.exists():
        counts: dict[str, object] = json.loads(folder.labelling_file.read_text())
        return counts
    return {"kept": len(read_jsonl(folder.labels_file(round.module.label_kind))), "dropped": {}}
