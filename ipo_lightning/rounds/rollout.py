"""The rollout: which videos a round is made of, and the stage that makes them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from ipo_lightning.critics.stage.critique import Critique
from ipo_lightning.policy import Sampling
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.sampling import PromptSeeds, Sampler
from ipo_lightning.seeds import derive_seed, generator
from ipo_lightning.settings import AtLeast, Count, Null, checked


@checked
@dataclass(frozen=True)
class RolloutPlan:
    """Prompts and seeds of every round: a function of the run's seed and the round's number.

    Args:
        prompts: the training prompts, in a fixed order.
        n: candidates a prompt.
        prompts_per_round: how many prompts a round draws; None: all, in every round.
        seed: the run's.
    """

    prompts: Sequence[str]
    n: Annotated[int, AtLeast(2)] = 6  # one candidate is no preference
    prompts_per_round: Annotated[Count | None, Null("all")] = None
    seed: int = 0

    def of_round(self, number: int) -> list[PromptSeeds]:
        """The prompts of a round, each with the seeds of its candidates."""
        seed = derive_seed(self.seed, "prompts", number)
        drawn = torch.randperm(len(self.prompts), generator=generator(seed)).tolist()
        chosen = sorted(drawn[: self.prompts_per_round])
        return [
            PromptSeeds(i, self.prompts[i], tuple(self._seed(number, i, k) for k in range(self.n)))
            for i in chosen
        ]

    def _seed(self, number: int, prompt_index: int, candidate: int) -> int:
        return derive_seed(self.seed, "rollout", number, prompt_index, candidate)


class RolloutStage(RoundStage):
    """Samples candidates from the policy of the round before: ``candidates.jsonl``.

    Args:
        plan: which videos.
        sampler: how they are made.
        critique: a critic behind an address scores videos while others are still being sampled.
    """

    name = "rollout"

    def __init__(self, plan: RolloutPlan, sampler: Sampler, critique: Critique) -> None:
        self.plan, self.sampler, self.critique = plan, sampler, critique

    def done(self, round: Round) -> bool:
        """Whether the list is there as it was written and the store has all its videos."""
        if not round.folder.intact(round.folder.candidates_file):
            return False
        items = self._items(round)
        policy = round.policies.fingerprint(round.policies.before(round.number))
        return not self.sampler.missing(policy, items, round.runtime.precision)

    def run(self, round: Round) -> None:
        """Sample what the store lacks; labels of videos that came out differently are removed."""
        before, folder = round.policies.before(round.number), round.folder
        with (
            round.policies.network(before) as network,
            self.critique.during_rollout(str(round.runtime.device)) as on_candidates,
        ):
            candidates = self.sampler.generate(
                round.policies.fingerprint(before),
                self._items(round),
                network,
                round.runtime,
                round.label(self.name),
                on_candidates,
            )
            if round.workers.leads:
                if folder.were_others(folder.candidates_file, candidates):
                    folder.forget_labels()
                folder.write(folder.candidates_file, candidates)

    def evaluations(self, round: Round) -> int:
        """Of all its videos, whether they were made here or found in the store."""
        file = round.folder.candidates_file
        rows = round.folder.candidates() if file.exists() else []
        return evaluations_of(self.sampler.sampling, (row.prompt_index for row in rows))

    def _items(self, round: Round) -> list[PromptSeeds]:
        return self.plan.of_round(round.number)


def evaluations_of(sampling: Sampling, prompts: Iterable[object]) -> int:
    """Network evaluations of sampling videos, each given by its prompt."""
    return sum(sampling.evaluations(videos) for videos in Counter(prompts).values())
