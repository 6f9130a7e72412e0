"""A critic of your own labels a round, without training: python -m examples.own_critic

A critic sees decoded frames and prompts. Look at what it prefers before you train on its labels.
"""

from collections.abc import Sequence
from functools import partial

import ipo_lightning as ipo
from ipo_lightning.critics.protocols import Rating
from ipo_lightning.shapes.judge import ShapesJudge
from ipo_lightning.shapes.prompts import prompts
from ipo_lightning.storage.records import Pair
from ipo_lightning.video import Clip


class Lively:
    """Rates motion: the mean change between neighbouring frames, in grey levels."""

    identity = "lively@1"  # part of each verdict's key: change it when the answers change

    def load(self, device: str) -> None:
        """A model would go to the device here."""

    def release(self) -> None:
        """And give the memory back here."""

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip; frames are uint8 (T, H, W, C)."""
        changes = [clip.frames.float().diff(dim=0).abs().mean().item() for clip in clips]
        return [Rating(change, raw=f"{change:.2f} grey levels") for change in changes]


def label(outputs: str = "outputs", prompts_a_round: int = 10, steps: int = 10) -> list[Pair]:
    """Round 1 up to its labels: videos, verdicts, and the best against the worst of each prompt."""
    run, store = ipo.RunDir(f"{outputs}/own_critic"), ipo.Store(f"{outputs}/store")
    policy = ipo.CogVideoX("ipo_lightning/shapes/pipeline", decode_batch=6)
    sampler = ipo.Sampler(policy, store, ipo.Sampling(steps), lossless=True)
    critic, judge = (ipo.critique_of(one, store) for one in (Lively(), ShapesJudge()))
    held_out = prompts("select")
    evaluation = ipo.Evaluation(held_out, sampler=sampler, critic=critic, eval_critic=judge)
    plan = ipo.RolloutPlan(prompts("train"), n=6, prompts_per_round=prompts_a_round)
    stages = ipo.round_stages(sampler, evaluation, rollout=plan, critique=critic)
    module = ipo.PreferenceModule(policy, partial(ipo.dpo_loss, beta=1000.0))
    ipo.RoundMaker(run, module, stages).bring(1, "labelling")
    return run.round(1).pairs()


if __name__ == "__main__":
    for pair in label():
        print(f"{pair.prompt}: {pair.winner_video[:8]} preferred to {pair.loser_video[:8]}")
