"""Simulated annotators: labels as noisy as people's, on pairs of clips whose truth is known.

``python -m ipo_lightning.shapes.annotators --out DIR`` writes ``DIR/pairs.jsonl``, canonical
annotations (`ipo_lightning.critics.people.annotations`), and the clips beside it. Nobody has looked
at them: an annotator here sees the rule critic's measurements through Bradley-Terry noise with
ties, each with an eye and weights of his own, and some click without looking. The rows say so:
their ``source`` is "simulated".
"""

import argparse
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

import torch
from tqdm import tqdm

from ipo_lightning.backbones.cogvideox import CogVideoX
from ipo_lightning.critics.people.annotations import OVERALL, Annotation, Choice, write_annotations
from ipo_lightning.errors import InputError, pipe_may_close
from ipo_lightning.metrics.preferences import rao_kupper
from ipo_lightning.policy import Sampling
from ipo_lightning.seeds import derive_seed
from ipo_lightning.shapes import world
from ipo_lightning.shapes.critic import dimensions
from ipo_lightning.shapes.prompts import Split, parse, prompts
from ipo_lightning.storage.store import write_atomically
from ipo_lightning.video import Clip, encode_video

Source = Literal["model", "renderer"]
"""Where the clips come from: the shipped base model, which a critic is to judge, or the renderer
with faults of its own, in no time."""
Maker = Callable[[str, Sequence[int]], list[Clip]]
"""Clips of a prompt, one a seed."""
PIPELINE = Path(str(files("ipo_lightning.shapes"))) / "pipeline"
STEPS = 10
"""Denoising steps, as the embedded rollouts have."""
PAIRS_FILE = "pairs.jsonl"

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "VQ": ("consistent", "clear"),
    "MQ": ("smooth",),
    "TA": ("colour", "shape", "motion"),
}
"""VideoAlign's dimensions -> the rule critic's measurements of which they are the mean."""
WEIGHTS = {"VQ": 4 / 15, "MQ": 2 / 15, "TA": 9 / 15}
"""Of the verdict as a whole, about which annotators vary: the rule critic's own."""


@dataclass(frozen=True)
class SimulatedAnnotator:
    """How one annotator sees and what he cares for."""

    name: str
    sharpness: float = 16.0
    """Logits for a difference of 1 in a quality of [0, 1]."""
    ties: float = 2.0
    """k of `rao_kupper`: how readily he calls two clips the same."""
    careless: float = 0.0
    """Share of the pairs at which he does not look: there he takes the left one throughout."""
    weights: Mapping[str, float] = field(default_factory=lambda: dict(WEIGHTS))

    def label(
        self, a: Mapping[str, float], b: Mapping[str, float], left: str, chance: random.Random
    ) -> dict[str, Choice]:
        """His verdict on A and B by dimension and as a whole, from their true qualities."""
        looks = chance.random() >= self.careless
        gaps = {name: a[name] - b[name] for name in DIMENSIONS}
        gaps[OVERALL] = sum(self.weights[name] * gaps[name] for name in DIMENSIONS)
        if not looks:
            return dict.fromkeys(gaps, "A" if left == "A" else "B")
        return {name: self._choose(gap, chance) for name, gap in gaps.items()}

    def _choose(self, gap: float, chance: random.Random) -> Choice:
        odds = rao_kupper(self.sharpness * gap, self.ties)
        draw = chance.random()
        if draw < odds.first:
            return "A"
        return "B" if draw < odds.first + odds.second else "same"


def crowd(seed: int) -> list[SimulatedAnnotator]:
    """Eight annotators: six who look, each in his own way, and two who often do not."""
    chance = random.Random(derive_seed(seed, "crowd"))
    people = []
    for number in range(8):
        weights = {name: weight * chance.uniform(0.6, 1.4) for name, weight in WEIGHTS.items()}
        total = sum(weights.values())
        people.append(
            SimulatedAnnotator(
                f"simulated-{number + 1}",
                sharpness=chance.uniform(12, 24),
                ties=chance.uniform(1.4, 2.6),
                careless=0.5 if number >= 6 else 0.03,
                weights={name: weight / total for name, weight in weights.items()},
            )
        )
    return people


# ---------------------------------------------------------------- clips


def base_model() -> Maker:
    """Makes videos by the shipped base model."""
    policy = CogVideoX(name="shapes", path=str(PIPELINE))
    network = policy.build().eval()

    @torch.no_grad()
    def make(prompt: str, seeds: Sequence[int]) -> list[Clip]:
        text = policy.embed([prompt], torch.device("cpu"))
        return policy.decode(policy.sample(network, seeds, text, None, Sampling(STEPS)))

    return make


def rendered_clips(prompt: str, seeds: Sequence[int]) -> list[Clip]:
    """Renders of a prompt: something wrong in 40 % of them, a defect of any strength in 60 %, any
    of them slower or faster."""
    scenes = []
    for seed in seeds:
        chance = random.Random(seed)
        shown = parse(prompt)
        if chance.random() < 0.4:
            shown = world.with_wrong(shown, chance.randrange(3), chance)
        defect = chance.choice(world.DEFECTS) if chance.random() < 0.6 else None
        scenes.append(world.Scene(shown, defect, chance.uniform(0.3, 1.1), chance.uniform(0.2, 1)))
    clips = [world.render([scene], seed % 2**31) for scene, seed in zip(scenes, seeds, strict=True)]
    return [Clip(clip[0], world.FPS) for clip in clips]


def qualities(clips: Sequence[Clip], prompt: str) -> list[dict[str, float]]:
    """The truth about clips of one prompt: each of `DIMENSIONS`, in [0, 1]."""
    seen = dimensions(torch.stack([clip.frames for clip in clips]), [prompt] * len(clips))
    means = {
        name: torch.stack([seen[part] for part in parts]).mean(0)
        for name, parts in DIMENSIONS.items()
    }
    return [{name: float(mean[row]) for name, mean in means.items()} for row in range(len(clips))]


# ---------------------------------------------------------------- pairs


def ring(candidates: int) -> list[tuple[int, int]]:
    """All pairs of candidates in an order whose every beginning shows each about as often."""
    pairs: list[tuple[int, int]] = []
    for gap in range(1, candidates // 2 + 1):
        around = candidates if 2 * gap < candidates else gap  # opposite ones meet once
        pairs += [(i, (i + gap) % candidates) for i in range(around)]
    return pairs


def plan(asked: Sequence[str], pairs: int, candidates: int) -> list[tuple[str, int, int]]:
    """(prompt, candidate, candidate), the prompts in turn.

    Raises:
        InputError: there are not as many pairs.
    """
    turns = [(prompt, *pair) for pair in ring(candidates) for prompt in asked]
    if not 1 <= pairs <= len(turns):
        raise InputError(
            f"--pairs {pairs}: {len(asked)} prompts with {candidates} candidates make 1 to "
            f"{len(turns)} pairs"
        )
    return turns[:pairs]


def annotate(
    folder: Path,
    *,
    pairs: int = 500,
    seed: int = 0,
    split: Split = "train",
    source: Source = "model",
    candidates: int = 8,
    labels: int = 1,
) -> list[Annotation]:
    """Make the clips of ``folder`` and the annotations of its `PAIRS_FILE`, which are returned.

    Args:
        pairs: of clips of one prompt.
        split: of the shapes world's prompts.
        candidates: clips a prompt, of which the pairs are made.
        labels: annotators a pair, each of whom gives a row.
    """
    people = crowd(seed)
    if not 1 <= labels <= len(people):
        raise InputError(f"--labels {labels}: there are {len(people)} annotators")
    turns = plan(prompts(split), pairs, candidates)
    make = base_model() if source == "model" else rendered_clips
    names: dict[str, list[str]] = {}
    truths: dict[str, list[dict[str, float]]] = {}
    for prompt in tqdm(dict.fromkeys(turn[0] for turn in turns), "clips", unit=" prompts"):
        seeds = [derive_seed(seed, "annotators", prompt, i) for i in range(candidates)]
        clips = make(prompt, seeds)
        names[prompt], truths[prompt] = _keep(clips, folder), qualities(clips, prompt)
    rows = []
    for number, (prompt, first, second) in enumerate(turns):
        chance = random.Random(derive_seed(seed, "pair", number))
        a, b = chance.sample((first, second), 2)
        videos = names[prompt][a], names[prompt][b]
        for person in chance.sample(people, labels):
            left = chance.choice("AB")
            verdict = person.label(truths[prompt][a], truths[prompt][b], left, chance)
            rows.append(_row(f"{number:05d}", prompt, videos, person.name, left, verdict))
    write_annotations(folder / PAIRS_FILE, rows)
    return rows


def _keep(clips: Sequence[Clip], folder: Path) -> list[str]:
    """Write the clips, with their exact pixels, and return their hashes."""
    names = []
    for clip in clips:
        content = encode_video(clip, lossless=True)
        names.append(hashlib.sha256(content).hexdigest())
        write_atomically(folder / "videos" / f"{names[-1]}.mp4", content)
    return names


def _row(
    pair: str, prompt: str, videos: tuple[str, str], name: str, left: str, labels: dict[str, Choice]
) -> Annotation:
    path_a, path_b = (f"videos/{video}.mp4" for video in videos)
    return Annotation(
        pair, prompt, path_a, path_b, labels, video_A=videos[0], video_B=videos[1], annotator=name,
        shown_left=left, source="simulated",
    )  # fmt: skip


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=get_args(Split), default="train")
    parser.add_argument("--source", choices=get_args(Source), default="model")
    parser.add_argument("--candidates", type=int, default=8, help="clips a prompt")
    parser.add_argument("--labels", type=int, default=1, help="annotators a pair")
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    try:
        annotate(options.out, **settings)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    with pipe_may_close():
        main()
