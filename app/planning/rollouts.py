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
    draft = parts.drafter.sampler.sampling
    return [Videos(n, draft), Videos(finals, sampling.after(draft))]


def flops_of_round(estimate: Estimate, videos: list[Videos], prompts: int) -> float:
    """Operations of a round's candidates, on all devices together."""
    return sum(estimate.rollout_flops(prompts, one.count, one.sampling) for one in videos)


def told(videos: list[Videos], prompts: int) -> str:
    """Steps and evaluations, as a part of a sentence."""
    evaluations = prompts * sum(one.evaluations for one in videos)
    first, full = videos[0].sampling, videos[-1].sampling
    if len(videos) == 1:
        return f"{full.steps} steps each: {evaluations} network evaluations"
    drafts = f"drafts of {first.steps} steps"
    if first.prune_at is not None:
        more = f" and {first.finish} more" if first.finish else ""
        drafts = f"foreseen after {first.prune_at}{more} of {full.steps} steps"
    return (
        f"{drafts}, then at most {videos[1].count} finals a prompt of {full.steps - full.resume} "
        f"steps: at most {evaluations} network evaluations"
    )
