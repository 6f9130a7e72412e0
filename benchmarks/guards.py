"""Which alarms guards raise: on honest runs, and on critics that reward the wrong thing.

python benchmarks/guards.py --outputs outputs/guards                          3 rounds, some hours
python benchmarks/guards.py --outputs outputs/guards --kinds dpo bright --seeds 1 2

A row is a run of the embedded world: the judge's paired gain over the base with its 95 % interval
round by round, the win rate of the last round, and the alarms of each round. What is finished is
not done again. Honest runs should have none; the others should have one by the round in which the
judge's win rate leaves one half.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from app.entry import CONF, register_resolvers  # noqa: E402
from ipo_lightning.report import table  # noqa: E402
from ipo_lightning.report.tables import interval  # noqa: E402
from ipo_lightning.storage.layout import RunDir  # noqa: E402
from train import train  # noqa: E402

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
                train(compose("train", words))
            rows.append(row(name, RunDir(options.outputs / name).lines()))
    print(table(rows, list(rows[0])))


def row(name: str, lines: list[Mapping[str, Any]]) -> dict[str, str]:
    """The table's row of a run."""
    trained = lines[1:]
    found = {
        f"gain {line['round']}": interval(line["gain"], line["gain_ci"], "+.3f") for line in trained
    }
    raised = [
        f"{line['round']}: {', '.join(one['guard'] for one in line['guards'] if one['alarm'])}"
        for line in trained
        if any(one["alarm"] for one in line["guards"])
    ]
    last = trained[-1]
    return {
        "run": name,
        **found,
        "win rate": interval(last["win_rate"], last["win_rate_ci"]),
        "alarms": "; ".join(raised) or "none",
    }


if __name__ == "__main__":
    main()
