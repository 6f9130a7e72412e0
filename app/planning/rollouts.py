"""What a round's candidates take: network evaluations and operations, drafts included."""

from dataclasses import dataclass

from omegaconf import DictConfig

from app.assembly import Parts, make_sampling
from ipo_lightning.planning.estimate import Estimate
from ipo_lightning.policy import Sampling


@dataclass(frozen=True)
class Videos:
    """Candidates of a prompt that are sampled alike."""

    count: int
    sampling: Sampling

    @property
    def evaluations(self) -> int:
        """Network evaluations of them all."""
        return self.sampling.evaluations(self.count)


def videos_of(parts: Parts, cfg: DictConfig) -> list[Videos]:
    """What is sampled for a prompt: its candidates; or its drafts, then its finals, of which there
    are none where the drafts are too much alike."""
    n, sampling = parts.rollout.n, make_sampling(cfg)
    if parts.drafter is None:
        return [Videos(n, sampling)]
    finals = parts.labelling.finals(parts.module.label_kind, n)
    return [Videos(n, parts.drafter.sampling), Videos(finals, sampling)]


def flops_of_round(estimate: Estimate, videos: list[Videos], prompts: int) -> float:
    """Operations of a round's candidates, on all devices together."""
    return sum(estimate.rollout_flops(prompts, one.count, one.sampling) for one in videos)


def told(videos: list[Videos], prompts: int) -> str:
    """Steps and evaluations, as a part of a sentence."""
    evaluations = prompts * sum(one.evaluations for one in videos)
    steps = [one.sampling.steps for one in videos]
    if len(videos) == 1:
        return f"{steps[0]} steps each: {evaluations} network evaluations"
    return (
        f"drafts of {steps[0]} steps, then at most {videos[1].count} finals a prompt of {steps[1]} "
        f"steps: at most {evaluations} network evaluations"
    )
