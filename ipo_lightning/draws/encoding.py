"""Real videos with captions, for the paper's lambda_2: their sources, and how they are encoded.

A source lists its `Footage` without reading it; `encode_once` encodes to latents what the store
lacks. A clip that cannot be used is counted under a reason and left out, never replaced.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Policy
from ipo_lightning.storage.records import RealClip
from ipo_lightning.storage.store import LostBlob, Store, fingerprint

DAMAGED = "damaged"
"""The one reason that is checked again in every run: the fault may have been the reader's."""


class RealData(NamedTuple):
    """The clips of a source that can be used, and how many cannot."""

    rows: list[RealClip]
    """The clips, in a fixed order."""
    dropped: dict[str, int]
    """Reason -> how many clips were left out."""


class RealSource(Protocol):
    """A source of real clips."""

    def prepare(
        self, policy: Policy, store: Store, workers: Workers, device: torch.device
    ) -> RealData:
        """The clips' latents, encoded once into the store; on all ranks alike."""
        ...


class LeftOut(NamedTuple):
    """Why a clip cannot be used."""

    reason: str
    """A few words that such clips are counted under."""
    detail: str = ""
    """What is wrong with this clip, for a warning that names it; empty: no warning."""


class Footage(NamedTuple):
    """A clip that is read only if its latents are not in the store yet."""

    content: str
    """Fingerprint of all that its frames depend on."""
    caption: str
    file: str
    """Where it comes from, for people."""
    frames: Callable[[], Tensor | LeftOut]
    """Its frames, uint8 (T, H, W, C) of `Policy.size`."""


class ClipKind(NamedTuple):
    """What clips are encoded for, and what the store keeps of each."""

    record: str
    """Kind of the store's records."""
    label: str
    """Title of the progress bar."""
    keep: Callable[[Tensor], dict[str, Any]] = lambda frames: {}
    """What else to keep of a clip's frames, as plain JSON; ``video`` in it names a blob."""


REAL = ClipKind("real", "real videos")

Outcome = dict[str, Any]
"""``latents`` and what `ClipKind.keep` gave, or ``error`` and ``detail``."""


def encode_once(
    footage: Sequence[Footage],
    policy: Policy,
    store: Store,
    workers: Workers,
    device: torch.device,
    source: str,
) -> RealData:
    """Latents of the clips; the ranks share the encoding of those that the store lacks.

    Args:
        footage: the same on all ranks, in the same order.
        source: the setting or file that the clips come from, for messages.

    Raises:
        InputError: no clip can be used.
    """
    data = _collect(footage, encode_clips(footage, policy, store, workers, device), workers)
    if not data.rows:
        counts = ", ".join(f"{reason}: {count}" for reason, count in data.dropped.items())
        raise InputError(
            f"{source}: none of {len(footage)} real videos can be used ({counts}); give others "
            "(docs/real-videos.md), or regularise.real=0"
        )
    return data


def encode_clips(
    footage: Sequence[Footage],
    policy: Policy,
    store: Store,
    workers: Workers,
    device: torch.device,
    kind: ClipKind = REAL,
) -> list[Outcome]:
    """The outcome of each clip, in order; clips that the store lacks are encoded."""
    keys = [fingerprint({"policy": policy.identity, "clip": one.content}) for one in footage]
    by_key = dict(zip(keys, footage, strict=True))
    todo = workers.agree(
        lambda: [key for key in by_key if not _is_final(_find(store, kind.record, key))]
    )

    def encode(key: str) -> None:
        with store.together() as unit:
            unit.put_record(kind.record, key, _encode(by_key[key], policy, unit, device, kind))

    workers.run(todo, encode, kind.label, "clips")
    if todo:
        policy.release()
    outcomes = []
    for key, one in zip(keys, footage, strict=True):
        outcome = _find(store, kind.record, key)
        if outcome is None:
            raise LostBlob(
                f"{store.root}: what was just made of {one.file} is gone; do all ranks see this "
                "folder, and has the disk room?"
            )
        outcomes.append(outcome)
    return outcomes


def _collect(footage: Sequence[Footage], outcomes: Sequence[Outcome], workers: Workers) -> RealData:
    """The clips that can be used; the leading rank warns of those that are damaged."""
    rows: list[RealClip] = []
    dropped: Counter[str] = Counter()
    for one, outcome in zip(footage, outcomes, strict=True):
        if "latents" in outcome:
            rows.append(RealClip(one.caption, outcome["latents"], one.file))
            continue
        dropped[outcome["error"]] += 1
        if outcome["detail"] and workers.leads:
            warnings.warn(f"real video {one.file} is left out: {outcome['detail']}", stacklevel=4)
    return RealData(rows, dict(sorted(dropped.items())))


@torch.no_grad()
def _encode(
    one: Footage, policy: Policy, store: Store, device: torch.device, kind: ClipKind
) -> Outcome:
    """The outcome of a clip: the name of its latents, or why it has none."""
    frames = one.frames()
    if isinstance(frames, LeftOut):
        return {"error": frames.reason, "detail": frames.detail}
    wanted = (*policy.size, 3)
    if frames.shape != wanted or frames.dtype != torch.uint8:
        raise ValueError(
            f"{one.file}: frames must be uint8 {wanted}, got {frames.dtype} {tuple(frames.shape)}"
        )
    latents = policy.encode(frames[None].to(device))[0]
    return {
        "latents": store.put_tensors("latents", {"latents": latents}), **kind.keep(frames)
    }  # fmt: skip


def _find(store: Store, record: str, key: str) -> Outcome | None:
    """The outcome of a clip, unless its latents or its video are gone."""
    outcome: Outcome | None = store.get_record(record, key)
    if outcome is None or "error" in outcome:
        return outcome
    there = store.lists("latents", outcome["latents"], ".safetensors")
    there &= "video" not in outcome or store.lists("videos", outcome["video"], ".mp4")
    return outcome if there else None


def _is_final(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.get("error") != DAMAGED
