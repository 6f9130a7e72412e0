"""What a run needs, from configs alone: memory of a GPU by part, operations by stage, disk.

What single pieces of work cost is found on fake tensors, see `ipo_lightning.planning.traces`; here
it is added up; of critics, what they say of themselves (`ipo_lightning.critics.stage.costs`). Not
known here are kernels' own workspaces and the CUDA context.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from ipo_lightning.critics.stage.costs import Cost
from ipo_lightning.planning.job import Job
from ipo_lightning.planning.optimizers import ADAM, OPTIMIZERS, Optimizer
from ipo_lightning.planning.traces import Forward, Traces
from ipo_lightning.policy import Sampling
from ipo_lightning.references import MovingReference

GIB = 2**30
OPERATIONS_A_BYTE = 150
"""Operations in the time in which a device reads a byte of weights: A100 156, RTX 4090 165, H100
295. A language model reads all its weights for each token that it writes."""


@dataclass(frozen=True)
class Stage:
    """Peak memory of a stage on each device."""

    name: str
    parts: dict[str, float] = field(default_factory=dict)
    """Bytes by what they hold."""

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(self.parts.values())


class Estimate:
    """Memory, operations and disk of a job, each computed when it is asked for."""

    def __init__(self, job: Job) -> None:
        self.job, self.traces = job, Traces(job)

    # ---------------------------------------------------------------- memory

    @cached_property
    def resident(self) -> dict[str, float]:
        """Bytes on each device in every stage, by part."""
        step, share = self.traces.step, self._share
        copies = self.job.devices > 1 and not self.job.sharded  # what DDP sends, and keeps
        return {
            "weights": step.weights / share,
            "gradients": step.gradients if copies else 0,
            "reference": step.reference / share,
        }

    @property
    def while_training(self) -> dict[str, float]:
        """Bytes on each device while a round trains; moments are dropped before videos are made."""
        gradients = self.resident["gradients"] + self.traces.step.gradients / self._share
        return {**self.resident, "gradients": gradients, "optimizer": self._state / self._share}

    @property
    def _share(self) -> int:
        """Devices that weights, gradients and optimizer state are divided by."""
        return self.job.devices if self.job.sharded else 1

    @property
    def _optimizer(self) -> Optimizer:
        return OPTIMIZERS.get(self.job.optimizer, ADAM)

    @property
    def _state(self) -> float:
        """Bytes of the optimizer's state; its moments have the dtype of the trained weights."""
        itemsize = self.traces.step.gradients // self.traces.step.trained
        return self.traces.step.trained * self._optimizer.state(itemsize)

    @cached_property
    def stages(self) -> list[Stage]:
        """Peak memory of each stage."""
        traces, prompts = self.traces, self.job.parallel_prompts
        found = [
            self._stage("text embeddings", traces.text, "encoder, VAE"),
            self._rollout(),
            self._stage("VAE decoding", traces.decoding, "encoder, VAE", prompts),
        ]
        if traces.module.reference.answers == "precomputed":
            found.append(self._stage("reference errors", traces.reference_errors, "activations"))
        if traces.module.real_weight:
            found.append(self._stage("real clips", traces.encoding, "encoder, VAE"))
        return [*found, *self._critics(), self._training(), self._update()]

    @property
    def fullest(self) -> Stage:
        """The stage that needs most memory."""
        return max(self.stages, key=lambda stage: stage.total)

    def _stage(self, name: str, work: Forward, kind: str, parallel_prompts: int = 1) -> Stage:
        """A stage without gradients."""
        held = float(parallel_prompts * (work.held - work.casts))
        if kind == "activations":
            held /= self.job.degrees.size
        parts = {"gathered": self._gathered, "casts": work.casts, kind: held}
        return Stage(name, {**self.resident, **parts})

    def exchanged(self) -> float:
        """Bytes that a device sends in a forward of one video: queries, keys, values and what comes
        of them for Ulysses, keys and values for ring attention."""
        job, policy = self.job, cast(Any, self.job.policy)
        ulysses, ring = job.degrees.ulysses, job.degrees.ring
        once = policy.tokens / job.degrees.size * policy.width * (2 if job.mixed else 4)
        return float(policy.blocks * once * (4 * (ulysses - 1) / ulysses + 2 * (ring - 1)))

    def _rollout(self) -> Stage:
        """Denoising, with what drafts have beside the network."""
        job, step = self.job, self.traces.step
        stage = self._stage("rollout", self.traces.sampling, "activations", job.parallel_prompts)
        copies = job.rounded * step.block * job.policy.blocks + job.overlay
        return Stage(stage.name, {**stage.parts, "copies": copies}) if copies else stage

    def _critics(self) -> list[Stage]:
        """The stages in which critics are in memory beside the policy, where they take any."""
        labelling, judging = (one.held or 0.0 for one in (self.job.critic, self.job.judge))
        # The policy has just made the videos.
        evaluation = {"gathered": self._gathered, "critic": max(labelling, judging)}
        found = [
            Stage("critique", {**self.resident, "critic": labelling}),
            Stage("evaluation", {**self.resident, **evaluation}),
        ]
        return [stage for stage in found if stage.parts["critic"]]

    @property
    def _gathered(self) -> float:
        """Bytes gathered where there are no gradients: the whole network, see `sharding.gathered`,
        or shards in turn, see `sharding.in_step`."""
        whole = self.job.sharded and self.job.gather_to_sample
        return float(self.traces.step.weights) if whole else self._unsharded(0.0)

    def _training(self) -> Stage:
        step, (peak, casts) = self.traces.step, self.traces.step.peak
        gathered = self._unsharded(step.block * step.gradients / step.weights)
        activations = (peak - casts) / self.job.degrees.size
        parts = {"gathered": gathered, "casts": casts, "activations": activations}
        return Stage("training", {**self.while_training, **parts})

    def _unsharded(self, gradients: float) -> float:
        """Bytes that FSDP2 gathers during a forward: weights outside the blocks, the current block
        and the next, and in a backward the gradients of the block before."""
        step, job = self.traces.step, self.job
        if not job.sharded:
            return 0.0
        outside = step.weights - step.block * job.policy.blocks
        return outside + 2 * step.block + gradients

    def _update(self) -> Stage:
        """The optimizer's step: no activations, but the copies that it makes."""
        copies = 0 if self.job.fused or not self.job.gpu else self._optimizer.update
        extra = copies * self.traces.step.gradients / self._share
        return Stage("update", {**self.while_training, "update": extra})

    # ---------------------------------------------------------------- operations

    def rollout_flops(self, prompts: int, videos: int, sampling: Sampling | None = None) -> float:
        """Operations of a round's candidates, ``videos`` a prompt, on all devices together.

        Args:
            sampling: of drafts; None: the job's.
        """
        return prompts * self._prompt_flops(sampling or self.job.sampling, videos)

    def evaluation_flops(self, prompts: int, videos: int, sampling: Sampling) -> float:
        """Operations of an evaluation, which has no shared steps."""
        return prompts * self._prompt_flops(sampling.independent(), videos)

    def _prompt_flops(self, sampling: Sampling, videos: int) -> float:
        """Operations of a prompt's videos, as if no cache saved any."""
        predictions = sampling.evaluations(videos)
        decoded = videos * self.job.degrees.size  # one device of a group decodes, the others wait
        return predictions * self.traces.one_video.flops + decoded * self.traces.decoding.flops

    def reference_flops(self) -> float:
        """Operations of a round's reference errors, on all devices together."""
        if self.traces.module.reference.answers != "precomputed":
            return 0.0
        return self._draws * (2 if self.traces.pairwise else 1) * self.traces.one_video.flops

    @staticmethod
    def critic_flops(critic: Cost, answers: float) -> float | None:
        """Operations of a critic's answers; the weights that it reads to write them count as
        operations that take as long. None: unknown."""
        if critic.flops is None or critic.read is None:
            return None
        return answers * (critic.flops + OPERATIONS_A_BYTE * critic.read)

    def training_flops(self) -> float:
        """Operations of a round's training, on all devices together."""
        job = self.job
        return job.optimizer_steps * job.accumulate * job.replicas * self.traces.step.flops

    @property
    def _draws(self) -> int:
        job = self.job
        return job.optimizer_steps * job.accumulate * job.replicas * job.batch_size

    # ---------------------------------------------------------------- disk

    def checkpoint_bytes(self) -> float:
        """Bytes of a checkpoint: trained weights, optimizer state and a moving reference."""
        moving = isinstance(self.traces.module.reference, MovingReference)
        return self.traces.step.gradients * (2 if moving else 1) + self._state

    def export_bytes(self) -> float:
        """Bytes of a round's exported policy, in float32."""
        return 4.0 * self.traces.step.trained
