"""What the labelling policy is worth: pairs made of bad critics' verdicts, against the truth.

python benchmarks/labels.py                     60 prompts x 8 candidates of the shipped pipeline
python benchmarks/labels.py --prompts 12 --n 6 --critics shapes_noisy

One round's rollout of the embedded pipeline, made once; each critic compares its videos and each
policy makes pairs of what it says. A pair is right where the rule critic itself, without the vice,
scores the winner above the loser. A row: how many prompts gave a pair, the share of right pairs
with its Wilson interval (95 %), comparisons shown, ties and order flips among the verdicts, and the
share of answers that went to the first place.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from app.entry import CONF, register_resolvers  # noqa: E402
from ipo_lightning.report import table  # noqa: E402
from ipo_lightning.shapes.critic import ShapesCritic  # noqa: E402
from ipo_lightning.storage.layout import RoundDir, RunDir  # noqa: E402
from ipo_lightning.storage.records import Pair, PairVerdict  # noqa: E402
from ipo_lightning.storage.store import Store  # noqa: E402
from ipo_lightning.video import read_video  # noqa: E402
from train import train  # noqa: E402

CRITICS = ("shapes_pairwise", "shapes_biased", "shapes_noisy")
POLICIES = ("trusting", "best_worst", "pairwise")
QUIET = ("logger=none", "evaluation.prompts=1", "evaluation.n=1", "callbacks.progress=null",
         "callbacks.videos=null", "round=1", "until=labelling")  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--n", type=int, default=8, help="candidates a prompt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--critics", nargs="+", default=list(CRITICS))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--outputs", type=Path, help="keep the runs and their store here")
    parser.add_argument("overrides", nargs="*", help="of every run, such as critic.bias=4")
    options = parser.parse_args()
    register_resolvers()
    shape = (f"rollout.prompts={options.prompts}", f"rollout.n={options.n}", f"seed={options.seed}")
    with tempfile.TemporaryDirectory() as folder:
        outputs = options.outputs or Path(folder)
        rows = [
            {"critic": critic, "policy": policy}
            | shown(figures(outputs, critic, policy, *shape, *options.overrides))
            for critic in options.critics
            for policy in options.policies
        ]
    print(table(rows, list(rows[0])))


def figures(outputs: Path, critic: str, policy: str, *overrides: str) -> dict[str, Any]:
    """What a round's labels are worth that a policy makes of a critic's verdicts."""
    settings = (f"paths.outputs={outputs}", f"critic={critic}", f"labelling={policy}", *overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*QUIET, *settings])
    with redirect_stdout(sys.stderr):
        train(cfg)
    one, store = RunDir(Path(cfg.paths.outputs) / cfg.name).round(1), Store(cfg.paths.store)
    pairs = one.pairs()
    right = sum(truth(pairs, store))
    prompts = len({row.prompt_index for row in one.candidates()})
    verdicts = [row for row in one.verdicts() if isinstance(row, PairVerdict)]
    return {
        "pairs": len(pairs),
        "right": right,
        "kept": len({row.prompt_index for row in pairs}) / prompts,
        "shown": sum(shown is not None for one in verdicts for shown in one.shown) / prompts,
        **statistics_of(one),
    }


def truth(pairs: Sequence[Pair], store: Store) -> list[bool]:
    """Whether each pair's winner is better by the rules themselves."""
    names = [name for row in pairs for name in (row.winner_video, row.loser_video)]
    clips = [read_video(store.path("videos", name, ".mp4")) for name in names]
    ratings = ShapesCritic().rate(clips, [row.prompt for row in pairs for _ in range(2)])
    scores = [rating.score or 0.0 for rating in ratings]
    return [won > lost for won, lost in zip(scores[::2], scores[1::2], strict=True)]


def statistics_of(one: RoundDir) -> dict[str, float]:
    """What the run itself says of its verdicts."""
    return json.loads(one.labelling_file.read_text())["figures"]


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    z, share = 1.96, right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / count / 2) ** 2)
    return middle - half, middle + half


def shown(found: dict[str, Any]) -> dict[str, str]:
    """Figures as cells of the table."""
    low, high = wilson(found["right"], found["pairs"])
    share = found["right"] / max(found["pairs"], 1)
    return {
        "prompts kept": f"{found['kept']:.2f}",
        "pairs": str(found["pairs"]),
        "right": f"{share:.3f} [{low:.2f}, {high:.2f}]",
        "shown a prompt": f"{found['shown']:.1f}",
        **{name: f"{found.get(name, math.nan):.2f}" for name in ("ties", "flips", "first_wins")},
    }


if __name__ == "__main__":
    main()
