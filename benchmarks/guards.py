"""Which alarms guards raise: on honest runs, and on critics that reward the wrong thing.

python benchmarks/guards.py --outputs outputs/guards                          3 rounds, some hours
python benchmarks/guards.py --outputs outputs/guards --kinds dpo bright --seeds 1 2
python benchmarks/guards.py --outputs outputs/guards --kinds dpo --rounds 8

A row is a run of the embedded world: the judge's paired gain over the base with its 95 % interval
round by round, the win rate of the last round, the alarms of each round, and the best round. What
is finished is not done again. Honest runs should have no alarm; the others should have one by the
round in which the judge's win rate leaves one half.

An alarm of an honest run is put to the judge again: `--fresh` videos of each prompt with other
noise. It is true where the round is then worse than the one before it, the best one before it, or
the base, interval included, or where a gauge is again out of its band.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from app.assembly import assemble  # noqa: E402
from app.entry import CONF, register_resolvers  # noqa: E402
from ipo_lightning.critics.protocols import Rating  # noqa: E402
from ipo_lightning.evaluation import EvaluatedVideo, Evaluation, compared, summary  # noqa: E402
from ipo_lightning.guards import RoundFacts, alarms, best_of  # noqa: E402
from ipo_lightning.parallel.runtime import Runtime  # noqa: E402
from ipo_lightning.report import table  # noqa: E402
from ipo_lightning.report.tables import gain_of, interval  # noqa: E402
from ipo_lightning.rounds.policies import RoundPolicies  # noqa: E402
from ipo_lightning.shapes.critic import measure, stack_frames, to_ratings  # noqa: E402
from ipo_lightning.shapes.prompts import COLOURS, parse  # noqa: E402
from ipo_lightning.shapes.world import PALETTE  # noqa: E402
from ipo_lightning.storage.layout import RunDir  # noqa: E402
from ipo_lightning.video import Clip  # noqa: E402
from train import train  # noqa: E402


class WrongColour:
    """Rates how near a video's hue is to that of another colour than the prompt asks for."""

    identity = "wrong-colour@1"

    def load(self, device: str) -> None:
        """Nothing to load."""

    def release(self) -> None:
        """Nothing to give back."""

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """A rating in (0, 1] a clip: exp(-distance of the hues), mean over frames."""
        following = dict(zip(COLOURS, (*COLOURS[1:], COLOURS[0]), strict=True))
        wanted = torch.tensor([PALETTE[following[parse(one).colour]] for one in prompts])
        seen = measure(stack_frames(clips, prompts)).colour
        hues = seen / seen.amax(-1, keepdim=True).clamp_min(0.05)
        wrong = wanted / wanted.amax(-1, keepdim=True)
        near = (-(hues - wrong[:, None]).norm(dim=-1)).exp().mean(1)
        return to_ratings(near, {"wrong": near})


HONEST = {
    "dpo": ["loss=dpo"],
    "kto": ["loss=kto"],
    "identity": ["loss=identity"],
    "sft": ["loss=sft"],
    "lora": ["experiment=shapes_lora"],
}
REWARDED = {  # the further up to a bound that no video reaches, the better
    "still": "{flow: {low: null, high: 0, soft: 12}}",
    "bright": "{exposure: {low: 90, soft: 90}}",
    "saturated": "{saturation: {low: 90, soft: 90}}",
    "noisy": "{sharpness: {low: 40, soft: 40}}",
}
HACKS = {
    name: ["critic=gauges", f"critic.bands={bands}", "labelling.filters.motion_ratio=0",
           "labelling.pair_rule.margin=0.005"]
    for name, bands in REWARDED.items()
}  # fmt: skip
HACKS["colour"] = ["critic=shapes", "critic._target_=benchmarks.guards.WrongColour",
                   *HACKS["still"][2:]]  # fmt: skip
KINDS = {**HONEST, **HACKS}
QUIET = ("logger=none", "callbacks.videos=null", "callbacks.progress=null",
         "trainer.enable_progress_bar=false")  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=Path, required=True, help="of the runs, and their store")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fresh", type=int, default=16, help="videos of a prompt, for alarms")
    parser.add_argument("overrides", nargs="*", help="of every run")
    options = parser.parse_args()
    register_resolvers()
    rows = []
    for kind in options.kinds:
        for seed in options.seeds:
            name = f"{kind}-s{seed}"
            own = [f"seed={seed}", f"name={name}", f"paths.outputs={options.outputs}"]
            words = [*KINDS[kind], *QUIET, *own, f"round={options.rounds}", *options.overrides]
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("train", words)
            train(cfg)
            lines = RunDir(options.outputs / name).lines()[: options.rounds + 1]
            rows.append(row(name, lines))
            for number in range(1, len(lines)) if kind in HONEST else ():
                if alarms(lines[number]):
                    print(name, f"round {number}:", looked_again(cfg, lines, number, options.fresh))
    print(table(rows, list(rows[0])))


def looked_again(
    cfg: DictConfig, lines: Sequence[Mapping[str, Any]], number: int, videos: int
) -> str:
    """What fresh videos say of a round with an alarm."""
    best = best_of(lines[:number])["round"]
    others = sorted({0, number - 1, best})
    rows = fresh_rows(cfg, [*others, number], videos)
    told = []
    for other in others:
        gain = compared(rows[number], rows[other]).gain
        told.append(f"against round {other} {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
    facts = [RoundFacts(k, summary(rows[k], rows[0]), rows[k]) for k in (0, number)]
    found = assemble(cfg).guards.checks["gauges"]
    band = found.look(facts, 0.95) if found else None
    return "; ".join([*alarms(lines[number]), "AGAIN", *told, *([band[1]] if band else [])])


def fresh_rows(
    cfg: DictConfig, numbers: Sequence[int], videos: int
) -> dict[int, list[EvaluatedVideo]]:
    """Evaluations of rounds on the reported prompts with other noise than the run's."""
    parts = assemble(cfg)
    known = parts.evaluation
    again = Evaluation(
        known.prompts,
        n=videos,
        seed=cfg.seed,
        sampler=known.sampler,
        critic=known.critic,
        eval_critic=known.eval_critic,
        gauges=known.gauges,
        purpose="fresh",
    )
    parts.module.configure_model()
    policies, found = RoundPolicies(parts.run, parts.module), {}
    for number in numbers:
        with policies.network(number) as network:
            fingerprint = policies.fingerprint(number)
            found[number] = again.evaluate(fingerprint, network, Runtime(), f"round {number}")
    return found


def row(name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The table's row of a run."""
    trained = lines[1:]
    found = {f"gain {line['round']}": gain_of(line) for line in trained}
    raised = [
        f"{line['round']}: {', '.join(one['guard'] for one in line['guards'])}"
        for line in trained
        if line["guards"]
    ]
    last = trained[-1]
    return {
        "run": name,
        **found,
        "win rate": interval(last["win_rate"], last["win_rate_ci"]),
        "alarms": "; ".join(raised) or "none",
        "best": str(best_of(lines)["round"]),
    }


if __name__ == "__main__":
    main()
