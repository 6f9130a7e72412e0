"""The LightningModule: one preference step on latents from the rollouts.

It holds the trained network and nothing else in its registry: the policy's text encoder and VAE
and the frozen reference stay outside, so that a checkpoint is what was trained.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ipo_lightning.draws.batch import PairBatch, PointBatch, Videos
from ipo_lightning.draws.calibration import settle_beta, wants_beta
from ipo_lightning.errors import InputError
from ipo_lightning.losses import (
    PreferenceLoss,
    Safeguard,
    baseline_kind,
    beyond_errors,
    kto_baseline,
    label_kind,
    reference_free,
    safeguard_scale,
    saturation,
    scale_gradient,
    try_loss,
    wants,
)
from ipo_lightning.metrics.metrics import TrainingHealth, agreement
from ipo_lightning.objectives import Noised, mean_square, squared_error
from ipo_lightning.parallel.averages import MovingAverage
from ipo_lightning.parallel.sharding import shard, total_norm
from ipo_lightning.policy import Policy, put_weights, trained_weights
from ipo_lightning.references import Reference
from ipo_lightning.seeds import derive_seed
from ipo_lightning.settings import AtLeast, Below, NotNegative, Null, checked


@checked
class PreferenceModule(L.LightningModule):
    """Trains a policy against a frozen reference with a swappable preference loss.

    Args:
        policy: the model family and its base weights.
        loss: a pairwise or pointwise function of errors, see `ipo_lightning.losses`.
        reference: what the loss compares the policy with.
        optimizer: takes the trainable parameters; its learning rate is the one of the round's
            plateau.
        winner_weight: lambda_1 of the paper: weight of the winner's (or desirable video's) own
            error in the total. It holds the policy to videos.
        real_weight: lambda_2: weight of the error on the real clips that come with a batch.
        safeguard: mu of Diffusion-SDPO in [0, 1), see `safeguard_scale`: how much of the winner's
            improvement the loser's gradient must leave; None switches it off. For pairs.
        two_pass: back-propagate one half of the videos (the winners) after the other: half the
            activations for one more forward of the other half; the same gradients.
        warmup_steps: the learning rate rises linearly over the first updates of each round.
        ema: decay, in [0, 1), of a moving average of the trained weights over a round's updates,
            which is what the round ends with; None: the last update's weights.
        seed: the run's.
    """

    def __init__(
        self,
        policy: Policy,
        loss: Callable[..., PreferenceLoss],
        reference: Reference,
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        winner_weight: NotNegative = 0.0,
        real_weight: NotNegative = 0.0,
        safeguard: Annotated[Safeguard | None, Null("off")] = None,
        two_pass: bool = False,
        warmup_steps: Annotated[int, AtLeast(0)] = 0,
        ema: Annotated[float | None, AtLeast(0), Below(1), Null("off")] = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.auto_beta = wants_beta(loss)
        """Whether the loss's beta is set at the start of each round, see `set_beta`."""
        self.policy, self.reference = policy, reference
        self.loss = settle_beta(loss, 1.0) if self.auto_beta else loss
        try_loss(self.loss)
        self.label_kind = label_kind(loss)
        _refuse_reference(self.loss, reference)
        _refuse_safeguard(safeguard, self.label_kind)
        self.optimizer = optimizer
        self.winner_weight, self.real_weight, self.safeguard = winner_weight, real_weight, safeguard
        self.two_pass, self.warmup_steps, self.seed = two_pass, warmup_steps, seed
        self.ema = ema
        self.average: MovingAverage | None = None
        self.health = TrainingHealth()
        self.round = 0
        """The round being trained."""
        self._resumed: dict[str, Any] = {}

    # ---------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Build the network once; Lightning calls this before every fit."""
        if not hasattr(self, "network"):
            self.network = self.policy.build().train()  # diffusers loads in evaluation mode
            self.objective = self.policy.objective()
            if self.device_mesh is not None:
                shard(self.network, self.device_mesh["data_parallel"])
                self.strict_loading = False  # Lightning reads before frozen weights are filled in

    def on_fit_start(self) -> None:
        """The network is on its device by now."""
        self.reference.attach(self.policy, self.network)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over what is trained."""
        optimizer = self.optimizer([p for p in self.network.parameters() if p.requires_grad])
        for group in optimizer.param_groups:
            group["plateau_lr"] = float(group["lr"])  # torchao keeps its rate in a tensor
        return optimizer

    # ---------------------------------------------------------------- a round's start and pace

    def begin_round(self, number: int, reference: Mapping[str, Tensor] | None) -> None:
        """Called with each round's data, fresh or resumed; ``reference``: see `refresh` there."""
        self.round = number
        self.reference.refresh(reference)
        goes_on = self._resumed.get("round") == number
        if goes_on and self._resumed["reference"]:
            self.reference.resume(self._resumed["reference"])
        if self.ema is not None:
            start = {name: weight.clone() for name, weight in self.trained().items()}
            self.average = MovingAverage(start, self.ema)
            if goes_on:
                self.average.resume(self._resumed["average"])

    def finish_round(self) -> None:
        """Called after a round's last update: its policy is the average, where one is kept."""
        if self.average is not None:
            put_weights(self.network, self.average.weights)

    def drop_moments(self) -> None:
        """Give back the memory of gradients and moments; the next round starts without them."""
        for optimizer in self.trainer.optimizers:
            optimizer.zero_grad()
            optimizer.state.clear()

    def set_beta(self, beta: float) -> None:
        """Give the loss its beta for this round."""
        self.loss = settle_beta(self.loss, beta)

    def on_train_epoch_start(self) -> None:
        """A round starts (not a resumed one): fresh moments, fresh counts."""
        self.drop_moments()
        self.health.reset()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Learning rate and dropout are functions of the round and the batch, never of history."""
        torch.manual_seed(derive_seed(self.seed, "step", self.round, batch_idx, self.global_rank))
        update = batch_idx // self.trainer.accumulate_grad_batches
        share = min(1.0, (update + 1) / (self.warmup_steps + 1))
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                _set_rate(group, share * group["plateau_lr"])

    # ---------------------------------------------------------------- the step

    def training_step(self, batch: PairBatch | PointBatch, batch_idx: int) -> STEP_OUTPUT:
        """Weighted mean preference loss, plus lambda_1 times the winner's own error, plus lambda_2
        times the error on real clips."""
        step = self.pair_step if isinstance(batch, PairBatch) else self.point_step
        loss, values = step(batch)  # type: ignore[arg-type]
        if batch.real is not None:
            error = self.real_errors(batch.real)
            loss = loss + self.real_weight * error.mean()
            values["error_real"] = error.detach()
        self._refuse_non_finite(loss, batch, batch_idx)
        self._labels = batch.row
        self.health.update(place=batch.u, **values)
        self._log(loss, values, len(batch.row))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient's norm, before clipping; stop where it is not finite.

        What an optimizer draws, such as stochastic rounding, is the same on all ranks: DDP's copies
        must not part.
        """
        torch.manual_seed(derive_seed(self.seed, "update", self.round, self.trainer.global_step))
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = total_norm(gradients)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm.item()} in round {self.round}, update "
                f"{self.trainer.global_step}, last with labels {self._labels.tolist()}: lower "
                "optim.optimizer.lr or loss.beta"
            )
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
        """Step, and let what moves with the policy follow, before anything is saved."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.reference.follow(self.network)
        if self.average is not None:
            self.average.follow(self.trained())

    @property
    def learning_rate(self) -> float:
        """Of the update under way."""
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])

    def pair_step(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """One draw of noise and timestep a pair, which winner and loser share.

        Returns the mean loss and (B,) figures of each pair.
        """
        found = self.errors(batch)
        (win, lose), (ref_win, ref_lose) = found.policy.chunk(2), found.reference.chunk(2)
        held = lose if self.safeguard is None else self._safeguarded(lose, found, self.safeguard)
        loss, margin = self.loss(win, held, ref_win, ref_lose)
        total = (batch.weight * loss).mean() + self.winner_weight * win.mean()
        return total, {
            "loss": loss.detach(),
            "margin": margin,
            "error_win": win.detach(),
            "error_lose": lose.detach(),
            "error_win_change": (win - ref_win).detach(),
            "error_lose_change": (lose - ref_lose).detach(),
            "drift": (win - ref_win + lose - ref_lose).detach() / 2,
            "saturated": saturation(self.loss, win, lose, ref_win, ref_lose),
        }

    def point_step(self, batch: PointBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """One draw of noise and timestep a video; see `pair_step`."""
        found = self.errors(batch)
        policy, reference, desirable = found.policy, found.reference, batch.desirable
        extra = self._extra(batch, found)
        loss, margin = self.loss(policy, reference, desirable, **extra)
        own = (policy * desirable).sum() / desirable.sum().clamp_min(1)
        total = (batch.weight * loss).mean() + self.winner_weight * own
        error, change = policy.detach(), (policy - reference).detach()
        nobody = torch.full_like(error, torch.nan)
        return total, {
            "loss": loss.detach(),
            "margin": margin,
            "error_win": torch.where(desirable, error, nobody),
            "error_lose": torch.where(desirable, nobody, error),
            "error_win_change": torch.where(desirable, change, nobody),
            "error_lose_change": torch.where(desirable, nobody, change),
            "drift": change,
            "saturated": saturation(self.loss, policy, reference, desirable, **extra),
        }

    # ---------------------------------------------------------------- forwards

    def errors(self, batch: PairBatch | PointBatch) -> "Errors":
        """Policy and reference on a batch's videos; gradients through the policy's."""
        videos = batch.videos()
        noised = self.objective.noise(videos.latents, videos.noise, videos.u)
        asked = (noised.sample, noised.timestep, videos.text)
        # The reference goes first: an adapter is back in place before the policy's graph is built.
        live = self.reference.answers == "online"
        seen = self.reference.predict(*asked) if live else None
        reference = batch.reference() if seen is None else squared_error(seen, noised)
        prediction = self.predict(*asked)
        return Errors(squared_error(prediction, noised), reference, prediction, seen, noised)

    def predict(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The policy's answer, in one forward or in two.

        Of two, the second half's comes first, and keeps no activations: autograd walks back through
        the later graph first and frees it, and only then makes that of the second half.
        """
        forward = partial(self.policy.predict, self.network)
        if not self.two_pass or len(sample) < 2:
            return forward(sample, timestep, text)
        parts = [part.tensor_split(2) for part in (sample, timestep, text)]
        second = checkpoint(forward, *(part[1] for part in parts), use_reentrant=False)
        return torch.cat([forward(*(part[0] for part in parts)), cast(Tensor, second)])

    def real_errors(self, clips: Videos) -> Tensor:
        """(B,) the policy's errors on real clips."""
        noised = self.objective.noise(clips.latents, clips.noise, clips.u)
        asked = (noised.sample, noised.timestep, clips.text)
        forward = partial(self.policy.predict, self.network)
        if self.two_pass:
            return squared_error(
                cast(Tensor, checkpoint(forward, *asked, use_reentrant=False)), noised
            )
        return squared_error(forward(*asked), noised)

    def _safeguarded(self, lose: Tensor, found: "Errors", mu: float) -> Tensor:
        """The losers' errors, with as much of their gradient as the winners can bear."""
        win_residual, lose_residual = (found.prediction - found.noised.target).detach().chunk(2)
        return scale_gradient(lose, safeguard_scale(win_residual, lose_residual, mu=mu))

    def _extra(self, batch: PointBatch, found: "Errors") -> dict[str, Tensor]:
        """What a pointwise loss wants beside the errors."""
        wanted, extra = wants(self.loss), {}
        if "baseline" in wanted:
            extra["baseline"] = self._baseline(batch, found)
        if "drift" in wanted:
            seen = cast(Tensor, found.seen)
            extra["drift"] = found.noised.weight * mean_square(found.prediction - seen)
        if "reward" in wanted:
            extra["reward"] = batch.reward
        return extra

    @torch.no_grad()
    def _baseline(self, batch: PointBatch, found: "Errors") -> Tensor:
        """KTO's reference point, over the batches of all ranks."""
        kind = cast(str, baseline_kind(self.loss))
        reward = found.reference - found.policy
        if kind == "mismatched":
            if len(batch.text) < 2:
                raise InputError(
                    "loss.baseline=mismatched: with one video a step there is no other prompt; "
                    "give data.batch_size=2 or more, or another baseline"
                )
            noised = found.noised
            asked = (noised.sample, noised.timestep, batch.text.roll(1, 0))
            seen = self.reference.predict(*asked)
            answer = self.policy.predict(self.network, *asked)
            reward = squared_error(seen, noised) - squared_error(answer, noised)
        everywhere = cast(Tensor, self.all_gather(reward)).flatten()
        desirable = cast(Tensor, self.all_gather(batch.desirable.int())).flatten().bool()
        return kto_baseline(everywhere, desirable, kind)

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained, and the counts of all ranks; drop frozen base weights."""
        frozen = self._frozen()
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
        """Fill the frozen weights in, so that loading stays strict."""
        self._resumed = checkpoint.get("ipo_lightning", {})
        if self._resumed.get("base") != self.policy.identity:
            raise InputError("the checkpoint was trained on another base model: give its backbone")
        self.health.resume(self._resumed["health"], leads=self.trainer.is_global_zero)
        if "state_dict" in checkpoint:  # a sharded network's has been read before
            checkpoint["state_dict"] = {**self._frozen(), **checkpoint["state_dict"]}

    def trained(self) -> dict[str, Tensor]:
        """The trained weights, by the network's names; shards of them, where it is sharded."""
        return trained_weights(self.network)

    def _frozen(self) -> Mapping[str, Tensor]:
        trained = {f"network.{name}" for name in self.trained()}
        state = self.state_dict()
        return {k: v for k, v in state.items() if k.startswith("network.") and k not in trained}

    def _log(self, loss: Tensor, values: Mapping[str, Tensor], count: int) -> None:
        logged = {f"train/{name}": value.nanmean() for name, value in values.items()}
        logged["train/accuracy"] = agreement(values["margin"]).nanmean()
        known = {name: value for name, value in logged.items() if not value.isnan()}
        known["train/total"] = loss.detach()
        known["train/learning_rate"] = torch.tensor(self.learning_rate)
        self.log_dict(known, batch_size=count)

    def _refuse_non_finite(
        self, loss: Tensor, batch: PairBatch | PointBatch, batch_idx: int
    ) -> None:
        """Stop before the optimizer steps; on each rank alike, so that none waits for another."""
        if not torch.isfinite(cast(Tensor, self.all_gather(loss.detach()))).all():
            file = "pairs" if self.label_kind == "pairwise" else "points"
            raise FloatingPointError(
                f"loss {loss.item()} in round {self.round}, batch {batch_idx}, with rows "
                f"{batch.row.tolist()} of {file}.jsonl: lower optim.optimizer.lr or loss.beta"
            )


class Errors(NamedTuple):
    """What policy and reference make of N videos."""

    policy: Tensor
    """(N,) float32, with gradients."""
    reference: Tensor
    """(N,) float32; NaN where there is none."""
    prediction: Tensor
    """(N, ...) the policy's answer, with gradients."""
    seen: Tensor | None
    """(N, ...) the reference's, where it answers live."""
    noised: Noised


def _refuse_reference(loss: Callable[..., PreferenceLoss], reference: Reference) -> None:
    """Refuse a reference that cannot answer what the loss asks."""
    more = beyond_errors(loss)
    if reference.answers == "precomputed" and more:
        raise InputError(
            f"reference=cached keeps the reference's errors alone, but {more}; choose "
            "reference=frozen (or adapter, with backbone.lora)"
        )
    if reference.answers == "none" and not reference_free(loss):
        raise InputError(
            "reference=none: this loss learns from a reference; choose reference=cached, or a loss "
            "without one: simpo, mapo, sft, rwr"
        )


def _set_rate(group: dict[str, Any], rate: float) -> None:
    """Give a group of parameters its learning rate, in place where the optimizer wants a tensor."""
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _refuse_safeguard(mu: float | None, label_kind: str) -> None:
    if mu is not None and label_kind != "pairwise":
        raise InputError(
            setting="safeguard",
            value=mu,
            expected="it holds the loser's gradient to what the winner can bear, but this loss "
            "takes single videos; give null",
        )
