"""The reference that a preference loss compares the policy with.

A reference lives outside the module registry: strict loading works everywhere, and no checkpoint
contains a frozen one. It predicts with the same numerics as the policy, so that the loss of a
policy that has not moved is exactly the loss at zero margin.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ipo_lightning.errors import InputError
from ipo_lightning.parallel.averages import MovingAverage
from ipo_lightning.parallel.context import divide_tokens, mesh_in_context
from ipo_lightning.parallel.offload import keep_on_cpu
from ipo_lightning.parallel.sharding import mesh_of
from ipo_lightning.policy import Policy, put_weights, trained_weights
from ipo_lightning.settings import AtLeast, Below, Count, checked

Of = Literal["base", "round_start"]


@checked
class Reference:
    """What the training module calls; a reference of your own overrides what it needs.

    Args:
        of: which policy it is: the base model, or the policy at the start of the round.
    """

    answers: Literal["online", "precomputed", "none"] = "online"
    """``online``: it predicts at each step. ``precomputed``: its errors at a round's draws are
    computed before the round trains. ``none``: there is no reference."""

    def __init__(self, of: Of = "round_start") -> None:
        self.of: Of = of

    def attach(self, policy: Policy, network: nn.Module) -> None:
        """Take the policy, and its network that is trained, once that is on its device."""

    def refresh(self, weights: Mapping[str, Tensor] | None) -> None:
        """Take the trained weights to predict with, at a round's start; None: the base model's."""

    def predict(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The reference's model output (N, ...), without gradients.

        Call it before the policy's forward: an adapter is off meanwhile.
        """
        raise RuntimeError(f"{type(self).__name__} makes no predictions")

    def follow(self, network: nn.Module) -> None:
        """Follow the policy after an optimizer step; most references do nothing."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint needs to continue the round; empty for a frozen reference."""
        return {}

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` gave, after the `refresh` of a round that is continued."""


@checked
class CachedReference(Reference):
    """The reference's errors at the round's draws, computed once before the round trains.

    Exact: a round's draws are known before it starts, and a preference loss needs one number of the
    reference for each. Training then has one network in memory and makes one forward a video. The
    errors are kept in the store by what they depend on, so that every run of a sweep over losses,
    betas or learning rates finds them.

    Args:
        of: see `Reference`.
        batch_size: draws in one forward; without gradients, so it may be larger than a step's.
    """

    answers = "precomputed"

    def __init__(self, of: Of = "round_start", batch_size: Count = 32) -> None:
        super().__init__(of)
        self.batch_size = batch_size


class NoReference(Reference):
    """No reference, for losses that learn without one; margins and accuracies are then unknown."""

    answers = "none"


class FrozenReference(Reference):
    """A second copy of the network: serves any loss, costs its memory and its forwards.

    Args:
        of: ``round_start`` lets the policy move further each round, ``base`` keeps it close to the
            base model for the whole run.
        offload: CPU offload: its blocks stay in (pinned) CPU memory and are copied to the GPU one
            at a time. GPU memory of one block, and the time of the copies at each step.
    """

    def __init__(self, of: Of = "round_start", offload: bool = False) -> None:
        super().__init__(of)
        self.offload = offload
        self._policy: Policy | None = None
        self._network: nn.Module | None = None

    def attach(self, policy: Policy, network: nn.Module) -> None:
        """Build the copy, on the policy's device and sharded as the policy is."""
        device, mesh = next(network.parameters()).device, mesh_of(network)
        # Weights keep requires_grad: it is what names them; no graph is ever built through them.
        if self.offload:
            _refuse_shards(mesh)
            built = policy.build()
            keep_on_cpu(built, device)
        else:
            built = policy.build(device, mesh)
        divide_tokens(policy, built, mesh_in_context(network))
        self._policy, self._network = policy, built.eval()
        self._is_base = True

    def refresh(self, weights: Mapping[str, Tensor] | None) -> None:
        """Copy the weights into the network; None: the base model's."""
        policy, network = self._attached
        if weights is not None:
            put_weights(network, weights)
        elif not self._is_base:
            self.attach(policy, network)
        self._is_base = weights is None

    @torch.no_grad()
    def predict(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The copy's model output (N, ...), without gradients."""
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
    """An exponential moving average (EMA) of the policy, as Linear-DPO's authors train against.

    ``reference = decay * reference + (1 - decay) * policy`` after each optimizer step, from the
    policy at the start of the round (or the base model) on. It is part of the checkpoint: a round
    that is resumed continues with the same one.

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
        """Start the average at the weights; None: at the base model's."""
        super().refresh(weights)
        self._average = MovingAverage(trained_weights(self._attached[1]), self.decay)

    def follow(self, network: nn.Module) -> None:
        """Take the policy's weights into the average."""
        self._average.follow(trained_weights(network))
        self._predict_with_average()

    def state(self) -> dict[str, Tensor]:
        """The average, by the names of the weights."""
        return self._average.state()

    def resume(self, state: Mapping[str, Tensor]) -> None:
        """Restore the average that `state` gave."""
        self._average.resume(state)
        self._predict_with_average()

    @torch.no_grad()
    def _predict_with_average(self) -> None:
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
        """Take the policy's own network; refuse one without an adapter with `InputError`."""
        if not policy.adapter:
            raise InputError(
                "reference=adapter needs a policy with an adapter: all weights are trained here. "
                "Choose reference=cached, or give backbone.lora"
            )
        self._policy, self._network = policy, network

    def refresh(self, weights: Mapping[str, Tensor] | None) -> None:
        """Keep copies of the adapter's weights; None: predict without the adapter."""
        device = next(self._attached[1].parameters()).device
        self._weights = None
        if weights is not None:  # copies: the caller may hand over the network's own
            self._weights = {name: w.to(device, copy=True) for name, w in weights.items()}

    @torch.no_grad()
    def predict(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """Model output (N, ...) with the adapter off or swapped, without gradients."""
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
            "blocks to move; give false, or reference=cached, which needs no second network"
        )
