"""A model of your own with a LoRA adapter, one round: python -m examples.own_backbone [FOLDER]

FOLDER is a diffusers pipeline of CogVideoX, or a hub id; by default the included tiny one. For Wan
take ``ipo.Wan`` instead of ``ipo.CogVideoX``. Prompts and critics of the embedded world suit the
included model alone: bring your own for another one.
"""

import sys
from functools import partial
from typing import Any

import lightning as L

import ipo_lightning as ipo
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.shapes.judge import ShapesJudge
from ipo_lightning.shapes.prompts import prompts

TINY = "ipo_lightning/shapes/pipeline"


def train(
    folder: str = TINY,
    outputs: str = "outputs",
    prompts_a_round: int = 30,
    steps: int = 10,
    beta: Any = "auto",  # found from the data: a beta of one model means nothing for another
) -> str:
    """One round; returns the folder of the trained adapter, in the diffusers format."""
    run, store = ipo.RunDir(f"{outputs}/own_backbone"), ipo.Store(f"{outputs}/store")
    policy = ipo.CogVideoX(
        folder,
        lora=ipo.Lora(rank=8, alpha=8),  # None: all weights are trained
        weighting="min_snr",  # of the error over the timesteps
        window=(0.0, 0.9),  # share of the timesteps that is trained on, cleanest first
        checkpointing=True,  # recompute activations in the backward pass
        decode_batch=6,
    )
    loss, reference = partial(ipo.dpo_loss, beta=beta), ipo.AdapterReference()
    module = ipo.PreferenceModule(policy, loss, reference, winner_weight=40)
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
    return str(run.round(1).policy)


if __name__ == "__main__":
    print(train(sys.argv[1] if len(sys.argv) > 1 else TINY))
