"""A round's labels as a dataset in a folder: a table, the videos, a card."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import yaml
from huggingface_hub import DatasetCardData

from ipo_lightning.critics.people.annotations import OVERALL, Annotation, write_annotations
from ipo_lightning.critics.people.page import video_for_people
from ipo_lightning.errors import InputError
from ipo_lightning.exchange import label_studio, trl, videoalign
from ipo_lightning.hub.cards import Base, fenced, grid, limits, plain, public, target
from ipo_lightning.report.run import find_videos, read_config
from ipo_lightning.seeds import derive_seed
from ipo_lightning.storage.layout import RoundDir, RunDir, before
from ipo_lightning.storage.records import Pair, Point
from ipo_lightning.storage.store import write_atomically

FORMATS = ("trl", "canonical", "videoalign", "label_studio")
FILES = "videos"
"""Folder of the videos within a dataset."""
ANNOTATIONS, TABLE = "annotations.jsonl", "annotations.csv"


class Published(NamedTuple):
    """What was written."""

    folder: Path
    labels: int
    videos: int


def publish_round(
    run_dir: str | Path,
    number: int,
    format: str,
    out: str | Path,
    *,
    playable: bool = False,
    files_at: str = "",
) -> Published:
    """Write the labels of a round as a dataset.

    Args:
        run_dir: the run's folder.
        format: ``trl`` (what ``load_dataset`` reads: pairs, or points where the round has these),
            ``canonical`` JSON lines, ``videoalign`` CSV, or ``label_studio`` tasks without the
            labels, for people to answer.
        out: a folder that does not exist yet, or is empty.
        playable: encode the videos for browsers (always done for ``label_studio``); else they are
            the store's own files, which are exact; few browsers play those of small videos.
        files_at: for ``label_studio``: prefix of a video's path.

    Raises:
        InputError: there is no such round, it has no labels of the kind, or ``out`` is in use.
    """
    _refuse(format, Path(out))
    run, folder = RunDir(run_dir), Path(out)
    one = run.round(number)
    pairs, points = _labels(one, format)
    videos = _videos_of(pairs, points)
    text = card(run, one, len(pairs), len(points), format)
    with _filled(folder) as new:
        _write_table(new, format, pairs, points, number, run.path.name, files_at)
        _write_videos(new, videos, find_videos(run.path), playable or format == "label_studio")
        write_atomically(new / "README.md", text.encode())
    return Published(folder, len(pairs) + len(points), len(videos))


def _refuse(format: str, folder: Path) -> None:
    """Check the format and the folder.

    Raises:
        InputError: the format is unknown, or the folder is in use.
    """
    if format not in FORMATS:
        raise InputError(f"format={format}: choose one of {', '.join(FORMATS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out={folder}: give a folder that is new or empty")


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` once everything is written.

    If ``folder`` exists, the content is moved into it: it may be the working directory (``out=.``).
    """
    place = Path(os.path.abspath(folder))
    name = f".{place.name}.{uuid4().hex}"
    new = place / name if place.is_dir() else place.with_name(name)  # on the same file system
    try:
        new.mkdir(parents=True)
        yield new
        if place.is_dir():
            for part in sorted(new.iterdir()):
                os.replace(part, place / part.name)
        else:
            os.replace(new, place)
    except OSError as error:
        raise InputError(f"out={folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def annotations_of_pairs(pairs: Iterable[Pair], number: int, source: str) -> list[Annotation]:
    """Pairs as annotations; which video is A is random, so that it tells nothing."""
    return [_annotation(pair, number, source) for pair in pairs]


def video_name(name: str) -> str:
    """A video's path within a dataset."""
    return f"{FILES}/{name}.mp4"


def card(run: RunDir, one: RoundDir, pairs: int, points: int, format: str) -> str:
    """The dataset's card, as Markdown with front matter for hubs."""
    config = read_config(run)
    backbone = config.get("backbone") or {}
    base = Base(str(backbone.get("name", "model")), str(backbone.get("path", "")),
                backbone.get("revision"), "", "")  # fmt: skip
    kind = f"{pairs} pairs" if pairs else f"{points} labelled videos"
    made = {
        "videos of": base.hub_id or base.name,
        "critic": target(config.get("critic") or {}),
        "labelling": target(config.get("labelling") or {}),
        "round": one.number,
        "run": run.path.name,
        "policy that made the videos": _maker(run, one.number),
    }
    rows = [(name, value) for name, value in made.items() if value not in ("", None)]
    kept = {k: config[k] for k in ("backbone", "critic", "labelling", "rollout") if k in config}
    return "\n\n".join([
        _front_matter(base, pairs + points, format),
        f"# Preferences of {plain(run.path.name)}, round {one.number}",
        f"{kind} of videos that a model made of the prompts, labelled by a critic, written by "
        "ipo_lightning.",
        USE[format],
        "## How it was made",
        grid(("what", "which"), rows),
        "## Licence",
        "Write the licence of these data here, and into the front matter above. "
        + limits(base).splitlines()[-1].removeprefix("- ").replace("these weights", "the videos"),
        *(["## Settings", fenced(yaml.safe_dump(public(kept), sort_keys=False), "yaml")]
          if kept else []),
    ]) + "\n"  # fmt: skip


USE = {
    "trl": "Columns of TRL's trainers: `prompt, chosen, rejected` for pairs, `prompt, "
    'completion, label` for points: `load_dataset("videofolder", data_dir="...")`, or the id of '
    "this repository.",
    "canonical": f"One JSON object a line in `{ANNOTATIONS}`: A or B under Overall, margin and "
    "weight under extra.",
    "videoalign": f"`{TABLE}` has VideoAlign's columns, with labels only under Overall.",
    "label_studio": f"`{label_studio.CONFIG}` is the labelling configuration, "
    f"`{label_studio.TASKS}` are the tasks to import.",
}


def _videos_of(pairs: Sequence[Pair], points: Sequence[Point]) -> list[str]:
    """The videos of all labels by name, each once."""
    names = {name for pair in pairs for name in (pair.winner_video, pair.loser_video)}
    return sorted(names | {point.video for point in points})


def _labels(one: RoundDir, format: str) -> tuple[list[Pair], list[Point]]:
    """Pairs, or points where the round has no pairs and the format takes points."""
    if not one.path.is_dir():
        raise InputError(f"{one.path}: there is no such round")
    pairs = one.pairs() if one.pairs_file.exists() else []
    points = one.points() if not pairs and one.points_file.exists() else []
    if not pairs and not points:
        raise InputError(f"{one.path}: no labels yet; run train.py until=labelling first")
    if format != "trl" and not pairs:
        raise InputError(f"{one.path}: a round of points; only format=trl has points")
    return pairs, points


def _write_table(
    folder: Path,
    format: str,
    pairs: Sequence[Pair],
    points: Sequence[Point],
    number: int,
    source: str,
    files_at: str,
) -> None:
    annotations = annotations_of_pairs(pairs, number, source)
    if format == "trl":
        trl.write(folder, [_pair_row(p) for p in pairs] or [_point_row(p) for p in points])
    elif format == "canonical":
        write_annotations(folder / ANNOTATIONS, annotations)
    elif format == "videoalign":
        videoalign.write(folder / TABLE, annotations)
    else:
        label_studio.write(folder, annotations, files_at)


def _pair_row(pair: Pair) -> dict[str, Any]:
    return {
        "prompt": pair.prompt,
        "chosen_file_name": video_name(pair.winner_video),
        "rejected_file_name": video_name(pair.loser_video),
        "margin": pair.margin,
        "weight": pair.weight,
    }


def _point_row(point: Point) -> dict[str, Any]:
    return {
        "prompt": point.prompt,
        "completion_file_name": video_name(point.video),
        "label": point.desirable,
        "score": point.score,
        "weight": point.weight,
    }


def _annotation(pair: Pair, number: int, source: str) -> Annotation:
    turned = derive_seed("publish", pair.prompt, pair.winner_video, pair.loser_video) % 2
    first, second = pair.winner_video, pair.loser_video
    if turned:
        first, second = second, first
    return Annotation(
        pair_id=f"{source}-{number}-{pair.pair}",
        prompt=pair.prompt,
        path_A=video_name(first),
        path_B=video_name(second),
        labels={OVERALL: "B" if turned else "A"},
        video_A=first,
        video_B=second,
        round=number,
        source=source,
        extra={"margin": pair.margin, "weight": pair.weight},
    )


def _write_videos(
    folder: Path, names: Iterable[str], find: Callable[[str], Path], playable: bool
) -> None:
    for name in names:
        path = find(name)
        if not path.is_file():
            raise InputError(f"{path}: the video is no longer in the store")
        content = video_for_people(path)[0] if playable else path.read_bytes()
        write_atomically(folder / video_name(name), content)


def _maker(run: RunDir, number: int) -> str:
    """Fingerprint of the policy that made the round's videos; "" where it is unknown."""
    line: Mapping[str, Any] = run.line(before(run, number)) or {}
    return str(line.get("policy", ""))


def _front_matter(base: Base, count: int, format: str) -> str:
    sizes = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
    data = DatasetCardData(
        license="unknown",
        task_categories=["text-to-video"],
        tags=["preference", "video", "ipo_lightning"] + (["trl"] if format == "trl" else []),
        size_categories=[next((name for most, name in sizes if count < most), "100K<n<1M")],
        source_datasets=None,
        base_model=base.hub_id,
    )
    return f"---\n{data.to_yaml()}\n---"
