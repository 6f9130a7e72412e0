"""Critics are tried before the first video is made for them."""

import json
from collections.abc import Mapping
from typing import Any

from ipo_lightning.critics.stage.costs import Watched
from ipo_lightning.critics.stage.trial import to_try, tried
from ipo_lightning.errors import InputError, within
from ipo_lightning.rounds.stage import Round, RoundStage
from ipo_lightning.storage.run_files import DamagedFile, read_object
from ipo_lightning.storage.store import write_atomically

TRIED = "tried.json"
"""In the run's folder: the identities of the critics that answered."""


class TrialStage(RoundStage):
    """Loads critic and judge beside the policy, one after the other, and asks each about a video.

    It comes before the evaluation: first of all in a new run. One that has answered in a run is not
    tried again there.

    Args:
        critics: by the setting that chooses them. prompt: of the video.
    """

    def __init__(self, critics: Mapping[str, Any], prompt: str) -> None:
        self.critics, self.prompt = dict(critics), prompt

    def done(self, round: Round) -> bool:
        """Whether all have answered, or the round is finished."""
        return round.run.line(round.number) is not None or not self._left(round)

    def run(self, round: Round) -> None:
        """Try those that are left, on each device.

        Raises:
            InputError: one cannot be loaded, or fails: names its setting.
        """
        video, device = _video(round), str(round.runtime.device)
        for role, critic in self._left(round):
            try:
                with within(role):
                    tried(critic, video, self.prompt, device)
            except InputError as error:
                raise InputError(f"{role}, tried before the first rollout: {error}") from error
        if round.workers.leads:
            known = [one.identity for _, one in self._all(round)]
            write_atomically(round.run.path / TRIED, json.dumps({"critics": known}).encode())

    def _all(self, round: Round) -> list[tuple[str, Any]]:
        video = _video(round)
        found = self.critics.items()
        return [(role, one) for role, critic in found for one in to_try(critic, video)]

    def _left(self, round: Round) -> list[tuple[str, Any]]:
        """Those that have not answered in this run; asked of all ranks, before any writes."""
        known = _known(round)
        return [(role, one) for role, one in self._all(round) if one.identity not in known]


def _known(round: Round) -> list[str]:
    """Identities; a damaged file has none."""
    file = round.run.path / TRIED
    try:
        return list(read_object(file)["critics"]) if file.exists() else []
    except (DamagedFile, KeyError, TypeError):
        return []


def _video(round: Round) -> Watched:
    policy = round.module.policy
    return Watched(*policy.size, policy.fps)
