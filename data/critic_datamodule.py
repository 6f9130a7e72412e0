"""People's labels on videos, as batches for training a critic.

The file is any that `ipo_lightning.exchange` reads. Prompts are split by their text alone, so that
a prompt's pairs are all trained on or all held out, whatever else the file holds. Videos are
decoded on the fly, in the loader's processes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.prompts import place
from ipo_lightning.critics.people.annotations import Annotation
from ipo_lightning.critics.people.answers import latest
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import Finder, Preferences, read_any, videos_of
from ipo_lightning.exchange.points import VideoPoint
from ipo_lightning.reward.module import RewardBatch
from ipo_lightning.seeds import derive_seed, generator
from ipo_lightning.settings import Above, AtLeast, Below, Count, checked
from ipo_lightning.storage.store import Store, fingerprint
from ipo_lightning.video import Clip, read_video

Inputs = Callable[[Sequence[Clip], Sequence[str]], dict[str, Tensor]]
LabelKind = Literal["pairwise", "pointwise"]

VALUES = {"A": 1.0, "same": 0.0, "B": -1.0}
"""Labels as numbers; ``invalid`` and absent ones are NaN."""


class Sample(NamedTuple):
    """A labelled pair of videos, or a rated video."""

    prompt: str
    videos: tuple[Path, ...]
    """Two, or one."""
    labels: tuple[float, ...]
    """By dimension; NaN where there is none."""


class Order(Sampler[int]):
    """Places of the samples of one epoch: a fixed number of updates of an endless reshuffling.

    Every pass takes each sample once, in an order of its own; an epoch ends in the midst of a pass.
    All of it is a function of (seed, epoch, rank, world), so that a resumed run draws the same.

    Args:
        samples: how many there are. count: places a rank draws in an epoch.
    """

    def __init__(self, samples: int, count: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.samples, self.count, self.seed = samples, count, seed
        self.rank, self.world = rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this at the start of each epoch, fresh or resumed."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.count * self.world
        for position in range(first + self.rank, first + self.count * self.world, self.world):
            number, at = divmod(position, self.samples)
            yield self._pass(number)[at]

    def _pass(self, number: int) -> list[int]:
        return shuffled(self.samples, derive_seed(self.seed, "critic", "pass", number))


@lru_cache(4)
def shuffled(count: int, seed: int) -> list[int]:
    """0 .. count-1 in a random order."""
    order: list[int] = torch.randperm(count, generator=generator(seed)).tolist()
    return order


class Samples(Dataset[Sample]):
    """A list that a loader can index."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


@checked
class CriticDataModule(L.LightningDataModule):
    """Batches of labelled pairs, or of rated videos, of one file.

    Args:
        dims: names of the labels, in the order of the network's rewards.
        inputs: turns videos and prompts into what the network takes.
        form: whether the loss learns from pairs or from rated videos.
        path: the file of preferences.
        format: the file's, see `ipo_lightning.exchange`; ``auto``: by its columns.
        videos: the folder that paths of videos start at; None: the file's own.
        store: holds the videos that rows name by their sha256 alone.
        validation: share of the prompts that is held out, above 0 and below 1.
        batch_size: pairs or videos a step on each device.
        updates: optimizer updates an epoch: between two looks at the held-out prompts.
        num_workers: processes that decode; 0 does it in the training process.
        in_memory: whether decoded videos are kept, in each of those processes.
        seed: of the order.
    """

    def __init__(
        self,
        dims: Sequence[str],
        inputs: Inputs,
        label_kind: LabelKind,
        *,
        path: str,
        format: str = "auto",
        videos: str | None = None,
        store: Store | None = None,
        validation: Annotated[float, Above(0), Below(1)] = 0.15,
        batch_size: Count = 16,
        optimizer_steps: Count = 20,
        num_workers: Annotated[int, AtLeast(0)] = 0,
        in_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dims, self.label_kind, self.path = tuple(dims), label_kind, path
        self.batch_size, self.optimizer_steps = batch_size, optimizer_steps
        self.num_workers, self.seed, self.store = num_workers, seed, store
        if videos is not None and not Path(videos).is_dir():
            raise InputError(setting="videos", value=videos, expected="there is no such folder")
        found = read_any(path, format).one_lined()
        self.table = found.path
        if store is not None:
            found.unpack(store)
        finder = Finder(found.folder if videos is None else Path(videos), store)
        samples = read_samples(found, label_kind, self.dims, finder)
        self.train, self.valid = parts_of(samples, validation, path)
        read = lru_cache(maxsize=None)(read_video) if in_memory else read_video
        numbers = {p: i for i, p in enumerate(dict.fromkeys(one.prompt for one in samples))}
        self.collate = partial(collate, inputs=inputs, read=read, numbers=numbers)

    @property
    def content(self) -> str:
        """Fingerprint of prompts, videos' names and labels, wherever the file lies."""
        return fingerprint(
            [[one.prompt, [file.name for file in one.videos], [str(label) for label in one.labels]]
             for one in (*self.train, *self.valid)]
        )  # fmt: skip

    def inputs(self) -> Iterator[Path]:
        """The table of a folder, and its videos; those of the store are their hashes."""
        if Path(self.path).is_dir():
            yield self.table
        for one in (*self.train, *self.valid):
            yield from (
                v for v in one.videos if self.store is None or self.store.root not in v.parents
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's part of the epochs' orders."""
        if self.trainer is None:
            raise RuntimeError("CriticDataModule needs a trainer")
        count = self.batch_size * self.optimizer_steps * self.trainer.accumulate_grad_batches
        order = Order(
            len(self.train), count, self.seed, self.trainer.global_rank, self.trainer.world_size
        )
        return self._loader(self.train, order)

    def val_dataloader(self) -> DataLoader[Any]:
        """All held-out samples, in the file's order, on every rank."""
        return self._loader(self.valid, None)

    def videos(self) -> Iterator[dict[str, Tensor]]:
        """The network's inputs for each video of the training samples, once."""
        each = {(video, one.prompt) for one in self.train for video in one.videos}
        single = [Sample(prompt, (video,), ()) for video, prompt in sorted(each)]
        for batch in self._loader(single, None):
            yield batch.inputs

    def _loader(self, samples: Sequence[Sample], order: Order | None) -> DataLoader[Any]:
        return DataLoader(
            Samples(samples),
            batch_size=self.batch_size,
            sampler=order,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            persistent_workers=self.num_workers > 0,
        )


def parts_of(
    samples: Sequence[Sample], validation: float, path: str
) -> tuple[list[Sample], list[Sample]]:
    """The samples to train on, and those that are held out, by their prompts.

    Raises:
        InputError: one of the parts is empty.
    """
    train = [one for one in samples if place(one.prompt) >= validation]
    valid = [one for one in samples if place(one.prompt) < validation]
    for name, part in (("training", train), ("validation", valid)):
        if not part:
            lacks = f"no {name} prompt; give more prompts, or another validation={validation}"
            raise InputError(setting="path", value=path, expected=lacks)
    return train, valid


def collate(
    samples: Sequence[Sample],
    *,
    inputs: Inputs,
    read: Callable[[Path], Clip],
    numbers: dict[str, int],
) -> RewardBatch:
    """Decode a batch: first all pairs' first videos, then their second ones."""
    videos = [path for side in zip(*(one.videos for one in samples), strict=True) for path in side]
    prompts = [one.prompt for one in samples]
    shown = prompts * (len(videos) // len(prompts))
    return RewardBatch(
        inputs([read(path) for path in videos], shown),
        torch.tensor([one.labels for one in samples], dtype=torch.float32),
        torch.tensor([numbers[prompt] for prompt in prompts]),
    )


def read_samples(
    found: Preferences, label_kind: LabelKind, dims: Sequence[str], finder: Finder | None = None
) -> list[Sample]:
    """The labelled pairs or rated videos of a file; those with no label at all are left out.

    What somebody answered anew counts by the later answer, as it does where people are the critic.

    Args:
        finder: of the videos; None looks for them beside the file.

    Raises:
        InputError: the file holds the other kind, has a dimension in no row, or lacks a video.
    """
    rows: Sequence[Annotation | VideoPoint]
    rows = latest(found.pairs) if label_kind == "pairwise" else found.points
    if not rows:
        kinds = ("pairs", "rated videos")
        wanted, there = kinds if label_kind == "pairwise" else kinds[::-1]
        other = "regression" if label_kind == "pairwise" else "btt"
        raise InputError(
            setting="path",
            value=found.path,
            expected=f"this loss learns from {wanted}, the file holds {there}; choose "
            f"reward_loss={other}",
        )
    finder = finder or Finder(found.folder)
    samples = [_sample(finder, row, dims) for row in rows]
    for number, dim in enumerate(dims):
        if all(math.isnan(one.labels[number]) for one in samples):
            known = {name for row in rows for name in _labels(row)}
            raise InputError(
                f"network.dims: no row of {found.path} has a label {dim!r}; it has "
                f"{', '.join(sorted(known))}"
            )
    return [one for one in samples if not all(map(math.isnan, one.labels))]


def _sample(finder: Finder, row: Annotation | VideoPoint, dims: Sequence[str]) -> Sample:
    labels = _labels(row)
    return Sample(
        row.prompt,
        tuple(finder.file(video, row.place) for video in videos_of(row)),
        tuple(labels.get(dim, math.nan) for dim in dims),
    )


def _labels(row: Annotation | VideoPoint) -> dict[str, float]:
    """A row's labels as numbers, without those that say nothing."""
    if isinstance(row, Annotation):
        return {name: VALUES[label] for name, label in row.labels.items() if label in VALUES}
    return dict(row.scores)
