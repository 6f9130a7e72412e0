"""What a round's training reports of itself: losses, margins, errors and their accuracies."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from ipo_lightning.metrics.win_rate import agreement, check_columns


class TrainingHealth(Metric):
    """Means over a round of what each step reports (loss, margin, errors, ...), over all ranks.

    ``update`` takes named (N,) values; NaN is a missing value and is left out. Given the uniform
    draws ``u`` (N,) in [0, 1) of the values' timesteps, it keeps the means of four quarters of the
    timestep distribution too, cleanest first. The accuracy is the share of margins above zero; a
    tie counts half.

    ``state`` and ``resume`` carry it through a checkpoint, so that a round that was killed and
    resumed reports what an unbroken one does. States are float64, also under ``module.half()``,
    as torchmetrics ignores such casts.
    """

    NAMES = (
        "loss",
        "margin",
        "accuracy",
        "error_win",
        "error_lose",
        "error_win_change",
        "error_lose_change",
        "error_real",
        "drift",
        "saturated",
        "gradient_norm",
    )
    BY_QUARTER = ("margin", "accuracy", "error_win_change", "error_lose_change")

    is_differentiable = False
    full_state_update = False

    totals: Tensor  # (names, 5) sums, in the order of NAMES: of all, then of each quarter
    counts: Tensor  # (names, 5) numbers of values

    def __init__(self) -> None:
        super().__init__()
        for state in ("totals", "counts"):
            zeros = torch.zeros(len(self.NAMES), 5, dtype=torch.float64)
            self.add_state(state, zeros, dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """True: counts may come from a checkpoint, and a round without values is no mistake."""
        return True

    def update(self, *, u: Tensor | None = None, **values: Tensor) -> None:
        """Add named (N,) values, some of `NAMES`; ``u``: uniform draws (N,) of the timesteps."""
        unknown = sorted(values.keys() - set(self.NAMES))
        if unknown:
            raise ValueError(f"unknown values {unknown}, expected some of {list(self.NAMES)}")
        if "margin" in values and "accuracy" not in values:
            values = {**values, "accuracy": agreement(values["margin"])}
        for name, value in values.items():
            row, value = self.NAMES.index(name), value.detach().double()
            check_columns(value)
            # No value is picked by a mask: a GPU would be waited for at each.
            known = (~value.isnan()).double()
            value = torch.where(value.isnan(), 0.0, value)
            self.totals[row, 0] += value.sum()
            self.counts[row, 0] += known.sum()
            if u is not None and name in self.BY_QUARTER:
                check_columns(value, u)
                quarter = (4 * u).long().clamp(0, 3) + 1
                self.totals[row].index_add_(0, quarter, value)
                self.counts[row].index_add_(0, quarter, known)

    def state(self) -> dict[str, Tensor]:
        """The sums and counts of all ranks together; every rank must call it."""
        with self.sync_context(should_unsync=True):
            return {"totals": self.totals.clone(), "counts": self.counts.clone()}

    def resume(self, state: Mapping[str, Tensor], *, leads: bool) -> None:
        """Restore what `state` gave: on the leading rank alone, since it is of all ranks."""
        self.reset()
        if leads:
            self.totals += state["totals"].to(self.totals)
            self.counts += state["counts"].to(self.counts)

    def compute(self) -> dict[str, float]:
        """Mean of every name that has been seen; ``margin_q1`` and the like for the quarters."""
        means = (self.totals / self.counts).tolist()
        found: dict[str, float] = {}
        for name, row in zip(self.NAMES, means, strict=True):
            labels = [name, *(f"{name}_q{quarter}" for quarter in (1, 2, 3, 4))]
            found |= {label: mean for label, mean in zip(labels, row, strict=True) if mean == mean}
        return found
