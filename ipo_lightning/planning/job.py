"""What an estimate needs to know of a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ipo_lightning.critics.stage.costs import Cost
from ipo_lightning.module import PreferenceModule
from ipo_lightning.parallel.degrees import Degrees
from ipo_lightning.policy import Policy, Sampling

NO_CRITIC = Cost("", "none")
ALONE = Degrees()


@dataclass(frozen=True)
class Job:
    """The settings of a run that its memory, operations and disk depend on."""

    policy: Policy
    make: Callable[[Policy], PreferenceModule]
    """Makes the training module of the run's settings for another policy."""
    sampling: Sampling
    candidates: int
    """Videos of a prompt, at most."""
    batch_size: int
    """Pairs or points a step on each device, or group of devices."""
    accumulate: int
    optimizer_steps: int
    """Optimizer updates a round."""
    reference_batch: int
    """Draws in one forward where reference errors are precomputed."""
    optimizer: str
    """Its ``_target_``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the policy, by name: traces are cached by them. None: by its identity."""
    fused: bool = False
    """Whether the optimizer is fused: its update needs no memory of its own."""
    precision: str = "32-true"
    """Lightning's name of it, such as ``bf16-mixed``."""
    devices: int = 1
    sharded: bool = False
    """Whether weights, gradients and optimizer state are sharded over the devices (FSDP2)."""
    gather_to_sample: bool = True
    """Whether shards are gathered into a whole network where there are no gradients."""
    degrees: Degrees = ALONE
    """How many devices make a forward together, each with its part of a video's tokens."""
    gpu: bool = True
    """Whether autocast follows a GPU's rules."""
    decode_batch: int = 1
    critic: Cost = NO_CRITIC
    judge: Cost = NO_CRITIC
    """What the critic and the held-out judge take of each device."""
    rounded: float = 0.0
    """Bytes of the copies that drafts compute with, to a byte of the blocks' weights."""
    overlay: int = 0
    """Bytes of the LoRA that is laid over the network for drafts."""
    parallel_prompts: int = 1
    """Prompts whose videos a process samples at the same time."""

    @property
    def videos(self) -> int:
        """Videos denoised at once, not counted twice for guidance; 1 where it is ``auto``."""
        size = self.sampling.batch_size
        return 1 if size == "auto" else min(int(size or self.candidates), self.candidates)

    @property
    def replicas(self) -> int:
        """Devices, or groups of them, that each have a batch of their own."""
        return self.devices // self.degrees.size

    @property
    def mixed(self) -> bool:
        """Whether matrix products are computed in mixed precision (bfloat16)."""
        return self.precision.endswith("-mixed")
