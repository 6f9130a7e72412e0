"""The critique stage: every video is put to the critic once, and its answer kept."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from ipo_lightning.critics.base import PointCritic, Rating
from ipo_lightning.records import Candidate, Verdict
from ipo_lightning.store import Store, fingerprint
from ipo_lightning.video import read_video
from ipo_lightning.workers import Workers

Tell = Callable[[Sequence[Candidate]], Future[None]]
"""Told of candidates as soon as they are in the store."""


class Critique:
    """Asks a critic for what the store does not know yet.

    A verdict's key is the video's hash, the prompt and the critic's identity: changing the
    labelling asks nothing again, and an interrupted stage goes on where it stopped.
    """

    def __init__(self, critic: PointCritic, store: Store) -> None:
        self.critic, self.store = critic, store

    def judge(
        self, candidates: Sequence[Candidate], workers: Workers, device: str, label: str
    ) -> list[Verdict]:
        """One verdict a candidate, in order."""
        todo = workers.agree(self._todo(candidates))
        if todo:
            self.critic.load(device)
        workers.run(todo, self._ask, label, "prompts")
        if todo:
            self.critic.release()
        return [self._verdict(candidate) for candidate in candidates]

    @contextmanager
    def beside(self, device: str) -> Iterator[Tell | None]:
        """How to put videos to the critic while others are made; None where it would be in the way.

        At the end, videos that it has not begun with are left to the critique stage, and so are
        all after a failure, which comes up there if it lasts.
        """
        if not getattr(self.critic, "beside", False):
            yield None
            return
        failures: list[Exception] = []
        loaded: list[PointCritic] = []

        def ask(candidates: Sequence[Candidate]) -> None:
            if failures:
                return
            try:
                if not loaded:
                    self.critic.load(device)
                    loaded.append(self.critic)
                for siblings in self._todo(candidates):
                    self._ask(siblings)
            except Exception as error:
                failures.append(error)

        pool = ThreadPoolExecutor(1, "critic")
        try:
            yield lambda candidates: pool.submit(ask, candidates)
        finally:
            pool.shutdown(cancel_futures=True)
            if loaded:
                self.critic.release()
        if failures:
            warnings.warn(
                f"{self.critic.identity} failed beside the rollout ({failures[0]}); it is asked "
                "again in the critique stage", stacklevel=3,
            )  # fmt: skip

    def missing(self, candidates: Sequence[Candidate]) -> int:
        """How many videos are yet to be judged."""
        return sum(len(siblings) for siblings in self._todo(candidates))

    def _todo(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """The unjudged candidates, by prompt; two of the same pixels and prompt are asked once."""
        unasked: dict[str, Candidate] = {}
        for candidate in candidates:
            key = self._key(candidate)
            if key not in unasked and self.store.get_record("verdicts", key) is None:
                unasked[key] = candidate
        groups: dict[str, list[Candidate]] = {}
        for candidate in unasked.values():
            groups.setdefault(candidate.prompt, []).append(candidate)
        return list(groups.values())

    def _ask(self, candidates: Sequence[Candidate]) -> None:
        clips = [read_video(self.store.path("videos", one.video, ".mp4")) for one in candidates]
        ratings = self.critic.rate(clips, [one.prompt for one in candidates])
        for candidate, rating in zip(candidates, ratings, strict=True):
            self.store.put_record("verdicts", self._key(candidate), _plain(rating))

    def _key(self, candidate: Candidate) -> str:
        return fingerprint([candidate.video, candidate.prompt, self.critic.identity])

    def _verdict(self, candidate: Candidate) -> Verdict:
        answer = self.store.get_record("verdicts", self._key(candidate))
        if answer is None:
            raise OSError(f"{self.store.root}: the verdict on {candidate.video} is gone; do all "
                          "ranks see this folder?")  # fmt: skip
        return Verdict(
            prompt_index=candidate.prompt_index,
            candidate=candidate.candidate,
            video=candidate.video,
            critic=self.critic.identity,
            **answer,
        )


def _plain(rating: Rating) -> dict[str, object]:
    """A rating as JSON: NaN, which JSON has no word for, is no verdict."""
    dims = {name: float(value) for name, value in rating.dims.items() if value == value}
    score = None if rating.score is None or rating.score != rating.score else float(rating.score)
    return {
        "score": score, "dims": dims, "certainty": float(rating.certainty), "raw": rating.raw,
        "fault": rating.fault or ("not a number" if rating.score is not None else "unreadable")
        if score is None else "",
    }  # fmt: skip
