"""Training a critic on people's labels: the LightningModule, and the protocol of its networks.

A reward network computes rewards (B, D) of videos and their prompts, one a dimension. Pairs of
videos train it by differences of rewards (Bradley-Terry, `ipo_lightning.reward.losses`), rated
videos by the rewards. Both videos of a pair are in one batch.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ipo_lightning.errors import InputError
from ipo_lightning.metrics.agreement import (
    credit,
    mean_over_prompts,
    right,
    spearman,
    three_way,
    tie_threshold,
)
from ipo_lightning.reward.losses import RewardLoss, RewardScale, label_kind, try_loss
from ipo_lightning.seeds import derive_seed
from ipo_lightning.settings import AtLeast, checked
from ipo_lightning.video import Clip


class RewardNetwork(Protocol):
    """A family of networks that can be trained as critics; methods get the network itself."""

    dims: tuple[str, ...]
    """Names of the dimensions, those of the labels, in order."""

    @property
    def identity(self) -> str:
        """Fingerprint of all that the untrained weights depend on."""
        ...

    def build(self) -> nn.Module:
        """A new network. Its trained parameters have ``requires_grad``; called with the tensors of
        `inputs` it returns rewards (B, D), float32."""
        ...

    def inputs(self, clips: Sequence[Clip], prompts: Sequence[str]) -> dict[str, Tensor]:
        """The network's inputs for videos and their prompts; called in loader processes."""
        ...

    def export(self, network: nn.Module, folder: Path, scale: RewardScale) -> None:
        """Write a trained network as a critic's folder. The network must not be used after it: a
        LoRA is merged."""
        ...


class RewardBatch(NamedTuple):
    """Pairs or rated videos, from the data to the module."""

    inputs: dict[str, Tensor]
    """Of 2B videos, the pairs' first ones and then their second ones; or of B rated videos."""
    labels: Tensor
    """(B, D): 1, 0 or -1 for pairs, scores for videos; NaN where there is none."""
    prompts: Tensor
    """(B,) int64, equal for equal prompts."""


@checked
class RewardModule(L.LightningModule):
    """Trains a reward network on people's labels.

    Args:
        family: makes the network, and its inputs of videos.
        loss: a pairwise or pointwise function of rewards, see `ipo_lightning.reward.losses`.
        optimizer: takes the trainable parameters.
        warmup_steps: optimizer steps over which the learning rate rises linearly.
        seed: of dropout and of new weights.
    """

    def __init__(
        self,
        family: RewardNetwork,
        loss: Callable[..., RewardLoss],
        optimizer: Callable[..., torch.optim.Optimizer],
        *,
        warmup_steps: Annotated[int, AtLeast(0)] = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        try_loss(loss)
        self.family, self.loss, self.label_kind = family, loss, label_kind(loss)
        self.optimizer, self.warmup_steps, self.seed = optimizer, warmup_steps, seed
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    # ---------------------------------------------------------------- building

    def configure_model(self) -> None:
        """Build the network once; new weights depend on the run's seed."""
        if not hasattr(self, "network"):
            with torch.random.fork_rng():
                torch.manual_seed(derive_seed(self.seed, "critic", "weights"))
                self.network = self.family.build()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """One optimizer over the trainable parameters, with its warm-up."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = self.optimizer(trained)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: min(1.0, (update + 1) / (self.warmup_steps + 1))
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    # ---------------------------------------------------------------- steps

    def on_train_batch_start(self, batch: RewardBatch, batch_idx: int) -> None:
        """Seed dropout by the step, so that a resumed run is the same."""
        place = (self.trainer.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(derive_seed(self.seed, "critic", *place))

    def training_step(self, batch: RewardBatch, batch_idx: int) -> Tensor:
        """The mean loss over the pairs or videos that have a label."""
        margin, found = self._ask(batch)
        loss = found.mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} in epoch {self.trainer.current_epoch}, batch "
                f"{batch_idx}: lower optim.optimizer.lr"
            )
        size = len(batch.labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        if self.label_kind == "pairwise":
            self._log_finite({"train/accuracy": _mean_credit(batch.labels, margin.detach())}, size)
        return loss

    def validation_step(self, batch: RewardBatch, batch_idx: int) -> None:
        """Collect rewards and labels. Every rank computes the whole (small) validation split, so
        that the metrics do not depend on the number of ranks."""
        margin, _ = self._ask(batch)
        self._seen.append((margin.float().cpu(), batch.labels.cpu(), batch.prompts.cpu()))

    def on_validation_epoch_end(self) -> None:
        """Log the loss, and the agreement with people by dimension."""
        margin, labels, prompts = (torch.cat(part) for part in zip(*self._seen, strict=True))
        self._seen.clear()
        pairwise = self.label_kind == "pairwise"
        other = (torch.zeros_like(margin),) if pairwise else ()
        found = self.loss(margin, *other, labels)
        self.log("valid/loss", found.mean(), prog_bar=True)
        dims = self.family.dims
        figures = pair_figures if pairwise else point_figures
        values = figures(margin, labels, prompts, dims)
        self._log_finite({f"valid/{name}": value for name, value in values.items()}, None)

    def _ask(self, batch: RewardBatch) -> tuple[Tensor, RewardLoss]:
        """Differences (B, D) of pairs, or rewards (B, D) of videos, and the loss of each."""
        rewards = self.network(**batch.inputs)
        if self.label_kind == "pointwise":
            return rewards, self.loss(rewards, batch.labels)
        first, second = rewards.chunk(2)
        return first - second, self.loss(first, second, batch.labels)

    def _log_finite(self, values: Mapping[str, float], size: int | None) -> None:
        """Log the finite values: a dimension without labels has no accuracy."""
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        self.log_dict(known, batch_size=size)

    # ---------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only trainable parameters; a frozen backbone is loaded from its own files."""
        frozen = self._frozen()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k not in frozen}
        checkpoint["reward_network"] = self.family.identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the frozen weights, so that loading can be strict."""
        if checkpoint.get("reward_network") != self.family.identity:
            raise InputError(
                "the checkpoint is of another reward network; give the settings of its run"
            )
        checkpoint["state_dict"] = {**self._frozen(), **checkpoint["state_dict"]}

    def _frozen(self) -> dict[str, Tensor]:
        frozen = {n for n, p in self.network.named_parameters() if not p.requires_grad}
        state = self.network.state_dict()
        return {f"network.{name}": state[name] for name in frozen if name in state}


# ---------------------------------------------------------------- figures


def pair_figures(
    margin: Tensor, labels: Tensor, prompts: Tensor, dims: Sequence[str]
) -> dict[str, float]:
    """Accuracy by dimension on pairs (N, D), without ties and with them; NaN without labels.

    Without ties: on pairs with a preference of people, equal rewards counting half, with its 95 %
    interval over prompts. With ties: three answers; margins below a threshold are ties.
    The threshold is fitted on one half of the prompts and used on the other, both ways.
    """
    found = {}
    for place, dim in enumerate(dims):
        people, ours = labels[:, place], margin[:, place]
        accuracy = mean_over_prompts(credit(people, ours), prompts)
        found[f"accuracy/{dim}"] = accuracy.value
        found[f"accuracy_low/{dim}"], found[f"accuracy_high/{dim}"] = accuracy.low, accuracy.high
        found[f"accuracy_with_ties/{dim}"] = _accuracy_with_ties(people, ours, prompts)
    found["accuracy/mean"] = _mean([found[f"accuracy/{dim}"] for dim in dims])
    return found


def point_figures(
    rewards: Tensor, scores: Tensor, prompts: Tensor, dims: Sequence[str]
) -> dict[str, float]:
    """Rank correlation by dimension on rated videos (N, D); NaN with fewer than two."""
    found = {}
    for place, dim in enumerate(dims):
        known = ~scores[:, place].isnan()
        enough = int(known.sum()) > 1
        found[f"spearman/{dim}"] = (
            spearman(rewards[known, place], scores[known, place]) if enough else math.nan
        )
    found["spearman/mean"] = _mean([found[f"spearman/{dim}"] for dim in dims])
    return found


def _accuracy_with_ties(people: Tensor, margin: Tensor, prompts: Tensor) -> float:
    half = torch.unique(prompts, return_inverse=True)[1] % 2 == 0
    verdicts = torch.full_like(margin, math.nan)
    for here, other in ((half, ~half), (~half, half)):
        verdicts[here] = three_way(margin[here], tie_threshold(people[other], margin[other]))
    return float(right(people, verdicts).nanmean())


def _mean_credit(labels: Tensor, margin: Tensor) -> float:
    return float(credit(labels.flatten(), margin.flatten()).nanmean())


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


# ---------------------------------------------------------------- scale


@torch.no_grad()
def measure_scale(
    network: nn.Module, batches: Iterable[dict[str, Tensor]], device: torch.device
) -> RewardScale:
    """Mean and standard deviation of the rewards of videos, by dimension."""
    network.to(device).eval()
    rewards = torch.cat(
        [
            network(**{name: value.to(device) for name, value in batch.items()}).double().cpu()
            for batch in batches
        ]
    )
    if len(rewards) < 2:
        raise InputError("data.path: give at least two training videos, to normalise the rewards")
    std = rewards.std(0)
    return RewardScale(
        tuple(rewards.mean(0).tolist()),
        tuple(torch.where(std > 0, std, torch.ones_like(std)).tolist()),
    )
