"""A tiny reward network for the world of shapes, made from nothing.

As with any large one, most of what it knows comes from captioned clips, not from preferences: its
encoder is trained for a few minutes to say which words the captions of renders hold (a tenth of
them wrong), and how much a clip was spoilt by corruptions of no particular world (`spoiling`).
People's labels then train a linear head on what it sees: 500 of them are too few to learn to see.

It has nothing of the held-out judge (`judge`) or of the rules (`critic`) but the renderer's clips.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ipo_lightning.errors import InputError
from ipo_lightning.reward.losses import RewardScale
from ipo_lightning.reward.trained import Restored
from ipo_lightning.seeds import derive_seed, generator
from ipo_lightning.settings import AtLeast, Count, checked
from ipo_lightning.shapes import world
from ipo_lightning.shapes.build import cosine, to_pixels
from ipo_lightning.shapes.convolutions import FramesThenTime
from ipo_lightning.shapes.critic import stack_frames
from ipo_lightning.shapes.prompts import TEMPLATES, caption, combinations
from ipo_lightning.shapes.spoiling import CORRUPTIONS, spoil
from ipo_lightning.storage.store import fingerprint, write_atomically
from ipo_lightning.video import Clip

RECIPE = 2
"""Part of the encoder's fingerprint and of a critic's folder: raise it when the same settings give
other weights, or the same weights mean something else."""
MAX_WORDS = 12
SPEC, WEIGHTS = "network.json", "model.safetensors"
MALFORMED = (ValueError, KeyError, TypeError, AttributeError)
"""What JSON of another form ends in."""

_BATCH = 32
_RATE = 2e-3
_STRENGTHS = 4.0
"""Weight of the error of strengths beside that of words."""


def _vocabulary() -> tuple[str, ...]:
    known = {word for one in combinations("train") for word in words_of(caption(one, 0))}
    return tuple(sorted(known | {word for text in TEMPLATES for word in words_of(text)}))


def words_of(prompt: str) -> list[str]:
    """The words of a prompt, in lower case."""
    return re.findall("[a-z]+", prompt.lower())


WORDS = _vocabulary()
"""All words of the captions; place 0 of the embedding is for the unknown and for padding."""


def tokens(prompts: Sequence[str]) -> Tensor:
    """(N, MAX_WORDS) int64; unknown words and padding are 0."""
    places = {word: place for place, word in enumerate(WORDS, 1)}
    rows = torch.zeros(len(prompts), MAX_WORDS, dtype=torch.long)
    for row, prompt in zip(rows, prompts, strict=True):
        found = [places.get(word, 0) for word in words_of(prompt)][:MAX_WORDS]
        row[: len(found)] = torch.tensor(found)
    return rows


class Seen(NamedTuple):
    """What the encoder makes of clips."""

    hidden: Tensor
    """(N, width)."""
    words: Tensor
    """(N, 1 + words) logits: whether the caption holds the word."""
    corruptions: Tensor
    """(N, 8) estimated strengths, in `CORRUPTIONS`' order."""


class VideoEncoder(FramesThenTime):
    """Convolutions over each frame, then over time; 110 k parameters at width 64.

    No layer mixes clips: what it sees of one does not depend on its batch.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__((16, 32), width)
        self.summary = nn.Linear(2 * width, width)
        self.words = nn.Linear(width, 1 + len(WORDS))
        self.corruptions = nn.Linear(width, len(CORRUPTIONS))

    def forward(self, pixels: Tensor) -> Seen:
        """Float (N, C, T, H, W) in [-1, 1] -> what is seen."""
        images = pixels.transpose(1, 2).flatten(0, 1)
        summary = self.summary_of(images, pixels.shape[2])
        hidden = F.silu(self.summary(summary))
        return Seen(hidden, self.words(hidden), self.corruptions(hidden))


class ShapesRewardNet(nn.Module):
    """The encoder, and a linear head on what it sees: D rewards of clips and prompts.

    The head starts at zero: before the first label every video is as good as any other.

    Args:
        dims: how many. width: of the encoder. tuned: whether labels train the encoder too.
    """

    mean: Tensor
    std: Tensor
    share: Tensor

    def __init__(self, dims: int, width: int = 64, tuned: bool = False) -> None:
        super().__init__()
        self.encoder = VideoEncoder(width).requires_grad_(tuned)
        features = width + 1 + len(CORRUPTIONS)
        self.register_buffer("mean", torch.zeros(features))  # over renders, see `ShapesReward`
        self.register_buffer("std", torch.ones(features))
        self.head = nn.Linear(features, dims, bias=False)
        nn.init.zeros_(self.head.weight)
        # Many weak features must not drown the few strong ones.
        share = torch.cat([torch.full((width,), width**-0.5), torch.ones(features - width)])
        self.register_buffer("share", share, persistent=False)

    def forward(self, frames: Tensor, words: Tensor) -> Tensor:
        """uint8 (N, T, H, W, C) and `tokens` (N, L) -> rewards (N, D), float32."""
        features = (self.features(frames, words) - self.mean) / self.std
        rewards: Tensor = self.head(features * self.share)
        return rewards

    def features(self, frames: Tensor, words: Tensor) -> Tensor:
        """(N, width + 9): the hidden state, how likely the caption's words are, corruptions."""
        seen = self.encoder(to_pixels(frames))
        known = (words > 0).float()
        likely = seen.words.sigmoid().gather(1, words) * known
        alignment = likely.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp_min(1)
        return torch.cat([seen.hidden, alignment, seen.corruptions], 1)


@checked
class ShapesReward:
    """A reward network of the shapes world, as `ipo_lightning.reward.module.RewardNetwork`.

    Args:
        dims: names of its rewards: those of the labels.
        width: of the encoder.
        steps: of the encoder's training, 32 clips each, before people's labels. 2000 take a few
            minutes of one core, once: the weights are kept in ``cache``. 0: a random encoder.
        clips: renders that it is trained on.
        tuned: whether people's labels train the encoder too; without, they train the head alone.
        seed: of the encoder and its clips.
        cache: folder of encoders; None: not kept.
    """

    def __init__(
        self,
        *,
        dims: Sequence[str] = ("VQ", "MQ", "TA", "Overall"),
        width: Count = 64,
        steps: Annotated[int, AtLeast(0)] = 2000,
        clips: Count = 4096,
        tuned: bool = False,
        seed: int = 0,
        cache: str | None = None,
    ) -> None:
        if not dims:
            raise InputError(setting="dims", value=[], expected="give at least one dimension")
        self.dims, self.width, self.steps, self.clips = tuple(dims), width, steps, clips
        self.tuned, self.seed, self.cache = tuned, seed, None if cache is None else Path(cache)

    @property
    def identity(self) -> str:
        """See `RewardNetwork`."""
        settings = [self.width, self.steps, self.clips, self.seed]
        return fingerprint(["shapes encoder", RECIPE, *settings])

    def build(self) -> nn.Module:
        """An encoder from the cache, or trained here, under a head of zeros."""
        network = ShapesRewardNet(len(self.dims), self.width, self.tuned)
        file = self.cache and self.cache / f"{self.identity[:16]}.safetensors"
        if file is None or not file.is_file():
            self._pretrain(network)
            if file is not None:
                kept = {k: v for k, v in network.state_dict().items() if k != "head.weight"}
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(file, _bytes(kept))
        else:
            weights = load_file(file)
            network.load_state_dict({**weights, "head.weight": network.head.weight})
        return network

    def inputs(self, clips: Sequence[Clip], prompts: Sequence[str]) -> dict[str, Tensor]:
        """See `RewardNetwork`."""
        return {"frames": stack_frames(clips, prompts), "words": tokens(prompts)}

    def export(self, network: nn.Module, folder: Path, scale: RewardScale) -> None:
        """``model.safetensors`` and ``network.json``."""
        plain = {"recipe": RECIPE, "dims": self.dims, "width": self.width, **scale._asdict()}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC).write_text(json.dumps(plain, indent=2) + "\n")
        (folder / WEIGHTS).write_bytes(_bytes(network.state_dict()))

    def restore(self, folder: Path) -> Restored:
        """What `export` wrote; dimensions and width are the folder's.

        Raises:
            InputError: the folder holds something else, or another recipe's network.
        """
        try:
            plain: Mapping[str, Any] = json.loads((folder / SPEC).read_text())
            if plain.get("recipe", 1) != RECIPE:
                raise ValueError(
                    f"it was trained on recipe {plain.get('recipe', 1)} of the encoder, this "
                    f"version has recipe {RECIPE}: train it again on its labels"
                )
            dims = tuple(plain["dims"])
            scale = RewardScale(tuple(plain["mean"]), tuple(plain["std"]))
            network = ShapesRewardNet(len(dims), plain["width"])
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, *MALFORMED, RuntimeError, SafetensorError) as error:
            other = f"no reward network of the shapes world ({error})"
            raise InputError(setting="path", value=folder, expected=other) from error
        return Restored(network, dims, scale)

    def _pretrain(self, network: ShapesRewardNet) -> None:
        """Train the encoder on captioned renders, and learn the scale of its features."""
        training = network.encoder.training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "encoder"))
            network.encoder.load_state_dict(VideoEncoder(self.width).state_dict())
            frames, captions = self._clips()
            with torch.enable_grad():
                network.encoder.requires_grad_(True)
                train_encoder(network.encoder, frames, captions, self.steps, self.seed)
        network.encoder.requires_grad_(self.tuned).train(training)
        with torch.no_grad():
            seen = [
                network.features(frames[i : i + _BATCH], captions[i : i + _BATCH])
                for i in range(0, min(len(frames), 1024), _BATCH)
            ]
        features = torch.cat(seen)
        network.mean.copy_(features.mean(0))
        network.std.copy_(features.std(0, correction=0).clamp_min(1e-3))

    def _clips(self) -> tuple[Tensor, Tensor]:
        """Renders uint8 (N, T, H, W, C) and the `tokens` of their captions, some of them wrong."""
        seed = derive_seed(self.seed, "captioned") % 2**31
        known = combinations("train")
        scenes, captions = world.noisy_scenes(known, self.clips, seed, 0.1, 0.5)
        return world.render(scenes, seed), tokens(captions)


def train_encoder(
    encoder: VideoEncoder, frames: Tensor, captions: Tensor, steps: int, seed: int
) -> None:
    """Learn which words a caption holds, and how strongly a clip was corrupted."""
    draws = generator(derive_seed(seed, "encoder", "draws"))
    held = torch.zeros(len(captions), 1 + len(WORDS)).scatter_(1, captions, 1.0)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=_RATE, weight_decay=0.02)
    for step in tqdm(range(steps), "encoder", unit=" updates", disable=not steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * cosine(step, steps, 30)
        rows = torch.randint(len(frames), (_BATCH,), generator=draws)
        often = min(1.0, 2 * step / steps)  # first it learns to see at all
        shown = spoil(to_pixels(frames[rows]), held[rows], draws, often)
        seen = encoder(shown.pixels)
        words = F.binary_cross_entropy_with_logits(
            seen.words[:, 1:], shown.held[:, 1:], reduction="none"
        )
        # What has drifted to another colour no longer shows its caption's.
        told = 1 - shown.strengths[:, CORRUPTIONS.index("drift")]
        strengths = F.mse_loss(seen.corruptions, shown.strengths, reduction="none")
        loss = (told * words.sum(1)).mean() + _STRENGTHS * strengths.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _bytes(weights: Mapping[str, Tensor]) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    return tensors_to_bytes(plain)
