"""Published preference data to train on: pairs or rated videos of any format that is known.

The labels are the file's: no critic is asked, and no guard looks at the videos. Each video is cut
to the policy's size and rate as real clips are (`data.real`), and encoded by the VAE once. What
cannot be used is counted under a reason and left out.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from data.prompts import Held, Split, split_of
from data.real import Captioned, footage_of, hashes_of
from ipo_lightning.critics.people.annotations import Annotation
from ipo_lightning.draws.encoding import ClipKind, Outcome, encode_clips
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.labels import Videos, carried, labels_for, verdicts_of
from ipo_lightning.exchange.points import VideoPoint
from ipo_lightning.exchange.reading import Preferences, read_any
from ipo_lightning.exchange.source import ImportedLabels
from ipo_lightning.exchange.videos import Finder, Named, video_of, videos_of
from ipo_lightning.metrics.gauges import measure
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Policy
from ipo_lightning.settings import Count, Null, checked
from ipo_lightning.storage.records import Candidate
from ipo_lightning.storage.store import Store
from ipo_lightning.storage.texts import one_line
from ipo_lightning.video import Clip, encode_video

MISSING = "video missing"
HELD_OUT = "prompt is held out"


@checked
def prompts(
    split: Split, *, path: str, format: str = "auto", select: Held = 0.1, final: Held = 0.1
) -> list[str]:
    """The prompts of one split of a file of preferences, see `data.prompts.from_file`."""
    found = _read(path, format)
    known = [one.prompt for one in found.pairs] + [one.prompt for one in found.points]
    return split_of(list(dict.fromkeys(known)), split, path, select, final)


def _read(path: str, format: str) -> Preferences:
    """The file, parsed once for all that look into it."""
    file = Path(path)
    table = next(iter(sorted(file.glob("metadata.*"))), file) if os.path.isdir(file) else file
    return _read_once(path, format, table.stat().st_mtime_ns if os.path.exists(table) else 0)


@lru_cache(2)
def _read_once(path: str, format: str, changed: int) -> Preferences:
    return read_any(path, format).one_lined()


@checked
class ImportedPreferences:
    """A file of preferences, as a `LabelSource`.

    Args:
        path: the file, or the folder with its ``metadata`` table.
        format: one of `ipo_lightning.exchange.FORMATS`, or ``auto``: by the columns.
        videos: the folder that the file's paths start at; None: the file's own.
        rounds: how many rounds train on these labels, from the first; later ones roll out and ask
            the critic. None: all.
        lossless: keep the clips as exact pixels for the report, else as mp4 for people.
        held_out: prompts that are evaluated on: their labels are not trained on.
    """

    def __init__(
        self,
        path: str,
        *,
        format: str = "auto",
        videos: str | None = None,
        rounds: Annotated[Count | None, Null("all")] = None,
        lossless: bool = False,
        held_out: Collection[str] = (),
    ) -> None:
        self.path, self.rounds, self.lossless = path, rounds, lossless
        self.held_out = frozenset(map(one_line, held_out))
        self.found = _read(path, format)
        rows: list[Annotation | VideoPoint] = [*self.found.pairs, *self.found.points]
        for row in rows:
            carried(row)  # what is wrong with one is said before any video is looked at
        self.folder = self.found.folder if videos is None else Path(videos)
        if not self.folder.is_dir():
            raise InputError(setting="videos", value=videos, expected="there is no such folder")

    def inputs(self) -> Iterator[Path]:
        """The table of a folder, and the videos that it names by their paths."""
        if os.path.isdir(self.path):
            yield self.found.path
        finder = Finder(self.folder)
        rows: list[Annotation | VideoPoint] = [*self.found.pairs, *self.found.points]
        for video in dict.fromkeys(video for row in rows for video in videos_of(row)):
            if video.path:
                yield finder.place(video)

    def prepare(
        self, label_kind: str, policy: Policy, store: Store, workers: Workers, device: torch.device
    ) -> ImportedLabels:
        """See `LabelSource.prepare`.

        Raises:
            InputError: no label is left; the message has the reasons.
        """
        dropped: Counter[str] = Counter()
        pairs, points = self._kept(dropped)
        shown = [(p.prompt, video) for p in pairs for video in videos_of(p)]
        shown += [(p.prompt, video_of(p)) for p in points]
        videos = self._videos(dict.fromkeys(shown), policy, store, workers, device, dropped)
        made = labels_for(label_kind, pairs, points, videos, dropped)
        candidates = _distinct(videos.values())
        source = f"{self.found.format} of {self.found.path.name}"
        verdicts = verdicts_of(candidates, made, source)
        if not made.rows:
            counts = ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items()))
            raise InputError(f"data.imported.path={self.path}: no label is left ({counts})")
        return ImportedLabels(candidates, verdicts, made.rows, dict(sorted(dropped.items())))

    def _kept(self, dropped: "Counter[str]") -> tuple[list[Annotation], list[VideoPoint]]:
        """What may be trained on."""
        pairs = [one for one in self.found.pairs if one.prompt not in self.held_out]
        points = [one for one in self.found.points if one.prompt not in self.held_out]
        held = len(self.found.pairs) - len(pairs) + len(self.found.points) - len(points)
        if held:
            dropped[HELD_OUT] += held
        return pairs, points

    def _videos(
        self,
        shown: Iterable[tuple[str, Named]],
        policy: Policy,
        store: Store,
        workers: Workers,
        device: torch.device,
        dropped: "Counter[str]",
    ) -> Videos:
        """Candidates of the videos; equal files of a prompt are one."""
        shown = list(shown)
        finder = Finder(self.folder, store)
        distinct = list(dict.fromkeys(video for _, video in shown))
        files = self._files(distinct, finder, workers, dropped)
        kind = ClipKind("imported", "imported videos", _keeping(policy, store, self.lossless))
        contents = {content: file for file, content in files.values()}
        footage = [footage_of(Captioned(f, ""), c, policy) for c, f in contents.items()]
        outcomes = encode_clips(footage, policy, store, workers, device, kind)
        by_content = dict(zip(contents, outcomes, strict=True))
        _tell(by_content, contents, workers, dropped)
        return _candidates(shown, {video: content for video, (_, content) in files.items()},
                           by_content)  # fmt: skip

    def _files(
        self, videos: Sequence[Named], finder: Finder, workers: Workers, dropped: "Counter[str]"
    ) -> dict[Named, tuple[Path, str]]:
        """The file and its `content_name`, by video; missing ones are counted."""
        if workers.leads and finder.store is not None:
            self.found.unpack(finder.store)
        places = {video: finder.place(video) for video in videos}
        there = workers.agree(
            lambda: {v: place for v, place in places.items() if os.path.isfile(place)}
        )
        missing = [video for video in videos if video not in there]
        if missing:
            dropped[MISSING] += len(missing)
            if workers.leads:
                warnings.warn(
                    f"{len(missing)} of {len(videos)} videos of {self.path} are missing; for one, "
                    f"{self._where(missing[0])}: {finder.lack(missing[0])}", stacklevel=5,
                )  # fmt: skip
        label = "imported videos: hashes"
        hashes = workers.agree(lambda: hashes_of([*there.values()], label, workers))
        return {v: (there[v], content) for v, content in zip(there, hashes, strict=True)}

    def _where(self, video: Named) -> str:
        """The place of the first row that names a video."""
        rows = [(row.place, one) for row in self.found.pairs for one in videos_of(row)]
        rows += [(row.place, video_of(row)) for row in self.found.points]
        return next(place for place, one in rows if one == video)


def _keeping(policy: Policy, store: Store, lossless: bool) -> Callable[[Tensor], dict[str, Any]]:
    """Keeps a clip, as it is trained on, for people; and its gauges."""

    def keep(frames: Tensor) -> dict[str, Any]:
        content = encode_video(Clip(frames, float(policy.fps)), lossless)
        gauges = {name: round(float(g[0]), 6) for name, g in measure(frames[None]).items()}
        return {"video": store.put_blob("videos", content, ".mp4"), "gauges": gauges}

    return keep


def _tell(
    outcomes: Mapping[str, Outcome],
    files: Mapping[str, Path],
    workers: Workers,
    dropped: "Counter[str]",
) -> None:
    """Count the videos that are of no use; the leading rank names those that are damaged."""
    for content, outcome in outcomes.items():
        if "error" not in outcome:
            continue
        dropped[f"video {outcome['error']}"] += 1
        if outcome["detail"] and workers.leads:
            warnings.warn(
                f"imported video {files[content]} is left out: {outcome['detail']}", stacklevel=6
            )


def _candidates(
    shown: Sequence[tuple[str, Named]],
    contents: Mapping[Named, str],
    outcomes: Mapping[str, Outcome],
) -> Videos:
    """Numbered by prompt and by video, in the file's order."""
    places = {prompt: number for number, prompt in enumerate(dict.fromkeys(p for p, _ in shown))}
    known: dict[tuple[str, str], Candidate] = {}
    counts: Counter[str] = Counter()
    found: dict[tuple[str, Named], Candidate] = {}
    for prompt, video in shown:
        content = contents.get(video)
        if content is None or "error" in outcomes[content]:
            continue
        outcome = outcomes[content]
        if (prompt, content) not in known:
            known[prompt, content] = Candidate(
                places[prompt], prompt, counts[prompt], 0, outcome["latents"], outcome["video"],
                outcome["gauges"],
            )  # fmt: skip
            counts[prompt] += 1
        found[prompt, video] = known[prompt, content]
    return found


def _distinct(candidates: Iterable[Candidate]) -> list[Candidate]:
    by_place = {(one.prompt_index, one.candidate): one for one in candidates}
    return [by_place[place] for place in sorted(by_place)]
