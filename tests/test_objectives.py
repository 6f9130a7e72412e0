"""v-prediction and flow matching against diffusers' own schedulers, weightings and timesteps."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ipo_lightning.errors import InputError
from ipo_lightning.objectives import FlowMatching, VPrediction, mean_square, squared_error
from ipo_lightning.storage.store import canonical
from tests.helpers.tiny import LATENT_SHAPE, TIMESTEPS, normal, scheduler

SHIFTS = pytest.mark.parametrize("shift", [1.0, 3.0], ids=["5B", "2B"])


def objective(shift: float = 3.0, **settings: Any) -> VPrediction:
    return VPrediction(scheduler(snr_shift_scale=shift).alphas_cumprod, **settings)


def at(*timesteps: int) -> Tensor:
    """The u that stand for these timesteps."""
    return (torch.tensor(timesteps, dtype=torch.float64) + 0.5) / TIMESTEPS


STEPS = (0, 1, 250, 500, 998, 999)


def draws(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Latents and noise at each of STEPS."""
    return (
        normal(0, len(STEPS), *LATENT_SHAPE).to(dtype),
        normal(1, len(STEPS), *LATENT_SHAPE).to(dtype),
    )


@SHIFTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_and_target_are_those_of_diffusers(shift: float, dtype: torch.dtype) -> None:
    theirs = scheduler(snr_shift_scale=shift)
    latents, noise = draws(dtype)
    ours = objective(shift).noise(latents, noise, at(*STEPS))
    timesteps = torch.tensor(STEPS)
    sample = theirs.add_noise(latents, noise, timesteps).float()
    target = theirs.get_velocity(latents, noise, timesteps).float()
    assert ours.timestep.tolist() == list(STEPS)
    assert torch.allclose(ours.sample, sample, atol=2e-6, rtol=0)
    assert torch.allclose(ours.target, target, atol=2e-6, rtol=0)


@SHIFTS
def test_the_official_loss_is_the_plain_v_error(shift: float) -> None:
    """CogVideoX's script: x0 from the answer, weighted by 1 / (1 - alpha)."""
    theirs = scheduler(snr_shift_scale=shift)
    latents, noise = (part.double() for part in draws())
    answer = normal(2, *latents.shape).double()
    timesteps = torch.tensor(STEPS)
    noised = theirs.add_noise(latents, noise, timesteps)
    x0 = theirs.get_velocity(answer, noised, timesteps)  # as the script calls it
    weight = 1 / (1 - theirs.alphas_cumprod[timesteps])
    official = (weight.view(-1, 1, 1, 1, 1) * (x0 - latents).square()).flatten(1).mean(1)

    ours = squared_error(answer, objective(shift).noise(latents, noise, at(*STEPS)))
    assert torch.allclose(ours.double(), official, rtol=1e-4)


@SHIFTS
def test_weightings_measure_the_error_they_name(shift: float) -> None:
    """The eps and x0 errors that follow from an answer v, computed the long way."""
    latents, noise = (part.double() for part in draws())
    answer = normal(3, *latents.shape).double()
    alpha = scheduler(snr_shift_scale=shift).alphas_cumprod[list(STEPS)].double()
    signal, spread = (x.sqrt().view(-1, 1, 1, 1, 1) for x in (alpha, 1 - alpha))
    sample = signal * latents + spread * noise
    wanted = {
        "v": answer - (signal * noise - spread * latents),
        "eps": signal * answer + spread * sample - noise,
        "x0": signal * sample - spread * answer - latents,
    }
    for weighting, error in wanted.items():
        noised = objective(shift, weighting=weighting).noise(latents, noise, at(*STEPS))
        got = squared_error(answer, noised).double()
        by_hand = error.square().flatten(1).mean(1)
        assert torch.allclose(got, by_hand, rtol=1e-4, atol=1e-7), weighting


def test_eps_weighs_nothing_at_the_last_timestep() -> None:
    latents, noise = draws()
    weight = objective(weighting="eps").noise(latents, noise, at(*STEPS)).weight
    assert weight[-1] == 0  # zero terminal signal
    assert (weight[:-1] > 0).all()
    x0 = objective(weighting="x0").noise(latents, noise, at(*STEPS)).weight
    assert torch.allclose(weight + x0, torch.ones_like(weight))


def test_the_last_timestep_is_pure_noise() -> None:
    latents, noise = draws()
    noised = objective().noise(latents, noise, at(*STEPS))
    assert torch.equal(noised.sample[-1], noise[-1])
    assert torch.equal(noised.target[-1], -latents[-1])


def test_sample_and_target_are_a_rotation_of_clean_and_noise() -> None:
    latents, noise = draws()
    noised = objective().noise(latents, noise, at(*STEPS))
    before = latents.square() + noise.square()
    assert torch.allclose(noised.sample.square() + noised.target.square(), before, rtol=1e-5)


def test_timesteps_are_uniform() -> None:
    u = (torch.arange(10 * TIMESTEPS, dtype=torch.float64) + 0.5) / (10 * TIMESTEPS)
    assert torch.equal(objective().timestep(u).bincount(), torch.full((TIMESTEPS,), 10))


def test_the_ends_of_u_stay_inside() -> None:
    ends = torch.tensor([0.0, 1 - 2**-40], dtype=torch.float64)
    assert objective().timestep(ends).tolist() == [0, TIMESTEPS - 1]
    assert objective(window=(0.25, 0.5)).timestep(ends).tolist() == [250, 499]


def test_a_window_is_uniform_and_nothing_lies_outside() -> None:
    u = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    counts = objective(window=(0.4, 0.9)).timestep(u).bincount(minlength=TIMESTEPS)
    assert (counts[400:900] == 10).all()
    assert counts.sum() == 5000


DENSITIES: dict[str, Callable[[float], float]] = {
    "uniform": lambda x: 1.0,
    # the normal density of logit(x), times its slope
    "logit_normal": lambda x: NormalDist().pdf(math.log(x / (1 - x))) / (x * (1 - x)),
    "cosmap": lambda x: 2 / (math.pi * (1 - 2 * x + 2 * x * x)),
}


@pytest.mark.parametrize("density", DENSITIES)
def test_densities_are_those_of_the_paper(density: Any) -> None:
    count = 200_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    found = objective(density=density).timestep(u).bincount(minlength=TIMESTEPS) / count
    middles = [(k + 0.5) / TIMESTEPS for k in range(TIMESTEPS)]
    wanted = torch.tensor([DENSITIES[density](x) / TIMESTEPS for x in middles])
    assert torch.allclose(found, wanted, atol=2e-5)


def test_mode_is_the_papers_map_turned_round() -> None:
    u = torch.linspace(0, 1, 257, dtype=torch.float64)[:-1]
    turned = [1 - x for x in u.tolist()]
    theirs = [1 - v - 1.29 * (math.cos(math.pi / 2 * v) ** 2 - 1 + v) for v in turned]
    wanted = [min(int(x * TIMESTEPS + 1e-9), TIMESTEPS - 1) for x in theirs]
    got = objective(density="mode").timestep(u + 1e-15).tolist()
    assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= 1
    assert got[0] == 0 and got[128] in (499, 500)


@pytest.mark.parametrize("density", ["uniform", "logit_normal", "mode", "cosmap"])
def test_a_density_rises_over_the_whole_window_and_favours_neither_side(density: Any) -> None:
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    steps = objective(density=density).timestep(u)
    assert (steps.diff() >= 0).all()
    assert torch.equal(steps, TIMESTEPS - 1 - steps.flip(0))
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert objective(density=density).timestep(ends).tolist() == [0, TIMESTEPS - 1]
    within = objective(density=density, window=(0.25, 0.5))
    assert within.timestep(ends).tolist() == [250, 499]
    middle = (steps - TIMESTEPS / 2).abs() < TIMESTEPS / 4
    assert (middle.double().mean() > 0.5) == (density != "uniform")


def test_an_objective_is_known_by_all_that_its_errors_depend_on() -> None:
    same = objective().identity
    assert objective().identity == same
    others = [
        objective(shift=1.0),
        objective(weighting="eps"),
        objective(window=(0.0, 0.5)),
        objective(density="mode"),
    ]
    texts = {canonical(one.identity) for one in others}  # plain JSON
    assert len(texts | {canonical(same)}) == 5
    assert objective(window=(0, 1)).identity == same


def test_a_mean_square_is_float32_and_one_number_a_video() -> None:
    difference = torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]], dtype=torch.bfloat16)
    assert mean_square(difference).tolist() == [2.5, 4.5]
    assert mean_square(difference).dtype == torch.float32


def test_arithmetic_is_float32_whatever_the_latents_are() -> None:
    latents, noise = (part.bfloat16() for part in draws())
    ours = objective().noise(latents, noise, at(*STEPS))
    exact = objective().noise(latents.float(), noise.float(), at(*STEPS))
    assert ours.sample.dtype == ours.target.dtype == ours.weight.dtype == torch.float32
    assert torch.equal(ours.sample, exact.sample)
    assert torch.equal(ours.target, exact.target)
    answer = ours.target.bfloat16()
    error = squared_error(answer, ours)
    assert error.dtype == torch.float32
    assert torch.equal(error, (answer.float() - ours.target).square().flatten(1).mean(1))


def test_an_error_is_one_number_a_video() -> None:
    latents, noise = draws()
    noised = objective().noise(latents, noise, at(*STEPS))
    offset = torch.arange(len(STEPS), dtype=torch.float32)
    error = squared_error(noised.target + offset.view(-1, 1, 1, 1, 1), noised)
    assert error.shape == (len(STEPS),)
    assert torch.allclose(error, offset.square(), atol=1e-4)


def test_an_answer_of_another_shape_is_refused() -> None:
    latents, noise = draws()
    noised = objective().noise(latents, noise, at(*STEPS))
    with pytest.raises(ValueError, match="differ"):
        squared_error(noised.target[:1], noised)  # would broadcast


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"weighting": "snr"}, "weighting=snr"),
        ({"density": "noisy"}, "density=noisy: choose one of uniform, logit_normal, mode, cosmap"),
        ({"window": (0.5, 0.5)}, "window"),
        ({"window": (-0.1, 1.0)}, "window"),
        ({"window": (0.0, 1.1)}, "window"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        objective(**settings)


# -------------------------------------------------------------------- flow matching

LEVELS = (0.0, 0.001, 0.3, 0.75, 0.999)
"""Places in unshifted time."""


def flow_draws() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, noise and u at each of LEVELS."""
    shape = (len(LEVELS), *LATENT_SHAPE)
    return normal(0, *shape), normal(1, *shape), torch.tensor(LEVELS, dtype=torch.float64)


def append_dims(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_flow_samples_are_those_of_diffusers(shift: float) -> None:
    """At the timesteps that its Euler scheduler is trained at: t = 1/1000, ..., 1 before shift."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    places = torch.tensor([0, 3, 500, 998])  # of its list, noisiest first
    u = 1 - places.double() / TIMESTEPS
    u[0] = 1 - 2**-40  # u stays below 1
    shape = (len(places), *LATENT_SHAPE)
    latents, noise = normal(0, *shape), normal(1, *shape)
    ours = FlowMatching(shift).noise(latents, noise, u)
    times = theirs.timesteps[places]
    assert torch.allclose(ours.timestep, times, rtol=1e-5)
    assert ours.timestep.dtype == ours.sample.dtype == torch.float32
    assert torch.allclose(ours.sample, theirs.scale_noise(latents, times, noise), atol=1e-5)
    assert torch.allclose(ours.target, noise - latents)


def test_flow_runs_from_clean_to_noise() -> None:
    latents, noise = normal(0, 2, *LATENT_SHAPE), normal(1, 2, *LATENT_SHAPE)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    noised = FlowMatching(3.0).noise(latents, noise, ends)
    assert torch.equal(noised.sample, torch.stack([latents[0], noise[1]]))
    assert noised.timestep.tolist() == [0, 1000]


@pytest.mark.parametrize("density", ["uniform", "logit_normal", "mode", "cosmap"])
@pytest.mark.parametrize("shift", [0.5, 1.0, 5.0])
def test_flow_levels_rise_with_u(shift: float, density: Any) -> None:
    u = torch.cat([torch.arange(4000, dtype=torch.float64) / 4000, torch.tensor([1 - 2**-53])])
    level = FlowMatching(shift, density=density).sigma(u)
    assert level[0] == 0 and level[-1] == 1
    assert (level.diff() >= 0).all()
    shifted = FlowMatching(shift, window=(0.25, 0.5), density=density).sigma(u)
    bounds = [shift * t / (1 + (shift - 1) * t) for t in (0.25, 0.5)]
    assert shifted.min().item() == pytest.approx(bounds[0])
    assert shifted.max().item() == pytest.approx(bounds[1])


def test_flow_weightings_measure_the_error_they_name() -> None:
    """The eps and x0 errors that follow from an answer v, computed the long way."""
    latents, noise, u = flow_draws()
    answer = normal(3, *latents.shape).double()
    level = FlowMatching(3.0).sigma(u)
    sample = append_dims(1 - level) * latents + append_dims(level) * noise
    x0 = (sample - append_dims(level) * answer - latents).square().flatten(1).mean(1)
    eps = (sample + append_dims(1 - level) * answer - noise).square().flatten(1).mean(1)
    snr = ((1 - level) / level).square()
    wanted = {
        "v": (answer - (noise - latents)).square().flatten(1).mean(1),
        "x0": x0,
        "eps": eps,
        "min_snr": torch.where(level > 0, snr.clamp(max=5) * x0, torch.zeros_like(x0)),
    }
    for weighting, by_hand in wanted.items():
        noised = FlowMatching(3.0, weighting).noise(latents, noise, u)  # type: ignore[arg-type]
        got = squared_error(answer, noised).double()
        assert torch.allclose(got, by_hand, rtol=1e-4, atol=1e-7), weighting


def test_whole_timesteps_lose_their_fraction_and_nothing_else() -> None:
    latents, noise, u = flow_draws()
    exact = FlowMatching(3.0).noise(latents, noise, u)
    whole = FlowMatching(3.0, integer_timesteps=True).noise(latents, noise, u)
    assert whole.timestep.dtype == torch.int64
    assert torch.equal(whole.timestep, exact.timestep.long())
    assert (exact.timestep != whole.timestep).any()
    assert torch.equal(whole.sample, exact.sample) and torch.equal(whole.weight, exact.weight)


def test_flow_arithmetic_is_float32_whatever_the_latents_are() -> None:
    latents, noise, u = flow_draws()
    half = FlowMatching(3.0).noise(latents.bfloat16(), noise.bfloat16(), u)
    exact = FlowMatching(3.0).noise(latents.bfloat16().float(), noise.bfloat16().float(), u)
    assert half.sample.dtype == half.target.dtype == half.weight.dtype == torch.float32
    assert torch.equal(half.sample, exact.sample) and torch.equal(half.target, exact.target)


def test_a_flow_is_known_by_all_that_its_errors_depend_on() -> None:
    one = FlowMatching(3.0)
    others = [
        FlowMatching(5.0),
        FlowMatching(3.0, "x0"),
        FlowMatching(3.0, window=(0.0, 0.5)),
        FlowMatching(3.0, density="mode"),
        FlowMatching(3.0, integer_timesteps=True),
        objective(),
    ]
    assert len({canonical(each.identity) for each in [one, *others]}) == 7
    assert FlowMatching(3, window=(0, 1)).identity == one.identity


def test_the_identity_of_a_flow_is_spelt_as_stored_errors_were() -> None:
    """Other keys would give stored reference errors other names."""
    assert FlowMatching(3.0, integer_timesteps=True).identity == {
        "prediction": "velocity", "shift": 3.0, "whole": True,
        "weighting": "v", "window": [0.0, 1.0], "density": "uniform",
    }  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, -1.0, math.inf, math.nan])
def test_impossible_shifts_are_refused(shift: float) -> None:
    with pytest.raises(InputError, match="shift="):
        FlowMatching(shift)
