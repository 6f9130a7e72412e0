"""One step of the preference module, and what its checkpoints hold."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ipo_lightning.backbones.cogvideox import Lora
from ipo_lightning.draws.batch import PairBatch
from ipo_lightning.errors import InputError
from ipo_lightning.losses import (
    PreferenceLoss,
    dpo_loss,
    identity_loss,
    kto_loss,
    nft_loss,
    sft_loss,
)
from ipo_lightning.module import PreferenceModule
from ipo_lightning.objectives import squared_error
from ipo_lightning.policy import trained_weights
from ipo_lightning.references import AdapterReference, FrozenReference
from tests.helpers import tiny

LORA = Lora(rank=2, alpha=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


def make(
    folder: Path, loss: Callable[..., PreferenceLoss] | None = None, *, trained: bool = True,
    lora: Lora | None = None, **settings: Any,
) -> PreferenceModule:  # fmt: skip
    """A module that is ready to step; ``trained`` moves the policy away from the reference."""
    module = PreferenceModule(
        tiny.policy(folder, lora=lora),
        loss or partial(dpo_loss, beta=2.0),
        FrozenReference() if lora is None else AdapterReference("base"),
        partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
        **settings,
    )
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.configure_model()
    module.on_fit_start()
    module.reference.refresh(None)
    if trained:
        move(module.network, by=0.05 if lora is None else 0.5)
    return module


@torch.no_grad()
def move(network: nn.Module, by: float) -> None:
    for i, weight in enumerate(trained_weights(network).values()):
        weight.add_(by * tiny.normal(i, *weight.shape))


class Errors(NamedTuple):
    policy_win: Tensor
    policy_lose: Tensor
    ref_win: Tensor
    ref_lose: Tensor


@torch.no_grad()
def by_hand(module: PreferenceModule, batch: PairBatch) -> Errors:
    """The four errors, one video after the other, with the pair's own noise and timestep."""
    base = module.policy.build()

    def error(network: nn.Module, latents: Tensor, i: int) -> Tensor:
        one = slice(i, i + 1)
        noised = module.objective.noise(latents[one], batch.noise[one], batch.u[one])
        answer = module.policy.predict(network, noised.sample, noised.timestep, batch.text[one])
        return squared_error(answer, noised)[0]

    return Errors(*(
        torch.stack([error(network, latents, i) for i in range(len(latents))])
        for network in (module.network, base) for latents in (batch.win, batch.lose)
    ))  # fmt: skip


# -------------------------------------------------------------------- pairs


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_pair_step_is_the_loss_of_four_errors(folder: Path, lora: Lora | None) -> None:
    module, batch = make(folder, lora=lora), tiny.pair_batch(3)
    errors = by_hand(module, batch)
    wanted = dpo_loss(*errors, beta=2.0)
    total, values = module.pair_step(batch)
    assert torch.allclose(values["loss"], wanted.loss, atol=1e-5)
    assert torch.allclose(values["margin"], wanted.margin, atol=1e-5)
    assert torch.allclose(total, wanted.loss.mean(), atol=1e-5)
    change = errors.policy_win - errors.ref_win
    assert torch.allclose(values["error_win_change"], change, atol=1e-5)
    change = errors.policy_lose - errors.ref_lose
    assert torch.allclose(values["error_lose_change"], change, atol=1e-5)
    assert values["margin"].abs().min() > 1e-3


def test_winner_and_loser_share_noise_and_timestep(folder: Path) -> None:
    module, batch = make(folder), tiny.pair_batch(3)
    swapped = batch._replace(win=batch.lose, lose=batch.win)
    margin = module.pair_step(batch)[1]["margin"]
    assert torch.allclose(module.pair_step(swapped)[1]["margin"], -margin, atol=1e-5)
    same = batch._replace(lose=batch.win)
    assert torch.allclose(module.pair_step(same)[1]["margin"], torch.zeros(3), atol=1e-5)


def test_each_pair_has_noise_and_timestep_of_its_own(folder: Path) -> None:
    """A pair in a batch costs what it costs alone."""
    module, batch = make(folder), tiny.pair_batch(3)
    together = module.pair_step(batch)[1]["loss"]
    for i in range(3):
        one = PairBatch(*(None if part is None else part[i : i + 1] for part in batch))
        alone = module.pair_step(one)[1]["loss"]
        assert torch.allclose(alone[0], together[i], atol=1e-5)
    other = batch._replace(u=batch.u.flip(0))
    assert not torch.allclose(module.pair_step(other)[1]["loss"], together, atol=1e-4)


def test_the_winners_own_error_enters_with_its_weight(folder: Path) -> None:
    batch = tiny.pair_batch(3)
    without, with_it = make(folder), make(folder, winner_weight=0.7)
    own = by_hand(without, batch).policy_win.mean()
    difference = with_it.pair_step(batch)[0] - without.pair_step(batch)[0]
    assert torch.allclose(difference, 0.7 * own, atol=1e-5)


def test_the_winners_weight_follows_beta(folder: Path) -> None:
    """Of a loss with a number, and of one whose beta is set at each round's start."""
    assert make(folder, partial(dpo_loss, beta=1000.0), winner_weight="auto").winner_weight == 40
    module = make(folder, partial(dpo_loss, beta="auto"), winner_weight="auto")
    batch, own = tiny.pair_batch(3), None
    for beta in (500.0, 17000.0):
        module.set_beta(beta)
        other = make(folder, partial(dpo_loss, beta=beta), winner_weight=0.04 * beta)
        assert torch.equal(module.pair_step(batch)[0], other.pair_step(batch)[0])
        assert module.winner_weight != own
        own = module.winner_weight


@pytest.mark.parametrize("loss", [sft_loss, partial(nft_loss, beta=1.0)])
def test_the_winners_weight_has_no_beta_to_follow(loss: Any, folder: Path) -> None:
    with pytest.raises(InputError, match="winner_weight=auto: give a number"):
        make(folder, loss, winner_weight="auto")


def test_weights_multiply_the_pairs_losses(folder: Path) -> None:
    module, weights = make(folder), [0.5, 0.0, 2.0]
    total, values = module.pair_step(tiny.pair_batch(3, weight=weights))
    assert torch.allclose(total, (torch.tensor(weights) * values["loss"]).mean())


def gradients(module: PreferenceModule, total: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    total.backward()
    return {n: p.grad.clone() for n, p in module.network.named_parameters() if p.requires_grad}


def test_sft_learns_nothing_from_losers(folder: Path) -> None:
    module, batch = make(folder, sft_loss), tiny.pair_batch(3)
    first = gradients(module, module.pair_step(batch)[0])
    other = batch._replace(lose=tiny.normal(77, *batch.lose.shape))
    second = gradients(module, module.pair_step(other)[0])
    assert all(torch.allclose(first[n], second[n], atol=1e-5) for n in first)
    dpo = make(folder)
    first = gradients(dpo, dpo.pair_step(batch)[0])
    second = gradients(dpo, dpo.pair_step(other)[0])
    assert not all(torch.allclose(first[n], second[n], atol=1e-5) for n in first)


@pytest.mark.parametrize(
    "loss", [partial(dpo_loss, beta=2.0), partial(identity_loss, beta=2.0)], ids=["dpo", "identity"]
)
def test_a_small_step_widens_the_margin(folder: Path, loss: Any) -> None:
    module, batch = make(folder, loss, trained=False), tiny.pair_batch(3)
    before, values = module.pair_step(batch)
    before.backward()
    with torch.no_grad():
        for parameter in module.network.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
    after, moved = module.pair_step(batch)
    assert after < before
    assert moved["margin"].mean() > values["margin"].mean() == 0


# -------------------------------------------------------------------- points


LABELS = [True, False, True, False]


def test_a_point_step_is_kto_with_the_baseline_of_the_batch(folder: Path) -> None:
    module = make(folder, partial(kto_loss, beta=2.0), winner_weight=0.3)
    batch = tiny.point_batch(LABELS)
    errors = by_hand(module, tiny.pair_batch(4))  # the winners are the same videos
    total, values = module.point_step(batch)
    wanted = kto_loss(errors.policy_win, errors.ref_win, batch.desirable, beta=2.0)
    assert torch.allclose(values["loss"], wanted.loss, atol=1e-5)
    own = errors.policy_win[batch.desirable].mean()
    assert torch.allclose(total, wanted.loss.mean() + 0.3 * own, atol=1e-5)
    change, desirable = errors.policy_win - errors.ref_win, batch.desirable
    assert torch.allclose(values["error_win_change"][desirable], change[desirable], atol=1e-5)
    assert torch.allclose(values["error_lose_change"][~desirable], change[~desirable], atol=1e-5)
    assert values["error_win_change"][~desirable].isnan().all()  # of the others it says nothing
    assert torch.allclose(values["drift"], change, atol=1e-5)


def test_the_baseline_is_the_mean_over_all_ranks(folder: Path) -> None:
    """The other rank's rewards are put where `all_gather` would put them."""
    module = make(folder, partial(kto_loss, beta=2.0))
    batch = tiny.point_batch(LABELS)
    errors = by_hand(module, tiny.pair_batch(4))
    reward = errors.ref_win - errors.policy_win
    other = 1.5 - 2 * reward.mean()
    asked = []

    def all_gather(value: Tensor) -> Tensor:
        asked.append(value)
        return torch.stack([value, value + other if value.is_floating_point() else value])

    module.all_gather = all_gather  # type: ignore[method-assign]
    values = module.point_step(batch)[1]
    assert not asked[0].requires_grad
    assert torch.allclose(asked[0], reward, atol=1e-5)
    baseline = torch.tensor(0.75)
    columns = (errors.policy_win, errors.ref_win, batch.desirable)
    wanted = kto_loss(*columns, beta=2.0, baseline=baseline).loss
    assert torch.allclose(values["loss"], wanted, atol=1e-4)
    assert not torch.allclose(wanted, kto_loss(*columns, beta=2.0).loss, atol=1e-2)


def test_a_batch_without_desirable_videos_costs_no_nan(folder: Path) -> None:
    module = make(folder, partial(kto_loss, beta=2.0), winner_weight=1.0)
    total, values = module.point_step(tiny.point_batch([False, False]))
    assert total.isfinite()
    assert values["error_win_change"].isnan().all()
    assert all(g.isfinite().all() for g in gradients(module, total).values())


def test_a_pointwise_loss_without_baseline_is_called_without_one(folder: Path) -> None:
    def mine(policy: Tensor, ref: Tensor, desirable: Tensor) -> PreferenceLoss:
        side = torch.where(desirable, 1.0, -1.0)
        return PreferenceLoss(side * policy, (side * (ref - policy)).detach())

    module = make(folder, mine)
    assert module.label_kind == "pointwise"
    assert module.point_step(tiny.point_batch(LABELS))[1]["loss"].shape == (4,)


# -------------------------------------------------------------------- refusals


def test_a_loss_that_is_not_finite_names_its_rows(folder: Path) -> None:
    module = make(folder)
    module.round = 2
    batch = tiny.pair_batch(3)
    batch.win[1, 0, 0, 0, 0] = math.nan
    named = r"round 2, batch 5, with rows \[10, 11, 12\] of pairs"
    with pytest.raises(FloatingPointError, match=named):
        module.training_step(batch, 5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"winner_weight": -1.0}, "winner_weight=-1.0: give a number, at least 0"),
        ({"real_weight": -0.5}, "real_weight=-0.5: give a number, at least 0"),
        ({"safeguard": 1.0}, "safeguard=1.0: give a number, at least 0 and below 1"),
        ({"safeguard": 0.5, "loss": partial(kto_loss, beta=1.0)}, "takes single videos"),
    ],
)
def test_impossible_weights_are_refused(folder: Path, settings: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        make(folder, **settings)


# -------------------------------------------------------------------- in a trainer


def fit(module: PreferenceModule, folder: Path, batches: list[Any], **settings: Any) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return trainer


def fresh(folder: Path, lora: Lora | None = None, **settings: Any) -> PreferenceModule:
    reference = FrozenReference() if lora is None else AdapterReference("base")
    return PreferenceModule(
        tiny.policy(folder, lora=lora),
        partial(dpo_loss, beta=2.0),
        reference,
        partial(torch.optim.AdamW, lr=1e-3),
        **settings,
    )


quiet = pytest.mark.filterwarnings("ignore:.*(LeafSpec|num_workers|logging interval).*")


@quiet
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_checkpoint_holds_what_is_trained_and_loads_strictly(
    folder: Path, tmp_path: Path, lora: Lora | None
) -> None:
    module = fresh(folder, lora)
    trainer = fit(module, tmp_path, [tiny.pair_batch(2, seed=s) for s in range(2)])
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)  # plain types only
    names = {n.removeprefix("network.") for n in content["state_dict"] if n.startswith("network.")}
    assert names == set(module.trained())
    assert names and len(content["state_dict"]) == len(names)
    assert content["ipo_lightning"]["base"] == module.policy.identity
    if lora:
        assert all("lora_" in name for name in names)

    other = fresh(folder, lora)
    other.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    other.configure_model()
    other.on_load_checkpoint(content)
    other.load_state_dict(content["state_dict"], strict=True)
    state = other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    assert other.health.compute() == module.health.compute()


@quiet
def test_a_checkpoint_of_another_base_is_refused(folder: Path, tmp_path: Path) -> None:
    module = fresh(folder)
    fit(module, tmp_path, [tiny.pair_batch(2)]).save_checkpoint(tmp_path / "one.ckpt")
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)
    other = fresh(tiny.save_pipeline(tmp_path / "other", seed=1))
    other.configure_model()
    with pytest.raises(InputError, match="another base model"):
        other.on_load_checkpoint(content)


class Rates(L.Callback):
    """Learning rates as the optimizer saw them."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@quiet
def test_the_learning_rate_warms_up_by_updates_not_batches(folder: Path, tmp_path: Path) -> None:
    rates, batches = Rates(), [tiny.pair_batch(2, seed=s) for s in range(8)]
    module = fresh(folder, warmup_steps=3)
    fit(module, tmp_path, batches, callbacks=[rates], accumulate_grad_batches=2)
    assert rates.seen == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3])


@quiet
def test_training_moves_the_margin_and_reports_health(folder: Path, tmp_path: Path) -> None:
    module, batch = fresh(folder), tiny.pair_batch(4)
    trainer = fit(module, tmp_path, [batch] * 12)
    health = module.health.compute()
    assert {"loss", "margin", "accuracy", "error_win_change", "error_lose_change", "drift",
            "saturated", "gradient_norm", "margin_q1", "accuracy_q4"} <= set(health)  # fmt: skip
    assert health["margin"] > 0 and health["loss"] < math.log(2)
    assert trainer.callback_metrics["train/accuracy"] > 0.5


@quiet
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_mixed_precision_starts_at_log_2_too(
    folder: Path, tmp_path: Path, lora: Lora | None
) -> None:
    module = fresh(folder, lora)
    plugin = MixedPrecision("bf16-mixed", "cpu")
    trainer = fit(module, tmp_path, [tiny.pair_batch(3)], plugins=[plugin])
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(math.log(2), abs=1e-7)
    assert trainer.callback_metrics["train/margin"].item() == 0
