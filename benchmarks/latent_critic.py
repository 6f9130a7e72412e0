"""How well foreseen latents rank a prompt's videos: by a trained latent critic, and decoded.

    python benchmarks/latent_critic.py
    python benchmarks/latent_critic.py --prompts 20 --candidates 8 --steps 100   # a quick look

On the embedded world: candidates of the shipped base for training prompts, foreseen at steps 2 to 5
of 10 and finished, and the rule critic's scores of the finished videos train a latent critic. On
held-out prompts both are asked at each step; the table has the mean rank correlation within a
prompt with the rule critic's score of the finished video.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.assembly import make_sampling
from app.entry import CONF, build, register_resolvers
from ipo_lightning.backbones.denoising import initial_noise
from ipo_lightning.backbones.video_sampler import Batch
from ipo_lightning.metrics.agreement import spearman
from ipo_lightning.reward.latents import (
    Foreseen,
    rewards_of,
    save_latent_critic,
    train_latent_critic,
)
from ipo_lightning.seeds import derive_seed
from ipo_lightning.shapes.critic import ShapesCritic

ASKED = (2, 3, 4, 5)
"""Steps at which videos are foreseen."""


class Videos(NamedTuple):
    """A prompt's videos."""

    foreseen: Foreseen
    """At the steps asked for, and finished."""
    decoded: Tensor
    """(S, N) the rule critic's scores of the same, decoded."""


def sampled(parts: Any, prompt: str, count: int, purpose: str) -> Videos:
    """Sample videos of a prompt, and look at them on the way."""
    policy, network, sampling = parts
    text = policy.embed([prompt], torch.device("cpu"))
    seeds = [derive_seed(7, purpose, prompt, k) for k in range(count)]
    batch = Batch(network, seeds, text.expand(count, -1, -1), None, sampling)
    scheduler = policy.batch_scheduler(sampling, seeds, 0, text.device)
    model, x = policy.guided_model(batch), initial_noise(seeds, policy.latent_shape, text.device)
    seen, levels = [], []
    with torch.no_grad():
        for i, timestep in enumerate(scheduler.timesteps):
            output = model(x, timestep)
            if i + 1 in ASKED:
                seen.append(scheduler.pred_x0(output, i, x))
                levels.append(scheduler.noise_level(i))
            x = scheduler.step(output, i, x)
    latents = torch.stack([*seen, x])
    rated = [ShapesCritic().rate(policy.decode(one), [prompt] * count) for one in latents]
    decoded = torch.tensor([[one.score for one in step] for step in rated])
    dims = torch.tensor([[one.dims[name] for name in sorted(one.dims)] for one in rated[-1]])
    scores = torch.cat([decoded[-1][:, None], dims], 1)
    return Videos(Foreseen(prompt, latents, [*levels, 0.0], scores), decoded)


def correlation(guesses: Tensor, videos: Videos) -> float:
    """Of ranks, with the scores of the finished videos."""
    return spearman(guesses.double(), videos.foreseen.scores[:, 0].double())


def main() -> None:
    """Sample, train, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=60, help="for training")
    parser.add_argument("--candidates", type=int, default=24, help="of each of them")
    parser.add_argument("--held-out", type=int, default=40, help="prompts to ask about, 16 each")
    parser.add_argument("--steps", type=int, default=400, help="of the critic's training")
    parser.add_argument("--out", type=Path, help="a folder for the trained critic")
    args = parser.parse_args()
    torch.set_num_threads(1)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train")
    policy, prompts = build(cfg.backbone, "backbone"), build(cfg.data.prompts, "data.prompts")
    parts = (policy, policy.build().eval(), make_sampling(cfg))
    chosen = [*prompts("train")][: args.prompts]
    train = [sampled(parts, one, args.candidates, "train") for one in chosen]
    held_out = [*prompts("select"), *prompts("final")][: args.held_out]
    asked = [sampled(parts, one, 16, "held out") for one in held_out]
    started = time.perf_counter()
    rows = [one.foreseen for one in train]
    net = train_latent_critic(rows, axis=2, steps=args.steps)
    print(f"trained on {len(rows)} x {args.candidates} videos in "
          f"{time.perf_counter() - started:.0f} s")  # fmt: skip
    print("| step | latent critic | decoded, rule critic |\n|--:|--:|--:|")
    for place, step in enumerate((*ASKED, "finished")):
        with torch.no_grad():
            ours = [correlation(_score(net, one.foreseen, place), one) for one in asked]
        theirs = [correlation(one.decoded[place], one) for one in asked]
        print(f"| {step} | {sum(ours) / len(ours):.2f} | {sum(theirs) / len(theirs):.2f} |")
    if args.out is not None:
        save_latent_critic(net, args.out)


def _score(net: Any, row: Foreseen, place: int) -> Tensor:
    level, prompt = row.noise_levels[place], [row.prompt]
    return rewards_of(net, row.latents[place], level, prompt)[:, 0]


if __name__ == "__main__":
    main()
