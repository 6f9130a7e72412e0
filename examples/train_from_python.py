"""The loop driven from Python, with a trainer of one's own: two rounds of the embedded world.

python -m examples.train_from_python

The same call after a kill goes on where it stopped, and with ``rounds=3`` it adds a round.
"""

from functools import partial

import lightning as L
from torch.optim import AdamW

import ipo_lightning as ipo
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.shapes.judge import ShapesJudge
from ipo_lightning.shapes.prompts import prompts


def train(outputs: str = "outputs", rounds: int = 2, prompts_a_round: int = 30) -> None:
    run, store = ipo.RunDir(f"{outputs}/from_python"), ipo.Store(f"{outputs}/store")
    policy = ipo.CogVideoX("ipo_lightning/shapes/pipeline", decode_batch=6)
    sampler = ipo.Sampler(policy, store, ipo.Sampling(steps=10), lossless=True)
    critic = ipo.critique_of(ShapesCritic(), store)
    judge = ipo.critique_of(ShapesJudge(), store)
    held_out = prompts("select")[:prompts_a_round]
    evaluation = ipo.Evaluation(held_out, n=2, sampler=sampler, critic=critic, eval_critic=judge)
    plan = ipo.RolloutPlan(prompts("train"), n=6, prompts_per_round=prompts_a_round)
    stages = ipo.round_stages(sampler, evaluation, rollout=plan, critique=critic)
    loss, optimizer = partial(ipo.dpo_loss, beta=1000.0), partial(AdamW, lr=1e-4)
    module = ipo.PreferenceModule(policy, loss, ipo.CachedReference(), optimizer, winner_weight=40)
    data = ipo.PreferenceDataModule(store, batch_size=4, optimizer_steps=2 * prompts_a_round)
    loop = ipo.IterationCallback(run, stages)
    trainer = L.Trainer(
        max_epochs=rounds, reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=False, logger=False, callbacks=loop,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ipo.Checkpoints(run).newest(rounds), weights_only=True)


if __name__ == "__main__":
    train()
