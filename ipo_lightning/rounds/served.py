"""Candidates from a server of videos, which serves the round's exported policy.

Their latents are the VAE's encoding of the server's mp4 files, not the sampler's own: they lack
what the VAE and the file lose (docs/rollouts.md). Policies are evaluated with videos that are
sampled here.
"""

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.computing import Calls
from ipo_lightning.parallel.runtime import Runtime
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import PolicyUse, Sampling
from ipo_lightning.sampling import Made, PromptSeeds, Rendered, Sampler
from ipo_lightning.serving.protocols import ServedPolicy, VideoMaker
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.store import fingerprint
from ipo_lightning.video import Clip

SEEDS = 2**31
"""Servers take seeds below this: one is sent modulo it."""
IGNORED = {"batch_size", "guidance_forwards", "compile"}
"""Settings of a sampling that a server decides on without changing what is asked for."""
_ENCODING = Lock()


class ServedSampler(Sampler):
    """A `Sampler` whose candidates come from a server.

    Args:
        plain: what samples here, with its policy, store and sampling.
        server: makes the videos.
        run: where the policies of rounds lie.
    """

    def __init__(self, plain: Sampler, server: VideoMaker, run: RunDir) -> None:
        super().__init__(plain.policy, plain.store, plain.sampling, plain.lossless)
        self.server, self.run = server, run
        self._serving: ServedPolicy | None = None
        check_served(plain.sampling)

    def independent(self) -> Sampler:
        """As a policy is measured: sampled here."""
        return Sampler(self.policy, self.store, self.sampling.independent(), self.lossless)

    def _with(self, sampling: Sampling) -> "ServedSampler":
        check_served(sampling)
        plain = Sampler(self.policy, self.store, sampling, self.lossless)
        return ServedSampler(plain, self.server, self.run)

    def key(self, policy_fingerprint: str, item: PromptSeeds, precision: str) -> str:
        """Also of the server's model and settings, not of its address."""
        own = super().key(policy_fingerprint, item, precision)
        return fingerprint({"sampler": own, "served": self.server.identity})

    def _shared(
        self, policy_fingerprint: str, items: Sequence[PromptSeeds], runtime: Runtime
    ) -> Runtime:
        """As many prompts at once as the server is sent videos of; each rank asks for whole ones:
        no forward is shared, and none is made elsewhere."""
        self._serving = self._policy_of(policy_fingerprint)
        videos = max((len(item.seeds) for item in items), default=1)
        threads = max(1, self.server.concurrency // videos)
        workers = replace(runtime.workers, threads=threads, peers=1, engine=None)
        return replace(runtime, workers=workers)

    def _begin(self, todo: Sequence[PromptSeeds], runtime: Runtime) -> None:
        """The server gets the policy before the first video is asked for."""
        serving = self._served
        if todo:
            runtime.workers.agree(lambda: self.server.serve(serving))

    @property
    def _served(self) -> ServedPolicy:
        assert self._serving is not None, "candidates are made by `generate`"
        return self._serving

    def _policy_of(self, policy_fingerprint: str) -> ServedPolicy:
        if policy_fingerprint == self.policy.identity:
            return ServedPolicy(str(self.policy.path), policy_fingerprint, 0)
        for folder in self.run.rounds():
            if folder.fingerprint() == policy_fingerprint:
                path = str(folder.policy.resolve())
                return ServedPolicy(path, policy_fingerprint, folder.number)
        raise InputError(f"{self.run.path}: the policy {policy_fingerprint[:12]} is in no round")

    def _make(self, key: str, item: PromptSeeds, calls: Calls, workers: Workers) -> Made:
        found = self.server.videos([self._fields(item, seed) for seed in item.seeds], self._served)
        clips = [one.clip for one in found]
        self._check(item, clips)
        latents = calls.start(encoded_by, [clip.frames for clip in clips])
        rendered = Rendered({"latents": latents}, clips, [one.file for one in found])
        return Made(key, item, rendered)

    def _fields(self, item: PromptSeeds, seed: int) -> dict[str, Any]:
        """What the server is asked for, in the words of vLLM-Omni and SGLang Diffusion."""
        frames, height, width = self.policy.size
        fps = self.policy.fps
        fields = {
            "prompt": item.prompt,
            "size": f"{width}x{height}",
            "num_frames": frames,
            "fps": int(fps) if fps == int(fps) else fps,
            "num_inference_steps": self.sampling.steps,
            "guidance_scale": self.sampling.guidance_scale if self.sampling.guided else 1.0,
            "seed": seed % SEEDS,
        }
        if self.sampling.guided and self.sampling.negative_prompt:
            fields["negative_prompt"] = self.sampling.negative_prompt
        return fields

    def _check(self, item: PromptSeeds, clips: Sequence[Clip]) -> None:
        """Refuse videos of another length or size: their latents would be of another shape.

        Raises:
            InputError: says what came and what was asked for.
        """
        wanted = (*self.policy.size, 3)
        for clip in clips:
            if tuple(clip.frames.shape) != wanted:
                raise InputError(
                    f"rollout.served: the server made a video of {_told(clip.frames.shape)} of the "
                    f"prompt {item.prompt!r}, but {_told(wanted)} were asked for: the model trains "
                    "on no other; does the server serve this model, and obey size and num_frames?"
                )


def encoded_by(use: PolicyUse, frames: Sequence[Tensor]) -> Tensor:
    """Latents (N, ...), on the CPU, of videos uint8 (T, H, W, 3); one video after another."""
    device = next(use.network.parameters()).device
    with _ENCODING, torch.no_grad():
        return torch.cat([use.policy.encode(one[None].to(device)) for one in frames]).cpu()


def _told(shape: Sequence[int]) -> str:
    frames, height, width = shape[:3]
    return f"{frames} frames of {width} x {height}"


def check_served(sampling: Sampling) -> None:
    """Refuse settings of a sampling that a server is not asked for.

    Raises:
        InputError: names one.
    """
    for name, value in sampling.departures.items():
        if name not in IGNORED:
            setting = {"guided_steps": "guidance_interval", "finish": "prune_at"}.get(name, name)
            raise InputError(
                f"rollout.{setting}={value}: a server is not asked for it; leave it at its "
                "default, and start the server with it or give rollout.served.extra the server's "
                "own field"
            )
