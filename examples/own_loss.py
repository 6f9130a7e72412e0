"""A loss of your own, trained for one round on the embedded world: python -m examples.own_loss

A loss is a function of errors, (B,) each: how badly a network denoises each video of a pair, with
the noise that both share. It returns one loss and one margin a pair, and reduces nothing.
"""

from functools import partial

import lightning as L
import torch
from torch import Tensor

import ipo_lightning as ipo
from ipo_lightning.losses import PreferenceLoss
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.shapes.judge import ShapesJudge
from ipo_lightning.shapes.prompts import prompts


def bounded_loss(
    policy_win: Tensor, policy_lose: Tensor, ref_win: Tensor, ref_lose: Tensor, *, beta: float
) -> PreferenceLoss:
    """Between 0 and 1, so that a hopelessly wrong pair (a bad label?) stops pulling."""
    margin = (ref_win - policy_win) - (ref_lose - policy_lose)
    return PreferenceLoss(torch.sigmoid(-beta * margin), margin.detach())


def train(outputs: str = "outputs", prompts_a_round: int = 30, steps: int = 10) -> None:
    """One round. The module refuses a loss with another signature before anything is loaded."""
    run, store = ipo.RunDir(f"{outputs}/own_loss"), ipo.Store(f"{outputs}/store")
    policy = ipo.CogVideoX("ipo_lightning/shapes/pipeline", decode_batch=6)
    module = ipo.PreferenceModule(policy, partial(bounded_loss, beta=1000.0), winner_weight=40)
    sampler = ipo.Sampler(policy, store, ipo.Sampling(steps), lossless=True)
    critic, judge = (ipo.critique_of(one, store) for one in (ShapesCritic(), ShapesJudge()))
    held_out = prompts("select")[:prompts_a_round]
    evaluation = ipo.Evaluation(held_out, n=2, sampler=sampler, critic=critic, eval_critic=judge)
    plan = ipo.RolloutPlan(prompts("train"), n=6, prompts_per_round=prompts_a_round)
    loop = ipo.IterationCallback(
        run, ipo.round_stages(sampler, evaluation, rollout=plan, critique=critic)
    )
    trainer = L.Trainer(
        max_epochs=1,
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False,
        logger=False,
        callbacks=loop,
    )
    data = ipo.PreferenceDataModule(store, batch_size=4, optimizer_steps=2 * prompts_a_round)
    trainer.fit(module, data, ckpt_path=ipo.Checkpoints(run).newest(1), weights_only=True)


if __name__ == "__main__":
    train()
