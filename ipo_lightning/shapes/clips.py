"""Real videos of the world of shapes: what its training set would hold if nobody had been careless.

The base model learnt from clips with defects and wrong captions; these have neither.
"""

from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from ipo_lightning.draws.encoding import Footage, RealData, encode_once
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.workers import Workers
from ipo_lightning.policy import Policy
from ipo_lightning.settings import AtLeast, Count, checked
from ipo_lightning.shapes.prompts import prompts
from ipo_lightning.shapes.world import FPS, NUM_FRAMES, SIZE, clean_clips
from ipo_lightning.storage.store import Store, fingerprint_tensors


@checked
class ShapesClips:
    """Flawless clips of the train split's prompts, in turn, as a `RealSource`.

    Args:
        n: clips, at least 1.
        seed: of their places, sizes and speeds, from 0; runs that share it share the latents.
    """

    def __init__(self, *, n: Count = 256, seed: Annotated[int, AtLeast(0)] = 0) -> None:
        self.n, self.seed = n, seed

    def prepare(
        self, policy: Policy, store: Store, workers: Workers, device: torch.device
    ) -> RealData:
        """See `RealSource.prepare`."""
        self._check(policy)
        known = prompts("train")
        captions = [known[i % len(known)] for i in range(self.n)]
        clips = clean_clips(captions, self.seed)
        footage = [
            Footage(
                fingerprint_tensors({"frames": clip}),
                caption,
                f"shapes clip {number} of seed {self.seed}",
                partial(_given, clip),
            )
            for number, (clip, caption) in enumerate(zip(clips, captions, strict=True))
        ]
        return encode_once(footage, policy, store, workers, device, "data.real")

    @staticmethod
    def _check(policy: Policy) -> None:
        own = (NUM_FRAMES, SIZE, SIZE, FPS)
        if (*policy.size, policy.fps) != own:
            raise InputError(
                f"data.real: clips of the shapes world are of (frames, height, width, fps) {own}, "
                f"{policy.name} makes {(*policy.size, policy.fps)}; give videos of your own "
                "(docs/real-videos.md)"
            )


def _given(clip: Tensor) -> Tensor:
    return clip
