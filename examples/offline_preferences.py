"""One round of DPO on preference data of your own: videos, and a file that says which is better.

python -m examples.offline_preferences FILE

FILE is of any format that docs/people.md lists, for example a ``pairs.jsonl`` beside the videos:

{"prompt": "a red ring moving left", "chosen": "videos/a.mp4", "rejected": "videos/b.mp4"}
"""

import sys
from functools import partial

import lightning as L

import ipo_lightning as ipo
from data.published import ImportedPreferences, prompts
from ipo_lightning.shapes.critic import ShapesCritic
from ipo_lightning.shapes.judge import ShapesJudge


def train(file: str, outputs: str = "outputs", optimizer_steps: int = 80) -> None:
    run, store = ipo.RunDir(f"{outputs}/offline"), ipo.Store(f"{outputs}/store")
    policy = ipo.CogVideoX("ipo_lightning/shapes/pipeline")
    sampler = ipo.Sampler(policy, store, ipo.Sampling(steps=10), lossless=True)
    critic, judge = (ipo.critique_of(one, store) for one in (ShapesCritic(), ShapesJudge()))
    held_out = prompts("select", path=file)
    evaluation = ipo.Evaluation(held_out, sampler=sampler, critic=critic, eval_critic=judge)
    labels = ImportedPreferences(file, held_out=held_out)
    module = ipo.PreferenceModule(policy, partial(ipo.dpo_loss, beta=1000.0), winner_weight=40)
    data = ipo.PreferenceDataModule(store, batch_size=4, optimizer_steps=optimizer_steps)
    loop = ipo.IterationCallback(run, ipo.round_stages(sampler, evaluation, imported=labels))
    trainer = L.Trainer(max_epochs=1, callbacks=loop, enable_checkpointing=False, logger=False)
    trainer.fit(module, data, ckpt_path=ipo.Checkpoints(run).newest(1), weights_only=True)


if __name__ == "__main__":
    train(sys.argv[1])
