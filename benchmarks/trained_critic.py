"""Does a critic trained on 500 noisy labels drive the loop? A table from labels to win rates.

python benchmarks/trained_critic.py --seed 1

Labels 500 pairs of the base model's videos by simulated annotators, trains a critic on them, and
lets it label the embedded run; beside it the rule critic, of whose scores the labels are a noisy
view, and a critic trained on the same labels, shuffled, which has nothing to learn. Everything
but the critic is the same. Figures are the last round's on the final split, whose prompts no label
and no choice of settings has seen: the judge's score and its win rate over the base on the same
seeds, with its 95 % interval over prompts. What is finished is not done again.
"""

import argparse
import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ipo_lightning.critics.people.annotations import read_annotations, write_annotations
from ipo_lightning.shapes.annotators import PAIRS_FILE

REPO = Path(__file__).resolve().parent.parent
COLUMNS = ("labels by", "critic: accuracy on held-out labels", "judge", "follow (judge)",
           "win rate over the base", "motion travelled", "pairs a round")  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="of the labels, the critic and the run")
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--round", type=int, default=2)
    parser.add_argument("--split", choices=["select", "final"], default="final")
    parser.add_argument("--out", type=Path, default=REPO / "outputs/trained_critic")
    parser.add_argument("--critic-settings", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--run-settings", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    out: Path = options.out
    labels = out / f"labels-{options.pairs}-s{options.seed}"
    if not (labels / PAIRS_FILE).is_file():
        run("-m", "ipo_lightning.shapes.annotators", "--out", str(labels),
            "--pairs", str(options.pairs), "--seed", str(options.seed))  # fmt: skip
    shuffle(labels, options.seed)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    common = [f"seed={options.seed}", f"paths.outputs={out}", "logger=none"]
    run_words = [*common, f"round={options.round}", f"evaluation.split={options.split}",
                 *options.run_settings]  # fmt: skip
    for kind, file in (("trained critic", PAIRS_FILE), ("shuffled labels", "shuffled.jsonl")):
        name = f"{kind.split()[0]}-{options.pairs}-s{options.seed}"
        words = [*common, f"data.path={labels / file}", *options.critic_settings]
        folder = critic(out, f"critic-{name}", words)
        chosen = ["critic=trained", f"critic.path={folder}"]
        print(row(kind, folder, policy(out, name, [*run_words, *chosen])), flush=True)
    print(row("rules", None, policy(out, f"rules-s{options.seed}", run_words)), flush=True)


def run(*words: str) -> None:
    """One command of the repository, its progress on the terminal's error stream."""
    subprocess.run([sys.executable, *words], cwd=REPO, check=True, stdout=sys.stderr)


def shuffle(labels: Path, seed: int) -> None:
    """Write the same verdicts, assigned to the pairs at random."""
    rows = read_annotations(labels / PAIRS_FILE)
    verdicts = [one.labels for one in rows]
    random.Random(seed).shuffle(verdicts)
    shuffled = [
        dataclasses.replace(one, labels=verdict)
        for one, verdict in zip(rows, verdicts, strict=True)
    ]
    write_annotations(labels / "shuffled.jsonl", shuffled)


def critic(out: Path, name: str, words: Sequence[str]) -> Path:
    """Train a critic; returns its folder."""
    run("train.py", "task=critic", f"name={name}", *words)
    return out / name / "critic"


def policy(out: Path, name: str, words: Sequence[str]) -> list[dict[str, Any]]:
    """Train a policy; returns its rounds."""
    run("train.py", f"name={name}", *words)
    lines = (out / name / "rounds.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def row(labels_by: str, folder: Path | None, rounds: Sequence[dict[str, Any]]) -> str:
    """One row of the table: the last round beside the base."""
    base, last = rounds[0], rounds[-1]
    figures = json.loads((folder / "figures.json").read_text()) if folder else {}
    accuracy = figures.get("valid/accuracy/Overall")
    low, high = last["win_rate_ci"]
    judge, follow = last["eval_score"], last["eval_dims"]["follow"]
    cells = [
        labels_by,
        "" if accuracy is None else f"{accuracy:.2f}",
        f"{judge:.3f} ({judge - base['eval_score']:+.3f})",
        f"{follow:.3f} ({follow - base['eval_dims']['follow']:+.3f})",
        f"{last['win_rate']:.2f} [{low:.2f}, {high:.2f}]",
        f"{100 * (last['gauges']['travel'] / base['gauges']['travel'] - 1):+.0f} %",
        ", ".join(str(line["n_pairs"]) for line in rounds[1:]),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
