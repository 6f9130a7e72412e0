"""The reference that a preference loss compares the policy with.

A reference lives outside the module registry: strict loading holds everywhere, and no checkpoint
holds a frozen one. It answers with the same numerics as the policy, so that a policy that has not
moved costs exactly what a loss costs at zero margin.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.averages import MovingAverage
from ipo_lightning.parallel.offload import keep_on_cpu
from ipo_lightning.parallel.sharding import mesh_of, shard
from ipo_lightning.policy import Policy, put_weights, trained_weights
from ipo_lightning.settings import AtLeast, Below, Count, checked

Of = Literal["base", "round_start"]


@checked
class Reference:
    """What every reference is asked; one of your own overrides what it needs.

    Args:
        of: which policy it is: the base model, or the policy at the start of the round.
    """

    answers: Literal["online", "precomputed", "none"] = "online"
    """Whether it predicts at each step, its errors at a round's draws are computed before the
    round trains, or there is none."""

    def __init__(self, of: Of = "round_start") -> None:
        self.of: Of = of

    def attach(self, policy: Policy, network: nn.Module) -> None:
        """Learn whose reference this is; called once the network is on its device."""

    def refresh(self, weights: Mapping[str, Tensor] | None) -> None:
        """Take the trained weights to answer with; None: the base model's."""

    def predict(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The reference's answer, without gradients; call it before the policy's forward."""
        raise RuntimeError(f"{type(self).__name__} makes no predictions")

    def follow(self, network: nn.Module) -> None:
        """The optimizer has stepped; only a reference that moves within a round cares."""

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for a round to go on: nothing where nothing moves."""
        return {}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave, after the `refresh` of a round that goes on."""


@checked
class CachedReference(Reference):
    """The reference's errors at the round's draws, computed once before the round trains.

    Exact: which draws a round makes is known before it starts, and a preference loss needs one
    number of the reference for each. Training then holds one network and makes one forward a video.
    The errors lie in the store under what they depend on, so that every run of a sweep over losses,
    betas or learning rates finds them.

    Args:
        of: see `Reference`.
        batch_size: draws a forward; no gradients are held, so it may be larger than a step's.
    """

    answers = "precomputed"

    def __init__(self, of: Of = "round_start", batch_size: Count = 32) -> None:
        super().__init__(of)
        self.batch_size = batch_size


class NoReference(Reference):
    """None at all, for losses that learn without one; margins and accuracies are not known then."""

    answers = "none"


class FrozenReference(Reference):
    """A second copy of the network: any loss, at the price of its memory and its forwards.

    Args:
        of: ``round_start`` lets the policy move further each round, ``base`` holds it to the base
            model for the whole run.
        offload: its blocks lie in CPU memory (pinned) and come to the GPU one at a time: the
            memory of a block for the time of a copy at each step.
    """

    def __init__(self, of: Of = "round_start", offload: bool = False) -> None:
        super().__init__(of)
        self.offload = offload
        self._policy: Policy | None = None
        self._network: nn.Module | None = None

    def attach(self, policy: Policy, network: nn.Module) -> None:
        """See `Reference.attach`."""
        device, mesh = next(network.parameters()).device, mesh_of(network)
        # Weights keep requires_grad: it is what names them; no graph is ever built through them.
        self._policy, self._network = policy, policy.build().eval()
        if self.offload:
            _refuse_shards(mesh)
            keep_on_cpu(self._network, device)
        else:
            self._network.to(device)
        if mesh is not None:
            shard(self._network, mesh)
        self._is_base = True

    def refresh(self, weights: Mapping[str, Tensor] | None) -> None:
        """See `Reference.refresh`."""
        policy, network = self._attached
        if weights is not None:
            put_weights(network, weights)
        elif not self._is_base:
            self.attach(policy, network)
        self._is_base = weights is None

    @torch.no_grad()
    def predict(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """See `Reference.predict`."""
        policy, network = self._attached
        try:
            return policy.predict(network, sample, timestep, text)
        finally:
            torch.clear_autocast_cache()  # its casts of our weights: half a model's memory

    @property
    def _attached(self) -> tuple[Policy, nn.Module]:
        if self._policy is None or self._network is None:
            raise RuntimeError("attach the reference before using it")
        return self._policy, self._network


@checked
class MovingReference(FrozenReference):
    """An exponential moving average of the policy, as Linear-DPO's authors train against.

    ``reference = decay * reference + (1 - decay) * policy`` after each update, from the policy at
    the start of the round (or the base model) on. It travels in the checkpoint: a round that is
    resumed goes on with the same one.

    Args:
        of: where it starts in each round.
        decay: in [0, 1); 0 is the policy of the update before, near 1 a frozen reference. The
            authors' 0.99 to 0.995 forget half in 70 to 140 updates.
        offload: see `FrozenReference`; the average is then made on the CPU.
    """

    def __init__(
        self,
        of: Of = "round_start",
        decay: Annotated[float, AtLeast(0), Below(1)] = 0.99,
        offload: bool = False,
    ) -> None:
        super().__init__(of, offload)
        self.decay = decay

    def refresh(self, weights: Mapping[str, Tensor] | None) -> None:
        """See `Reference.refresh`."""
        super().refresh(weights)
        self._average = MovingAverage(trained_weights(self._attached[1]), self.decay)

    def follow(self, network: nn.Module) -> None:
        """See `Reference.follow`."""
        self._average.follow(trained_weights(network))
        self._answer_with_average()

    def state(self) -> dict[str, Tensor]:
        """See `Reference.state`."""
        return self._average.state()

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """See `Reference.resume`."""
        self._average.resume(state)
        self._answer_with_average()

    @torch.no_grad()
    def _answer_with_average(self) -> None:
        self._is_base = False
        for name, weight in trained_weights(self._attached[1]).items():
            if weight.dtype != torch.float32:  # others are the average itself
                weight.copy_(self._average.weights[name])


class AdapterReference(Reference):
    """The policy itself with its adapter off, or with the adapter of the round's start: no copy.

    Args:
        of: ``base`` switches the adapter off; ``round_start`` swaps its earlier weights in for the
            length of a forward.
    """

    def __init__(self, of: Of = "base") -> None:
        super().__init__(of)
        self._policy: Policy | None = None
        self._network: nn.Module | None = None
        self._weights: dict[str, Tensor] | None = None

    def attach(self, policy: Policy, network: nn.Module) -> None:
        """See `Reference.attach`."""
        if not policy.adapter:
            raise InputError(
                "reference=adapter needs a policy with an adapter: all weights are trained here. "
                "Choose reference=cached, or give backbone.lora"
            )
        self._policy, self._network = policy, network

    def refresh(self, weights: Mapping[str, Tensor] | None) -> None:
        """See `Reference.refresh`."""
        device = next(self._attached[1].parameters()).device
        self._weights = None
        if weights is not None:  # copies: the caller may hand over the network's own
            self._weights = {name: w.to(device, copy=True) for name, w in weights.items()}

    @torch.no_grad()
    def predict(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """See `Reference.predict`."""
        policy, network = self._attached
        if self._weights is None:
            network.disable_adapters()  # type: ignore[operator]
            try:
                return policy.predict(network, sample, timestep, text)
            finally:
                network.enable_adapters()  # type: ignore[operator]
        current = {name: w.clone() for name, w in trained_weights(network).items()}
        put_weights(network, self._weights)
        # Autocast keeps its casts of weights by address: those of the earlier weights must reach
        # neither the policy's forward nor, made without gradients, its backward.
        torch.clear_autocast_cache()
        try:
            return policy.predict(network, sample, timestep, text)
        finally:
            put_weights(network, current)
            torch.clear_autocast_cache()

    @property
    def _attached(self) -> tuple[Policy, nn.Module]:
        if self._policy is None or self._network is None:
            raise RuntimeError("attach the reference before using it")
        return self._policy, self._network


def _refuse_shards(mesh: DeviceMesh | None) -> None:
    if mesh is not None:
        raise InputError(
            "reference.offload=true: the network is in shards (trainer=fsdp), which have no whole "
            "blocks to move; give false, or reference=cached, which holds no second network"
        )
