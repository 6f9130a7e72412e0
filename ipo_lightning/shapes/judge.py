"""The judge: a small classifier trained on renders, kept for evaluation only.

It shares neither rules nor training seeds with the rule critic: a policy that merely games the
rules gains nothing here. ``build.train_judge`` makes its weights.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ipo_lightning.critics.protocols import Rating
from ipo_lightning.critics.stage.costs import Cost, Watched
from ipo_lightning.errors import InputError
from ipo_lightning.shapes.convolutions import FramesThenTime
from ipo_lightning.shapes.critic import check_frames, stack_frames, to_ratings
from ipo_lightning.shapes.prompts import COLOURS, MOTIONS, SHAPES, parse
from ipo_lightning.video import Clip

WEIGHTS = Path(str(files("ipo_lightning.shapes"))) / "judge.safetensors"
FAULTS = ("jitter", "flicker", "recolour", "blur", "melt")
"""What the quality head grades: the world's defects, then what generators do to shapes."""
STILL = len(MOTIONS)
"""Index of the extra motion class for clips in which nothing moves."""

_CHUNK = 64
CHANNELS, OPERATIONS = 48, 16_000
"""Of a pixel at most: numbers held, and multiplications."""


class ShapesClassifier(FramesThenTime):
    """Convolutions over each frame, then over time; 133 k parameters.

    No layer mixes clips (group norm, not batch norm): a clip's logits do not depend on its batch.
    """

    def __init__(self, width: int = 80) -> None:
        super().__init__((24, 40), width)
        self.colour = nn.Linear(2 * width, len(COLOURS))
        self.shape = nn.Linear(2 * width, len(SHAPES))
        self.motion = nn.Linear(2 * width, len(MOTIONS) + 1)
        self.faults = nn.Linear(2 * width, len(FAULTS))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Float (N, T, H, W, C) in [-1, 1] -> logits (N, K) of colour, shape, motion and faults."""
        images = pixels.flatten(0, 1).permute(0, 3, 1, 2)
        summary = self.summary_of(images, pixels.shape[1])
        return {
            "colour": self.colour(summary),
            "shape": self.shape(summary),
            "motion": self.motion(summary),
            "faults": self.faults(summary),
        }


@torch.no_grad()
def judge_dimensions(
    classifier: ShapesClassifier, frames: Tensor, prompts: Sequence[str]
) -> dict[str, Tensor]:
    """Named parts of the judgement of uint8 (N, T, H, W, C) frames, each (N,) in [0, 1].

    ``colour``, ``shape`` and ``motion`` are the probabilities of what the prompt asks for,
    ``quality`` that of no fault at all; ``follow`` is 1 where all three are the likeliest.
    """
    logits = classifier(frames.float() / 127.5 - 1)
    asked = [parse(prompt) for prompt in prompts]
    wanted = {
        "colour": torch.tensor([COLOURS.index(a.colour) for a in asked]),
        "shape": torch.tensor([SHAPES.index(a.shape) for a in asked]),
        "motion": torch.tensor([MOTIONS.index(a.motion) for a in asked]),
    }
    dims, follow = {}, torch.ones(len(asked), dtype=torch.bool)
    for name, index in wanted.items():
        index = index.to(frames.device)
        dims[name] = logits[name].softmax(-1).gather(1, index[:, None])[:, 0].cpu()
        follow &= (logits[name].argmax(-1) == index).cpu()
    dims["quality"] = (1 - logits["faults"].sigmoid()).prod(-1).cpu()
    dims["follow"] = follow.float()
    return dims


def judge_scores(dims: dict[str, Tensor]) -> Tensor:
    """The mean of colour, shape, motion and quality, (N,) in [0, 1]."""
    parts = [dims[name] for name in ("colour", "shape", "motion", "quality")]
    return torch.stack(parts).mean(0)


class ShapesJudge:
    """Rates by a trained classifier; the held-out critic of the embedded world."""

    identity = "shapes-judge@1"

    def __init__(self, weights: str | Path = WEIGHTS) -> None:
        self.weights = Path(weights)
        self.classifier: ShapesClassifier | None = None
        self.device = "cpu"

    def cost(self, video: Watched) -> Cost:
        """What a rating costs at most, see `cost_of`: of each pixel a dozen channels are held."""
        weights = float(self.weights.stat().st_size) if self.weights.is_file() else None
        pixels = video.frames * video.height * video.width
        source, given = "by its file", "" if weights else "give the file of its weights"
        return Cost("shapes judge", weights=weights, activations=4.0 * CHANNELS * pixels,
                    flops=2.0 * OPERATIONS * pixels, source=source, unknown=given)  # fmt: skip

    def load(self, device: str) -> None:
        """Read the weights, half a megabyte."""
        if not self.weights.is_file():
            raise InputError(f"the shapes judge's weights are not at {self.weights}")
        classifier = ShapesClassifier()
        classifier.load_state_dict(load_file(self.weights))
        self.classifier = classifier.to(device).eval()
        self.device = device

    def release(self) -> None:
        """Drop the weights."""
        self.classifier = None

    def rate(self, clips: Sequence[Clip], prompts: Sequence[str]) -> list[Rating]:
        """One rating a clip: the mean of three probabilities and quality, in [0, 1]."""
        if self.classifier is None:
            self.load(self.device)
        assert self.classifier is not None
        ratings: list[Rating] = []
        for first in range(0, len(clips), _CHUNK):
            part = slice(first, first + _CHUNK)
            frames = stack_frames(clips[part], prompts[part])
            check_frames(frames)
            dims = judge_dimensions(self.classifier, frames.to(self.device), prompts[part])
            ratings += to_ratings(judge_scores(dims), dims)
        return ratings
