"""How well drafts and foreseen videos rank candidates, and what they cost.

python benchmarks/drafts.py                      the embedded world, without guidance: minutes
python benchmarks/drafts.py --guidance 3

All candidates of a prompt are made in full, drafted in fewer steps, and stopped after k of their
steps and foreseen in m long ones ("k + m"). A row says how these rank the finished videos, by the
rule critic: mean rank correlation within a prompt; of N candidates of which two are finished, the
network evaluations, the finals' gap (best minus worst as drafted) and how many gaps turned round.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import table  # noqa: E402
from ipo_lightning.backbones.cogvideox import CogVideoX  # noqa: E402
from ipo_lightning.policy import Sampling  # noqa: E402
from ipo_lightning.seeds import derive_seed  # noqa: E402
from ipo_lightning.shapes.critic import ShapesCritic  # noqa: E402
from ipo_lightning.shapes.prompts import prompts  # noqa: E402

SHIPPED = Path(__file__).resolve().parent.parent / "ipo_lightning/shapes/pipeline"
CPU = torch.device("cpu")
STOPS = [(k, m) for k in (1, 2, 3, 4) for m in (0, 1, 2, 3)]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--n", type=int, default=8, help="candidates a prompt")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    full = Sampling(options.steps, options.guidance)
    ways = {f"apart, {steps} steps": full.draft(steps=steps) for steps in (2, 3, 4, 5, 6)}
    if full.guided:
        ways |= {f"{key}, no guidance": way.at_guidance(1.0) for key, way in ways.items()}
    ways |= {f"{k} + {m}": full.draft(prune_at=k / full.steps, **({"steps": m} if m else {}))
             for k, m in STOPS}  # fmt: skip
    scores = Scores(options, full, ways)
    finals, n = scores.finals, options.n
    rows = [
        {
            "draft": name,
            "correlation": rank_correlation(drafts, finals),
            "evaluations": ways[name].evaluations(n) + full.after(ways[name]).evaluations(2),
            **_gap(drafts, finals),
        }
        for name, drafts in scores.drafts.items()
    ]
    spread = float((finals.amax(1) - finals.amin(1)).mean())
    rows.append({"draft": "none", "correlation": 1.0, "evaluations": full.evaluations(n),
                 "gap": spread, "turned": 0})  # fmt: skip
    print(table([{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
                 for row in rows]))  # fmt: skip


class Scores:
    """The critic's scores, (prompts, N): of finished videos, and of each way to draft them."""

    def __init__(
        self, options: argparse.Namespace, full: Sampling, ways: dict[str, Sampling]
    ) -> None:
        self.policy, self.critic = CogVideoX(str(SHIPPED), decode_batch=options.n), ShapesCritic()
        self.network = self.policy.build().eval()
        self.negative = self.policy.embed([full.negative_prompt], CPU)
        words = prompts("train")[: options.prompts]
        made = [self._of_prompt(options, i, prompt, full, ways) for i, prompt in enumerate(words)]
        self.finals = torch.stack([one["finals"] for one in made])
        self.drafts = {name: torch.stack([one[name] for one in made]) for name in ways}

    def _of_prompt(
        self,
        options: argparse.Namespace,
        index: int,
        prompt: str,
        full: Sampling,
        ways: dict[str, Sampling],
    ) -> dict[str, Tensor]:
        seeds = [derive_seed(options.seed, "drafts", index, k) for k in range(options.n)]
        text = self.policy.embed([prompt], CPU)
        found = {}
        for name, sampling in {"finals": full, **ways}.items():
            negative = self.negative if sampling.guided else None
            if sampling.prune_at is None:
                latents = self.policy.sample(self.network, seeds, text, negative, sampling)
            else:
                latents = self.policy.foresee(self.network, seeds, text, negative, sampling).x0
            clips = self.policy.decode(latents)
            rated = self.critic.rate(clips, [prompt] * len(clips))
            found[name] = torch.tensor([one.score or 0.0 for one in rated])
        return found


def rank_correlation(drafts: Tensor, finals: Tensor) -> float:
    """Spearman's, (prompts, N) each, mean over the prompts."""
    first, second = (one.argsort(1).argsort(1).double() for one in (drafts, finals))
    first, second = (one - one.mean(1, keepdim=True) for one in (first, second))
    return float(((first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))).mean())


def _gap(drafts: Tensor, finals: Tensor) -> dict[str, float]:
    rows = torch.arange(len(drafts))
    gaps = finals[rows, drafts.argmax(1)] - finals[rows, drafts.argmin(1)]
    return {"gap": float(gaps.mean()), "turned": int((gaps < 0).sum())}


if __name__ == "__main__":
    main()
