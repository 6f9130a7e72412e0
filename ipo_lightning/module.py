"""The LightningModule: one preference step on latents from the rollouts.

Only the trained network is registered in the module: the policy's text encoder and VAE and the
frozen reference stay outside, so that a checkpoint contains what was trained. The parts of a step
are functions in `ipo_lightning.training`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from ipo_lightning.draws.batch import PairBatch, PointBatch, Videos
from ipo_lightning.draws.calibration import beta_of, has_auto_beta, with_beta
from ipo_lightning.errors import InputError
from ipo_lightning.losses import (
    PreferenceLoss,
    Safeguard,
    baseline_kind,
    beyond_errors,
    kto_baseline,
    label_kind,
    reference_free,
    try_loss,
)
from ipo_lightning.metrics.training_health import TrainingHealth
from ipo_lightning.parallel.averages import MovingAverage
from ipo_lightning.parallel.context import divide_tokens
from ipo_lightning.parallel.sharding import total_norm
from ipo_lightning.parallel.strategies import group_mesh, replica_of
from ipo_lightning.policy import Policy, put_weights, trained_weights
from ipo_lightning.references import CachedReference, Reference
from ipo_lightning.seeds import derive_seed
from ipo_lightning.settings import AtLeast, Below, NotNegative, Null, checked
from ipo_lightning.training.forwards import (
    Errors,
    Forward,
    denoising_errors,
    in_two_passes,
    mismatched_reward,
    recomputed,
    video_errors,
)
from ipo_lightning.training.optimizer import drop_moments, set_plateau, warm_up
from ipo_lightning.training.terms import (
    Total,
    extra_tensors,
    logged,
    pair_total,
    point_total,
    refuse_non_finite,
)

LABELS = {"pairwise": "pairs.jsonl", "pointwise": "points.jsonl"}
"""A round's file of labels, by the kind of loss."""

WINNERS_PER_BETA = 0.04
"""lambda_1 to beta where it is ``auto``: what was found on the embedded world, 40 to 1000."""

ADAMW = partial(torch.optim.AdamW, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0)


@checked
class PreferenceModule(L.LightningModule):
    """Trains a policy against a frozen reference with a swappable preference loss.

    Args:
        policy: the model family and its base weights.
        loss: a pairwise or pointwise function of errors, see `ipo_lightning.losses`.
        reference: what the loss compares the policy with; None: a `CachedReference`.
        optimizer: takes the trained weights, at the plateau's rate; by default ``optim=adamw``'s.
        winner_weight: lambda_1 of the paper: weight of the winner's (or desirable video's) own
            error in the total. It keeps the policy a model of videos. ``auto``: 0.04 times beta,
            in each round, so that its share of the gradient is the same for any beta.
        real_weight: lambda_2: weight of the error on the real clips that come with a batch.
        safeguard: mu of Diffusion-SDPO in [0, 1), see `safeguard_scale`: the share of the winner's
            improvement that the loser's gradient must leave; None switches it off. For pairs.
        two_pass: back-propagate one half of the videos (the winners) after the other: half the
            activations for one more forward of the other half; the same gradients.
        warmup_steps: optimizer steps over which the learning rate rises linearly in each round.
        ema: decay, in [0, 1), of the moving average of the weights that a round ends with; or None.
        seed: the run's.
    """

    def __init__(
        self,
        policy: Policy,
        loss: Callable[..., PreferenceLoss],
        reference: Reference | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] = ADAMW,
        *,
        winner_weight: NotNegative | Literal["auto"] = 0.0,
        real_weight: NotNegative = 0.0,
        safeguard: Annotated[Safeguard | None, Null("off")] = None,
        two_pass: bool = False,
        warmup_steps: Annotated[int, AtLeast(0)] = 0,
        ema: Annotated[float | None, AtLeast(0), Below(1), Null("off")] = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.auto_beta = has_auto_beta(loss)  # whether each round's start sets it, see `set_beta`
        self.policy, self.reference = policy, reference or CachedReference()
        self.loss = with_beta(loss, 1.0) if self.auto_beta else loss
        try_loss(self.loss)
        self.label_kind = label_kind(loss)
        _refuse_reference(self.loss, self.reference)
        _refuse_safeguard(safeguard, self.label_kind)
        self.optimizer = optimizer
        self._winners, self.winner_weight = winner_weight, _winners(winner_weight, self.loss)
        self.real_weight, self.safeguard = real_weight, safeguard
        self.two_pass, self.warmup_steps, self.seed, self.ema = two_pass, warmup_steps, seed, ema
        self.average: MovingAverage | None = None
        self.health = TrainingHealth()
        self.round = 0
        """The round being trained, or trained last."""
        self.lr_scale = 1.0  # of the round's learning rate
        self._resumed: dict[str, Any] = {}
        self._rows = "with no rows yet"  # of the labels last trained on, for messages

    # ---------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Build the network once, before the first fit, on the device that Lightning has entered or
        in shards; schedules stay on the CPU, where they are the same bits for every device."""
        if not hasattr(self, "network"):
            device, mesh = torch.get_default_device(), self.device_mesh
            if mesh is not None:
                mesh = mesh["data_parallel"]
                self.strict_loading = False  # Lightning reads before frozen weights are filled in
            self.network = self.policy.build(device, mesh).train()  # it is in evaluation mode
            divide_tokens(self.policy, self.network, group_mesh(self._trainer))
            with torch.device("cpu"):
                self.objective = self.policy.objective()

    def on_fit_start(self) -> None:
        """Attach the reference, now that the network is on its device."""
        self.reference.attach(self.policy, self.network)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over the trained parameters; its learning rate is the plateau's."""
        optimizer = self.optimizer([p for p in self.network.parameters() if p.requires_grad])
        set_plateau(optimizer)
        return optimizer

    def trained(self) -> dict[str, Tensor]:
        """The trained weights, by the network's names; shards of them, where it is sharded."""
        return trained_weights(self.network)

    # ---------------------------------------------------------------- a round's start and end

    def begin_round(self, number: int, reference: Mapping[str, Tensor] | None) -> None:
        """Called with each round's data, fresh or resumed.

        Args:
            reference: trained weights of the round's reference, see `Reference.refresh`.
        """
        self.round = number
        self.reference.refresh(reference)
        resumes = self._resumed.get("round") == number
        if resumes and self._resumed["reference"]:
            self.reference.resume(self._resumed["reference"])
        if self.ema is not None:
            start = {name: weight.clone() for name, weight in self.trained().items()}
            self.average = MovingAverage(start, self.ema)
            if resumes:
                self.average.resume(self._resumed["average"])

    def set_beta(self, beta: float) -> None:
        """Give the loss its beta for this round."""
        self.loss = with_beta(self.loss, beta)
        self.winner_weight = _winners(self._winners, self.loss)

    def finish_round(self) -> None:
        """Called after a round's last optimizer step: its policy is the average, if any is kept."""
        if self.average is not None:
            put_weights(self.network, self.average.weights)

    def drop_moments(self) -> None:
        """Free the memory of gradients and moments; the next round starts without them."""
        for optimizer in self.trainer.optimizers:
            drop_moments(optimizer)

    # ---------------------------------------------------------------- the step

    def training_step(self, batch: PairBatch | PointBatch, batch_idx: int) -> STEP_OUTPUT:
        """Weighted mean preference loss, plus lambda_1 times the winner's own error, plus lambda_2
        times the error on real clips."""
        if isinstance(batch, PairBatch):
            total, values = self.pair_step(batch)
        else:
            total, values = self.point_step(batch)
        if batch.real is not None:
            error = self.real_errors(batch.real)
            total = total + self.real_weight * error.mean()
            values["error_real"] = error.detach()
        self._rows = f"with rows {batch.row.tolist()} of {LABELS[self.label_kind]}"
        place = f"round {self.round}, batch {batch_idx}, {self._rows}"
        # All ranks stop alike, so that none waits for another.
        refuse_non_finite("loss", cast(Tensor, self.all_gather(total.detach())), place)
        if replica_of(self.trainer).leads:  # a group of ranks has one batch
            self.health.update(u=batch.u, **values)
        self.log_dict(logged(total, values, self.learning_rate), batch_size=len(batch.row))
        return total

    def pair_step(self, batch: PairBatch) -> Total:
        """Total and values of B pairs; winner and loser share noise and timestep."""
        errors = self.errors(batch)
        return pair_total(self.loss, batch, errors, self.winner_weight, self.safeguard)

    def point_step(self, batch: PointBatch) -> Total:
        """Total and values of B single videos, each with noise and timestep of its own."""
        errors = self.errors(batch)
        extra = extra_tensors(self.loss, batch, errors, self._baseline)
        return point_total(self.loss, batch, errors, extra, self.winner_weight)

    def errors(self, batch: PairBatch | PointBatch) -> Errors:
        """Errors of policy and reference on a batch's videos; gradients through the policy's."""
        forward = in_two_passes(self._forward) if self.two_pass else self._forward
        return denoising_errors(forward, self.reference, batch, self.objective)

    def real_errors(self, clips: Videos) -> Tensor:
        """(N,) the policy's errors on real clips."""
        forward = recomputed(self._forward) if self.two_pass else self._forward
        return video_errors(forward, clips, self.objective)

    @property
    def _forward(self) -> Forward:
        """The policy's forward."""
        return partial(self.policy.predict, self.network)

    @torch.no_grad()
    def _baseline(self, batch: PointBatch, errors: Errors) -> Tensor:
        """KTO's reference point, over the batches of all ranks."""
        kind = cast(str, baseline_kind(self.loss))
        reward = errors.reference - errors.policy
        if kind == "mismatched":
            reward = mismatched_reward(self._forward, self.reference, errors.noised, batch.text)
        everywhere = cast(Tensor, self.all_gather(reward)).flatten()
        desirable = cast(Tensor, self.all_gather(batch.desirable.int())).flatten().bool()
        return kto_baseline(everywhere, desirable, kind)

    # ---------------------------------------------------------------- the optimizer's hooks

    def on_train_epoch_start(self) -> None:
        """A round starts (not a resumed one): fresh moments, fresh counts."""
        self.drop_moments()
        self.health.reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Learning rate and dropout are functions of the round and the batch, never of history."""
        torch.manual_seed(derive_seed(self.seed, "step", self.round, batch_idx, self.global_rank))
        for optimizer in self.trainer.optimizers:
            step = batch_idx // self.trainer.accumulate_grad_batches
            warm_up(optimizer, step, self.warmup_steps, self.lr_scale)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm, before clipping; stop where it is not finite.

        What an optimizer draws, such as stochastic rounding, is the same on all ranks: DDP's copies
        must not part.
        """
        torch.manual_seed(derive_seed(self.seed, "update", self.round, self.trainer.global_step))
        norm = total_norm([p.grad for p in self.network.parameters() if p.grad is not None])
        step = self.trainer.global_step
        place = f"round {self.round}, optimizer step {step}, last {self._rows}"
        refuse_non_finite("the gradient's norm", norm, place)
        if self.trainer.is_global_zero:  # the same on all ranks: it counts once an update
            self.health.update(gradient_norm=norm.view(1))
        self.log("train/gradient_norm", norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step, then update the moving averages of the policy, before anything is saved."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.reference.follow(self.network)
        if self.average is not None:
            self.average.follow(self.trained())

    @property
    def learning_rate(self) -> float:
        """The learning rate of the current optimizer step."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and the counts of all ranks; drop frozen base weights."""
        frozen = _frozen_weights(self)
        if not getattr(self.trainer.strategy, "sharded_checkpoints", False):
            kept = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
            checkpoint["state_dict"] = kept
        checkpoint["ipo_lightning"] = {
            "round": self.round,
            "base": self.policy.identity,
            "reference": self.reference.state(),
            "average": {} if self.average is None else self.average.state(),
            "health": self.health.state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frozen weights, so that loading stays strict; refuse another base model."""
        self._resumed = checkpoint.get("ipo_lightning", {})
        if self._resumed.get("base") != self.policy.identity:
            raise InputError("the checkpoint was trained on another base model: give its backbone")
        self.round = self._resumed["round"]
        self.health.resume(self._resumed["health"], leads=self.trainer.is_global_zero)
        if "state_dict" in checkpoint:  # a sharded network's has been read before
            checkpoint["state_dict"] = {**_frozen_weights(self), **checkpoint["state_dict"]}


def _frozen_weights(module: PreferenceModule) -> dict[str, Tensor]:
    """The network's weights that are not trained, by the module's names."""
    trained = {f"network.{name}" for name in module.trained()}
    state = module.state_dict()
    return {k: v for k, v in state.items() if k.startswith("network.") and k not in trained}


def _winners(weight: float | str, loss: Callable[..., PreferenceLoss]) -> float:
    """The winners' weight: a number, or by the loss's beta.

    Raises:
        InputError: by a beta that multiplies no errors.
    """
    if not isinstance(weight, str):
        return weight
    if (beta := beta_of(loss)) is None:
        expected = "give a number: this loss has no beta that multiplies errors"
        raise InputError(setting="winner_weight", value=weight, expected=expected)
    return WINNERS_PER_BETA * beta


def _refuse_reference(loss: Callable[..., PreferenceLoss], reference: Reference) -> None:
    """Refuse a reference that does not give what the loss needs."""
    more = beyond_errors(loss)
    if reference.answers == "precomputed" and more:
        raise InputError(
            f"reference=cached has only the reference's errors, but {more}; choose "
            "reference=frozen (or adapter, with backbone.lora)"
        )
    if reference.answers == "none" and not reference_free(loss):
        raise InputError(
            "reference=none: this loss learns from a reference; choose reference=cached, or a loss "
            "without one: simpo, mapo, sft, rwr"
        )


def _refuse_safeguard(mu: float | None, label_kind: str) -> None:
    if mu is not None and label_kind != "pairwise":
        raise InputError(
            setting="safeguard",
            value=mu,
            expected="it scales the loser's gradient so that the winner's error falls, but this "
            "loss takes single videos; give null",
        )
