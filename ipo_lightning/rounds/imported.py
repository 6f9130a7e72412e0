"""Labels from elsewhere, in place of a round's rollout, critique and labelling.

The round's files are written as if its labels had been made here.
"""

from ipo_lightning.errors import InputError
from ipo_lightning.exchange.source import ImportedLabels, LabelSource
from ipo_lightning.rounds.labels import read_labels
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.sampling import Sampler
from ipo_lightning.storage.layout import RoundData


def imported_stages(source: LabelSource, sampler: Sampler) -> list[RoundStage]:
    """The three stages that write a source's labels down as a round's."""
    prepared = PreparedLabels(source, sampler)
    return [ImportedCandidates(prepared), ImportedVerdicts(prepared), ImportedRows(prepared)]


class FirstRounds(RoundStage):
    """One stage in the first rounds, another in later ones.

    Args:
        last: the last round of the first stage.
    """

    def __init__(self, last: int, first: RoundStage, later: RoundStage) -> None:
        self.name, self.last = later.name, last
        self.first, self.later = first, later

    def done(self, round: Round) -> bool:
        """See `RoundStage`."""
        return self._of(round).done(round)

    def run(self, round: Round) -> None:
        """See `RoundStage`."""
        self._of(round).run(round)

    def evaluations(self, round: Round) -> int:
        """See `RoundStage`."""
        return self._of(round).evaluations(round)

    def load(self, round: Round) -> RoundData:
        """See `RoundStage`."""
        return self._of(round).load(round)

    def _of(self, round: Round) -> RoundStage:
        return self.first if round.number <= self.last else self.later


class PreparedLabels:
    """What a source offers to a round, prepared once for its three stages."""

    def __init__(self, source: LabelSource, sampler: Sampler) -> None:
        self.source, self.sampler = source, sampler
        self._number, self._labels = 0, ImportedLabels([], [], [], {})

    def prepare(self, round: Round) -> ImportedLabels:
        """Read the source anew and encode the videos that the store lacks."""
        module, runtime = round.module, round.runtime
        self._labels = self.source.prepare(
            module.label_kind, module.policy, self.sampler.store, runtime.workers, runtime.device
        )
        self._number = round.number
        return self._labels

    def of(self, round: Round) -> ImportedLabels:
        """The labels as `prepare` last found them for this round."""
        return self._labels if self._number == round.number else self.prepare(round)


class ImportedStage(RoundStage):
    """Never done: in each run the source is read anew, since its file may have changed."""

    def __init__(self, labels: PreparedLabels) -> None:
        self.labels = labels

    def done(self, round: Round) -> bool:
        """See the class."""
        return False


class ImportedCandidates(ImportedStage):
    """The source's videos as a round's candidates."""

    name = "rollout"

    def run(self, round: Round) -> None:
        """Encode videos and prompts.

        Raises:
            InputError: the round was begun with other labels.
        """
        labels = self.labels.prepare(round)
        self.labels.sampler.embed([row.prompt for row in labels.rows], round.runtime)
        if round.workers.leads:
            refuse_other_labels(round, labels)
            round.folder.write(round.folder.candidates_file, labels.candidates)


class ImportedVerdicts(ImportedStage):
    """How each of the source's videos fared."""

    name = "critique"

    def run(self, round: Round) -> None:
        """Write them down; no critic is asked."""
        if round.workers.leads:
            round.folder.write(round.folder.verdicts_file, self.labels.of(round).verdicts)


class ImportedRows(ImportedStage):
    """The source's pairs or points."""

    name = "labelling"

    def run(self, round: Round) -> None:
        """Write them down as they are."""
        if round.workers.leads:
            labels, folder = self.labels.of(round), round.folder
            counts = {"kept": len(labels.rows), "dropped": labels.dropped}
            folder.write_object(folder.labelling_file, counts)
            folder.write(folder.labels_file(round.module.label_kind), labels.rows)

    def load(self, round: Round) -> RoundData:
        """The labels."""
        return round.data._replace(rows=self.labels.of(round).rows)


def refuse_other_labels(round: Round, labels: ImportedLabels) -> None:
    """A round that is begun goes on with the labels that it was begun with.

    Raises:
        InputError: they have changed.
    """
    file = round.folder.labels_file(round.module.label_kind)
    if file.exists() and read_labels(round) != labels.rows:
        raise InputError(
            f"{file}: the imported file or its videos are not what they were when this round "
            "was begun; give another name=NAME, or remove the folder of the round"
        )
