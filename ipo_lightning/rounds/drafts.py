"""Candidates that are drafted: all are made cheaply, and those that a label needs in full.

A drafted round goes through rollout and critique twice. First all its candidates, as drafts:
``drafts.jsonl``, ``draft_verdicts.jsonl``. Then the finals of those drafts that the labelling would
make labels of, from the same seeds: ``candidates.jsonl``, ``verdicts.jsonl``. The labels are of
finals alone. Where the drafts are foreseen on the way (``prune_at``), the finals go on from there.
"""

from dataclasses import replace
from typing import NamedTuple

from ipo_lightning.critics.stage.critique import Critique
from ipo_lightning.labelling import Labelling
from ipo_lightning.rounds.labels import CritiqueStage, LabellingStage, drafts_of
from ipo_lightning.rounds.rollout import RolloutPlan, RolloutStage
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.sampling import PromptSeeds, Sampler
from ipo_lightning.storage.layout import DRAFT_CRITIQUE, DRAFTS, RoundData, drafts_in


class Drafter(NamedTuple):
    """How candidates are drafted."""

    sampler: Sampler
    """Makes the drafts."""
    critique: Critique
    """Asks a critic about them, which may be another one than that of the finals."""
    labelling: Labelling
    """Makes labels of them: candidates in these are made in full."""


def drafted_stages(
    plan: RolloutPlan,
    drafter: Drafter,
    sampler: Sampler,
    critique: Critique,
    labelling: Labelling,
) -> list[RoundStage]:
    """Rollout, critique and labelling, with drafts; all but the first is of the finals."""
    finals = sampler.after(drafter.sampler)
    return [
        OfDrafts(DRAFTS, RolloutStage(plan, drafter.sampler, drafter.critique)),
        OfDrafts(DRAFT_CRITIQUE, CritiqueStage(drafter.critique, drafter.labelling)),
        FinalsStage(plan, finals, critique, drafter.labelling),
        CritiqueStage(critique, labelling),
        LabellingStage(labelling, sampler.store, drafted=drafter.labelling),
    ]


class OfDrafts(RoundStage):
    """A stage whose candidates are the round's drafts.

    Args:
        name: its own, by which it is timed.
    """

    def __init__(self, name: str, stage: RoundStage) -> None:
        self.name, self.stage = name, stage

    def done(self, round: Round) -> bool:
        """See `RoundStage`."""
        return self.stage.done(replace(round, drafts=True))

    def run(self, round: Round) -> None:
        """See `RoundStage`."""
        self.stage.run(replace(round, drafts=True))

    def evaluations(self, round: Round) -> int:
        """See `RoundStage`."""
        return self.stage.evaluations(replace(round, drafts=True))

    def load(self, round: Round) -> RoundData:
        """See `RoundStage`."""
        return self.stage.load(replace(round, drafts=True))


class FinalsStage(RolloutStage):
    """Makes in full those candidates whose drafts would become labels: ``candidates.jsonl``.

    Args:
        plan, sampler, critique: as of `RolloutStage`. labelling: makes labels of the drafts.
    """

    def __init__(
        self, plan: RolloutPlan, sampler: Sampler, critique: Critique, labelling: Labelling
    ) -> None:
        super().__init__(plan, sampler, critique)
        self.labelling = labelling

    def done(self, round: Round) -> bool:
        """Whether the list is there, of the finals that these drafts call for."""
        if not super().done(round):
            return False
        listed = [(row.prompt_index, row.candidate) for row in round.folder.candidates()]
        return listed == [(one.prompt_index, k) for one in self._items(round) for k in one.numbers]

    def _items(self, round: Round) -> list[PromptSeeds]:
        wanted = drafts_of(round, self.labelling).wanted
        drafts = drafts_in(round.folder).candidates() if self.sampler.sampling.resume else []
        blobs = {(row.prompt_index, row.candidate): row.latents for row in drafts}
        items = []
        for one in super()._items(round):
            if numbers := wanted.get(one.prompt_index):
                starts = [blobs[one.prompt_index, k] for k in numbers] if blobs else []
                items.append(one.only(numbers, starts))
        return items
