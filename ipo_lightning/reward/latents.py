"""A small critic of foreseen latents: it foresees what a critic will say, without decoding.

It learns from a round's own candidates: the clean latents that the policy foresaw at some steps,
and the critic's scores of the finished videos. Pairs of a prompt's videos train it by Bradley-Terry
(`ipo_lightning.reward.losses`), as people's labels train other critics. Rewards from a video
model's latents are the idea of PRFL (arXiv 2511.21541), pruning by them that of LatSearch (arXiv
2603.14526); this network is neither's: it sees the latents alone.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from ipo_lightning.critics.protocols import Rating
from ipo_lightning.errors import InputError
from ipo_lightning.reward.losses import bradley_terry
from ipo_lightning.seeds import derive_seed, generator
from ipo_lightning.settings import AtLeast, Count, NotNegative, Positive, Text, checked
from ipo_lightning.storage.layout import DraftsDir, RoundDir, RunDir, drafts_in
from ipo_lightning.storage.records import Verdict
from ipo_lightning.storage.store import Store, folder_fingerprint

RECIPE = 1
"""Part of a folder: raise it when the same weights mean something else."""
BUCKETS = 512
"""Places that words are hashed into: no vocabulary has to travel with the network."""
SPEC, WEIGHTS = "latents.json", "model.safetensors"
MALFORMED = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
"""What a folder of another kind ends in."""


class Foreseen(NamedTuple):
    """Videos of one prompt as they were foreseen on the way, and what they came to."""

    prompt: str
    latents: Tensor
    """(S, N, ...) the foreseen clean latents of N videos at S steps."""
    noise_levels: Sequence[float]
    """(S,) of the steps, see `LatentCritic.rate_latents`."""
    scores: Tensor
    """(N, D) the critic's scores of the finished videos: the score itself first, then by dimension,
    which teach more from the same videos."""


class LatentSpec(NamedTuple):
    """What a network is built by."""

    channels: int
    """Of the latents."""
    axis: int
    """The axis of the channels in a batch: 2 for CogVideoX, 1 for Wan."""
    rewards: int = 1
    """How many there are; the first is the score."""
    width: int = 32


class LatentNet(nn.Module):
    """Convolutions over time, height and width, told the prompt's words and the noise level; then
    what each word makes of what was seen, added up: prompts of known words may be new.

    No layer mixes videos. It knows each place's row and column, so that motion has a direction.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: LatentSpec) -> None:
        super().__init__()
        self.spec, width = spec, spec.width
        self.register_buffer("mean", torch.zeros(spec.channels, 1, 1, 1))
        self.register_buffer("std", torch.ones(spec.channels, 1, 1, 1))
        self.stem = nn.Conv3d(spec.channels + 3, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv3d(width, width, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in self.blocks)
        self.told = nn.Linear(BUCKETS + 1, 4 * width)
        self.drop = nn.Dropout(0.1)
        self.seen = nn.Linear(2 * width, width)
        self.words = nn.Linear(BUCKETS, spec.rewards * width)
        nn.init.normal_(self.words.weight, std=width**-0.5)

    def forward(self, latents: Tensor, noise_levels: Tensor, words: Tensor) -> Tensor:
        """(N, ...) latents, (N,) noise levels, (N, BUCKETS) `words_of` -> rewards (N, D)."""
        x = (latents.movedim(self.spec.axis, 1).float() - self.mean) / self.std
        hidden = F.silu(self.stem(torch.cat([x, places(x)], 1)))
        told = self.told(torch.cat([words, noise_levels[:, None]], 1))[..., None, None, None]
        for block, norm, both in zip(self.blocks, self.norms, told.chunk(2, 1), strict=True):
            scale, shift = both.chunk(2, 1)
            hidden = hidden + F.silu(norm(block(hidden)) * (1 + scale) + shift)
        flat = hidden.flatten(2)
        seen = self.drop(F.silu(self.seen(torch.cat([flat.mean(2), flat.amax(2)], 1))))
        wanted = self.words(words).unflatten(1, (self.spec.rewards, self.spec.width))
        return torch.einsum("nw,ndw->nd", seen, wanted)


def places(x: Tensor) -> Tensor:
    """(N, 3, F, H, W): each place's frame, row and column in [-1, 1]."""
    axes = [torch.linspace(-1, 1, size, device=x.device) for size in x.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.expand(len(x), -1, -1, -1, -1)


def words_of(prompts: Sequence[str]) -> Tensor:
    """(N, BUCKETS): 1 where a prompt has a word of that place."""
    rows = torch.zeros(len(prompts), BUCKETS)
    for row, prompt in zip(rows, prompts, strict=True):
        for word in re.findall(r"\w+", prompt.lower()):
            row[zlib.crc32(word.encode()) % BUCKETS] = 1
    return rows


# -------------------------------------------------------------------- a run's own videos


def foreseen_of(run: RunDir, store: Store) -> list[Foreseen]:
    """What a run's rounds can teach: their candidates, and those that were pruned on the way as
    they were foreseen, each list with the critic's own scores of it.

    Nothing is computed: latents, noise levels and verdicts are in the store and in the rounds'
    files. Videos without a score, and drafts that another critic judged, are left out.

    Raises:
        InputError: they teach nothing.
    """
    rated = [
        (folder, _verdicts(folder))
        for number in run.rounds()
        for folder in (number, drafts_in(number))
        if folder.candidates_file.exists() and folder.verdicts_file.exists()
    ]
    finals = {one.critic for folder, found in rated if not isinstance(folder, DraftsDir)
              for one in found.values()}  # fmt: skip
    known = [
        (folder, {place: one for place, one in found.items() if one.critic in finals})
        for folder, found in rated
    ]
    named = [set(one.dims) for _, found in known for one in found.values()]
    dims = sorted(set.intersection(*named)) if named else []
    rows = [row for folder, found in known for row in _of_prompts(folder, store, found, dims)]
    if not rows:
        raise InputError(
            f"{run.path}: no prompt has two videos with a score, as of a critic that rates; one "
            "that compares teaches no critic of latents"
        )
    return rows


def _verdicts(folder: RoundDir) -> dict[tuple[int, int], Verdict]:
    """The scores of a list of candidates, by prompt and number."""
    return {
        (one.prompt_index, one.candidate): one
        for one in folder.verdicts()
        if isinstance(one, Verdict) and one.score is not None
    }


def _of_prompts(
    folder: RoundDir,
    store: Store,
    verdicts: Mapping[tuple[int, int], Verdict],
    dims: Sequence[str],
) -> Iterator[Foreseen]:
    for _, of_prompt in groupby(folder.candidates(), key=lambda one: one.prompt_index):
        known = [one for one in of_prompt if (one.prompt_index, one.candidate) in verdicts]
        if len(known) < 2:
            continue
        rated = [verdicts[one.prompt_index, one.candidate] for one in known]
        tensors = [store.get_tensors("latents", one.latents) for one in known]
        level = tensors[0].get("noise_level", torch.zeros(()))
        scores = [[one.score, *(one.dims[name] for name in dims)] for one in rated]
        latents = torch.stack([one["latents"] for one in tensors])[None]
        yield Foreseen(known[0].prompt, latents, [float(level)], torch.tensor(scores))


# -------------------------------------------------------------------- training


@checked
def train_latent_critic(
    rows: Sequence[Foreseen],
    axis: Annotated[int, AtLeast(1)],
    *,
    steps: Count = 400,
    prompts_a_step: Count = 8,
    width: Count = 32,
    lr: Positive = 2e-3,
    weight_decay: NotNegative = 0.02,
    seed: int = 0,
) -> LatentNet:
    """A network that orders a prompt's videos, at any of the steps, as the critic orders them when
    they are finished.

    Args:
        rows: the prompts, each with the same number of rewards.
        axis: of the channels in a batch of latents.
        steps: optimizer steps. prompts_a_step: in each, with one of its noise levels each.
        width: of the network.
    """
    known = torch.cat([row.latents.flatten(0, 1) for row in rows]).movedim(axis, 1).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "latent critic"))
        net = LatentNet(LatentSpec(known.shape[1], axis, rows[0].scores.shape[1], width))
        apart = (0, *range(2, known.ndim))
        net.mean.copy_(known.mean(apart).view_as(net.mean))
        net.std.copy_(known.std(apart).clamp_min(1e-3).view_as(net.std))
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        draws = generator(derive_seed(seed, "latent critic", "draws"))
        for _ in range(steps):
            loss = torch.stack([
                _loss(net, rows[place], draws)
                for place in torch.randint(len(rows), (prompts_a_step,), generator=draws).tolist()
            ]).mean()  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def _loss(net: LatentNet, row: Foreseen, draws: torch.Generator) -> Tensor:
    """Bradley-Terry over all pairs of a prompt's videos, at one of its noise levels."""
    step = int(torch.randint(len(row.noise_levels), (), generator=draws))
    rewards = rewards_of(net, row.latents[step], row.noise_levels[step], [row.prompt])
    first, second = torch.triu_indices(len(rewards), len(rewards), 1)
    labels = (row.scores[first] - row.scores[second]).sign()
    return bradley_terry(rewards[first], rewards[second], labels).mean()


def rewards_of(
    net: LatentNet, latents: Tensor, noise_level: float, prompts: Sequence[str]
) -> Tensor:
    """(N, D) rewards of (N, ...) latents; one prompt stands for all."""
    count = len(latents)
    levels = torch.full((count,), noise_level, device=latents.device)
    words = words_of(prompts).to(latents.device).expand(count, -1)
    rewards: Tensor = net(latents, levels, words)
    return rewards


# -------------------------------------------------------------------- a critic's folder


def save_latent_critic(net: LatentNet, folder: Path) -> None:
    """Write ``model.safetensors`` and ``latents.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: one.detach().cpu().contiguous() for name, one in net.state_dict().items()}
    (folder / WEIGHTS).write_bytes(tensors_to_bytes(state))
    (folder / SPEC).write_text(json.dumps({"recipe": RECIPE, **net.spec._asdict()}) + "\n")


def restore_latent_net(folder: Path) -> LatentNet:
    """The network of a folder, on the CPU.

    Raises:
        InputError: the folder holds something else, or another recipe's network.
    """
    try:
        plain = json.loads((folder / SPEC).read_text())
        if plain.pop("recipe") != RECIPE:
            raise ValueError(f"it is of another version; this one has recipe {RECIPE}")
        net = LatentNet(LatentSpec(**plain))
        net.load_state_dict(load_file(folder / WEIGHTS))
    except MALFORMED as error:
        raise InputError(
            setting="path", value=folder, expected=f"no latent critic ({error})"
        ) from error
    return net.eval()


@checked
class TrainedLatentCritic:
    """A `LatentCritic` from a folder that `save_latent_critic` wrote.

    Args:
        path: the folder.

    Raises:
        InputError: it holds no latent critic.
    """

    def __init__(self, path: Text) -> None:
        self.path = Path(path)
        restore_latent_net(self.path)
        self.net: LatentNet | None = None

    @cached_property
    def identity(self) -> str:
        """The folder's content."""
        return f"latents@{folder_fingerprint(self.path)[:16]}"

    def load(self, device: str) -> None:
        """Load the weights."""
        self.net = restore_latent_net(self.path).to(device)

    def release(self) -> None:
        """Free the weights."""
        self.net = None

    @torch.no_grad()
    def rate_latents(
        self, latents: Tensor, noise_level: float, prompts: Sequence[str]
    ) -> list[Rating]:
        """See `LatentCritic`; each video is computed alone, so that others do not change it."""
        if self.net is None:
            raise RuntimeError("load the latent critic before it rates")
        near = latents.to(self.net.mean.device)
        found = [
            rewards_of(self.net, near[place : place + 1], noise_level, [prompt])[0, 0]
            for place, prompt in enumerate(prompts)
        ]
        return [Rating(float(score)) for score in found]
