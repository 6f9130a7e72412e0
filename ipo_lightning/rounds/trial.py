"""Critics are tried before the first video is made for them."""

from collections.abc import Mapping
from typing import Any

import torch

from ipo_lightning.critics.stage.costs import Watched
from ipo_lightning.critics.stage.trial import to_try, tried
from ipo_lightning.errors import InputError, within
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.storage.store import Store, fingerprint


class TrialStage(RoundStage):
    """Loads critic and judge beside the policy, one after the other, and asks each about a video.

    It comes before the evaluation: first of all in a new run. The store remembers which have
    answered beside this policy on such a device: they are not tried again, in other runs neither.

    Args:
        critics: by the setting that chooses them. prompt: of the video. store: that remembers.
    """

    def __init__(self, critics: Mapping[str, Any], prompt: str, store: Store) -> None:
        self.critics, self.prompt, self.store = dict(critics), prompt, store

    def done(self, round: Round) -> bool:
        """Whether all have answered, or the round is finished."""
        return round.run.line(round.number) is not None or not self._left(round)

    def run(self, round: Round) -> None:
        """Try those that are left, on each device.

        Raises:
            InputError: one cannot be loaded, or fails: names its setting.
        """
        video, device, left = _video(round), str(round.runtime.device), self._left(round)
        round.workers.barrier()  # all ranks have looked before one writes
        for role, critic in left:
            try:
                with within(role):
                    tried(critic, video, self.prompt, device, round.workers)
            except InputError as error:
                raise InputError(f"{role}, tried before the first rollout: {error}") from error
            if round.workers.leads:
                self.store.put_record(KIND, _key(round, critic), {"critic": critic.identity})

    def _left(self, round: Round) -> list[tuple[str, Any]]:
        """Those that have not answered."""
        video = _video(round)
        found = [
            (role, one) for role, critic in self.critics.items() for one in to_try(critic, video)
        ]
        return [one for one in found if self.store.get_record(KIND, _key(round, one[1])) is None]


KIND = "tried"
"""Of a record in the store."""


def _key(round: Round, critic: Any) -> str:
    """What it depends on whether a critic can be loaded, and asked about a video."""
    device, policy = round.runtime.device, round.module.policy
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    place = [device.type] if gpu is None else [gpu.name, gpu.total_memory]
    return fingerprint([critic.identity, policy.identity, *policy.size, *place])


def _video(round: Round) -> Watched:
    policy = round.module.policy
    return Watched(*policy.size, policy.fps)
