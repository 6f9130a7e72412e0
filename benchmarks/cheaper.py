"""What cheaper candidates do to learning: the judge's gain by network evaluations of candidates.

python benchmarks/cheaper.py --outputs outputs/cheaper                         some hours
python benchmarks/cheaper.py --outputs outputs/cheaper --kinds plain drafted --seeds 1

A row is a way to make candidates: mean over the seeds of the judge's paired gain over the base
after the last round, of prompts followed, of motion travelled and of the error on real clips
beside the base's; labels and network evaluations of all rounds, drafts included; the difference of
the gain from the way that it is compared with, seed by seed, with its 95 % interval (Student's).
What is finished is not done again.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hydra import compose, initialize_config_dir

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from app.entry import CONF, register_resolvers  # noqa: E402
from benchmarks.guards import QUIET  # noqa: E402
from benchmarks.measure import table  # noqa: E402
from ipo_lightning.metrics.intervals import t_quantile  # noqa: E402
from ipo_lightning.storage.layout import RunDir  # noqa: E402
from train import train  # noqa: E402

KINDS = {
    "plain": [],
    "drafted": ["rollout=drafted", "rollout.n=5"],
    "drafted, equal": ["rollout=drafted", "rollout.n=11", "labelling.pair_rule.depth=2"],
    "plain, guided": ["rollout.guidance_scale=3"],
    "drafted, evaluated guided": ["rollout=drafted", "rollout.n=5", "evaluation.guidance_scale=3"],
}
AGAINST = {"drafted": "plain", "drafted, equal": "plain",
           "drafted, evaluated guided": "plain, guided"}  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=Path, required=True, help="of the runs, and their store")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[301, 302, 303, 304, 305])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="of every run")
    options = parser.parse_args()
    register_resolvers()
    ends = {kind: [brought(options, kind, seed) for seed in options.seeds]
            for kind in options.kinds}  # fmt: skip
    print(
        table([row(kind, lines, ends.get(AGAINST.get(kind, ""))) for kind, lines in ends.items()])
    )


def brought(options: argparse.Namespace, kind: str, seed: int) -> list[dict[str, Any]]:
    """The lines of a run, which is made where it is not there."""
    name = f"{kind.replace(', ', '-').replace(' ', '-')}-s{seed}"
    own = [f"seed={seed}", f"name={name}", f"paths.outputs={options.outputs}"]
    words = [*KINDS[kind], *QUIET, *own, f"round={options.rounds}", *options.overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        train(compose("train", words))
    return RunDir(options.outputs / name).lines()[: options.rounds + 1]


def row(
    kind: str, runs: Sequence[Sequence[Mapping[str, Any]]], others: Sequence[Any] | None
) -> dict[str, Any]:
    """The figures of one way, over its seeds."""
    gains = [lines[-1]["gain"]["mean"] for lines in runs]
    against = [lines[-1]["gain"]["mean"] for lines in others or ()]
    made = [sum(line.get("evaluations") or 0 for line in lines) for lines in runs]
    return {
        "candidates": kind,
        "seeds": len(runs),
        "gain": signed(fmean(gains)),
        "by seed": ", ".join(map(signed, gains)),
        "difference": difference(gains, against) if others else "",
        "follow": signed(fmean(_change(lines, "eval_dims", "follow") for lines in runs)),
        "travel": f"{fmean(_ratio(lines, 'travel') for lines in runs) - 1:+.0%}",
        "real error": f"{fmean(_ratio(lines, 'real_error') for lines in runs) - 1:+.0%}",
        "labels": round(fmean(sum(line["n_pairs"] for line in lines) for lines in runs)),
        "evaluations": round(fmean(made)),
    }


def difference(gains: Sequence[float], others: Sequence[float]) -> str:
    """Mean of the paired differences, with its interval where there are two seeds or more."""
    apart = [one - other for one, other in zip(gains, others, strict=True)]
    if len(apart) < 2:
        return signed(apart[0])
    half = t_quantile(0.95, len(apart) - 1) * stdev(apart) / math.sqrt(len(apart))
    middle = fmean(apart)
    return f"{signed(middle)} [{signed(middle - half)}, {signed(middle + half)}]"


def signed(value: float) -> str:
    """A score's change."""
    return f"{value:+.3f}"


def _change(lines: Sequence[Mapping[str, Any]], group: str, name: str) -> float:
    return float(lines[-1][group][name] - lines[0][group][name])


def _ratio(lines: Sequence[Mapping[str, Any]], gauge: str) -> float:
    return float(lines[-1]["gauges"][gauge] / lines[0]["gauges"][gauge])


if __name__ == "__main__":
    main()
