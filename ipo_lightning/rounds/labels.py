"""From a round's candidates to its labels: the critique and the labelling."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ipo_lightning.critics.stage.critique import Critique
from ipo_lightning.errors import InputError
from ipo_lightning.labelling import Drafts, Labelling
from ipo_lightning.rounds.files import check_files
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.storage.layout import RoundData, RoundDir, drafts_in
from ipo_lightning.storage.records import AnyVerdict, Candidate, Pair, PairVerdict, Point
from ipo_lightning.storage.run_files import DamagedFile, one_each
from ipo_lightning.storage.store import Store


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
        """Whether the list is there; one that was edited by hand is checked and taken.

        Raises:
            DamagedFile: it does not fit the round's videos.
        """
        folder = round.folder
        if not folder.verdicts_file.exists():
            return folder.intact(folder.verdicts_file)
        if folder.edited(folder.verdicts_file):
            check_verdicts(folder)
            take_edited(round, folder.verdicts_file)
            if round.workers.leads:
                folder.forget_own_labels()
        return True

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
    """Verdicts become pairs or points: ``pairs.jsonl`` or ``points.jsonl``, ``labelling.json``.

    Args:
        store: where the latents of the labels are checked, since they are what a round trains on;
            None: they are not.
        drafted: makes labels of the drafts whose finals these candidates are, and whose order they
            must keep; None: they are no finals of drafts.
    """

    name = "labelling"

    def __init__(
        self,
        labelling: Labelling,
        store: Store | None = None,
        *,
        drafted: Labelling | None = None,
    ) -> None:
        self.labelling, self.store, self.drafted = labelling, store, drafted

    def done(self, round: Round) -> bool:
        """Whether the labels that the loss trains on are there; edited ones are checked and taken.

        Raises:
            DamagedFile: they do not fit the round's videos.
        """
        folder, file = round.folder, round.folder.labels_file(round.module.label_kind)
        if not file.exists():
            return folder.intact(file)
        if folder.edited(file):
            check_labels(folder, file, read_labels(round))
            take_edited(round, file)
        elif file.name not in folder.manifest().edited and folder.edited(folder.labelling_file):
            return folder.intact(folder.labelling_file)  # its counts are made anew with the labels
        return True

    def run(self, round: Round) -> None:
        """Label on the leading rank; no network takes part.

        Raises:
            LostBlob: latents of a label were damaged; on all ranks alike.
        """
        if round.workers.leads:
            self._label(round)
        round.workers.barrier()
        if self.store is not None:
            data = round.data._replace(rows=read_labels(round))
            check_files(data, self.store, round.workers)

    def _label(self, round: Round) -> None:
        folder, label_kind = round.folder, round.module.label_kind
        drafts = None if self.drafted is None else drafts_of(round, self.drafted)
        candidates = folder.candidates()
        labels = self.labelling.labels(label_kind, candidates, folder.verdicts(), drafts)
        counts = {"kept": len(labels.rows), "dropped": labels.dropped, "figures": labels.figures}
        if drafts is not None:
            counts["figures"] = labels.figures | {"prompts": drafts.prompts}
            counts["drafts"] = {"finals": len(candidates), "dropped": drafts.dropped}
        folder.write_object(folder.labelling_file, counts)
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


def drafts_of(round: Round, labelling: Labelling) -> Drafts:
    """What a labelling says of a round's drafts, of which the critic has been asked."""
    folder = drafts_in(round.folder)
    return labelling.drafts(round.module.label_kind, folder.candidates(), folder.verdicts())


def read_labels(round: Round) -> list[Pair] | list[Point]:
    """The labels on disk, of the kind that the loss trains on."""
    return round.folder.pairs() if round.module.label_kind == "pairwise" else round.folder.points()


def label_counts(round: Round) -> dict[str, object]:
    """How many labels were kept and dropped; labels written by hand come without a count."""
    counts: dict[str, object] = round.folder.figures(round.folder.labelling_file)
    return counts or {"kept": len(read_labels(round)), "dropped": {}}


# -------------------------------------------------------------------- edited by hand


def take_edited(round: Round, file: Path) -> None:
    """Take an edited file as it is from now on; the leading rank says so."""
    if round.workers.leads:
        round.folder.adopt(file)


def check_verdicts(folder: RoundDir) -> None:
    """Refuse verdicts that are not one each of what was asked about.

    Raises:
        DamagedFile: says which are lacking or strange.
    """
    file, rows = folder.verdicts_file, folder.verdicts()
    written = folder.manifest().lines.get(file.name, len(rows))
    if len(rows) != written:
        raise DamagedFile(file, f"{len(rows)} lines of the {written} that were written")
    one_each(file, map(_asked, rows), "prompt and videos")
    videos = _by_place(folder.candidates())
    for line, row in enumerate(rows, 1):
        for candidate, video in _judged(row):
            found = videos.get((row.prompt_index, candidate))
            if found is None or found.video != video:
                raise DamagedFile(file, f"line {line}: candidate {candidate} of prompt "
                                  f"{row.prompt_index} is not this video")  # fmt: skip


def check_labels(folder: RoundDir, file: Path, rows: Sequence[Pair | Point]) -> None:
    """Refuse labels whose videos are not those of the round.

    Raises:
        DamagedFile: names the line.
    """
    videos = _by_place(folder.candidates())
    for line, row in enumerate(rows, 1):
        for candidate, latents, video in _labelled(row):
            found = videos.get((row.prompt_index, candidate))
            if found is None or (found.prompt, found.latents, found.video) != (
                row.prompt, latents, video
            ):  # fmt: skip
                raise DamagedFile(file, f"line {line}: candidate {candidate} of prompt "
                                  f"{row.prompt_index} is not in {folder.candidates_file.name} "
                                  "with this prompt, video and latents")  # fmt: skip


def _by_place(candidates: Sequence[Candidate]) -> Mapping[tuple[int, int], Candidate]:
    return {(one.prompt_index, one.candidate): one for one in candidates}


def _asked(row: AnyVerdict) -> tuple[int, ...]:
    if isinstance(row, PairVerdict):
        return row.prompt_index, row.first, row.second
    return row.prompt_index, row.candidate


def _judged(row: AnyVerdict) -> list[tuple[int, str]]:
    if isinstance(row, PairVerdict):
        return [(row.first, row.first_video), (row.second, row.second_video)]
    return [(row.candidate, row.video)]


def _labelled(row: Pair | Point) -> list[tuple[int, str, str]]:
    if isinstance(row, Pair):
        winner = (row.winner, row.winner_latents, row.winner_video)
        return [winner, (row.loser, row.loser_latents, row.loser_video)]
    return [(row.candidate, row.latents, row.video)]
