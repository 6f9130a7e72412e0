"""What a server of videos is, for those that ask one for candidates."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from ipo_lightning.video import Clip

POLICY = "{policy}"
"""Stands for the folder of a policy in settings."""


class ServedPolicy(NamedTuple):
    """The policy that a server is to sample from."""

    path: str
    """Its folder: an exported transformer or LoRA; of the base model as its settings name it."""
    fingerprint: str
    round: int
    """That it ended; 0: the base model."""

    def filled(self, value: Any) -> Any:
        """A field in which ``{policy}``, ``{fingerprint}`` and ``{round}`` are put in."""
        if isinstance(value, Mapping):
            return {key: self.filled(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.filled(one) for one in value]
        if not isinstance(value, str):
            return value
        known = {POLICY: self.path, "{fingerprint}": self.fingerprint, "{round}": str(self.round)}
        for mark, text in known.items():
            value = value.replace(mark, text)
        return value


class Served(NamedTuple):
    """A video as it came."""

    file: bytes
    clip: Clip


class VideoMaker(Protocol):
    """A server that makes videos, see `ipo_lightning.serving.videos.VideoServer`."""

    @property
    def identity(self) -> Any:
        """What its videos depend on beside the policy and the sampling, as plain JSON."""
        ...

    @property
    def concurrency(self) -> int:
        """Videos that are under way at the same time."""
        ...

    @property
    def takes_policies(self) -> bool:
        """Whether the server is told which policy it is to serve."""
        ...

    def serve(self, policy: ServedPolicy) -> None:
        """Give the server a policy; it serves it once this returns."""
        ...

    def videos(self, requests: Sequence[dict[str, Any]], policy: ServedPolicy) -> list[Served]:
        """The videos of some requests, in order."""
        ...
