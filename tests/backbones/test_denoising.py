"""The sampling loop computes the equations that its documentation writes down."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ipo_lightning.backbones.denoising import classifier_free_guidance, denoise, foresee
from ipo_lightning.backbones.schedulers import FlowScheduler, VPredictionScheduler
from tests.helpers import tiny, tiny_wan

CPU = torch.device("cpu")
STEPS = 5  # divides 1000: else diffusers rounds the timestep after a step
NOISE = tiny.normal(0, 2, *tiny.LATENT_SHAPE)


def model(latents: Tensor, timestep: Tensor) -> Tensor:
    """An output that depends on the latents and on the timestep."""
    return (0.3 * latents + timestep.float() / 1000).sin()


def ddim() -> VPredictionScheduler:
    return VPredictionScheduler(tiny.scheduler("ddim"), STEPS, CPU)


def euler(first: int = 0) -> FlowScheduler:
    return FlowScheduler(tiny_wan.scheduler("euler"), STEPS, first, CPU)


def test_ddim_by_hand() -> None:
    scheduler, x = ddim(), NOISE
    alpha_bars = tiny.scheduler("ddim").alphas_cumprod.double()
    timesteps = [*scheduler.timesteps.tolist(), -1]
    for t, after in zip(timesteps, timesteps[1:], strict=False):
        v = model(x, torch.tensor(t))
        a, b = alpha_bars[t], alpha_bars[after] if after >= 0 else torch.tensor(1.0)
        x0, eps = a.sqrt() * x - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * x
        x = b.sqrt() * x0 + (1 - b).sqrt() * eps
    assert torch.allclose(denoise(model, NOISE, scheduler, range(STEPS)), x.float(), atol=1e-5)


def test_euler_by_hand() -> None:
    scheduler, x = euler(), NOISE
    sigmas = scheduler.scheduler.sigmas
    for t, sigma, after in zip(scheduler.timesteps, sigmas, sigmas[1:], strict=False):
        x = x + (after - sigma) * model(x, t)
    assert torch.allclose(denoise(model, NOISE, scheduler, range(STEPS)), x, atol=1e-6)


@pytest.mark.parametrize("make", [ddim, euler], ids=["ddim", "euler"])
def test_some_steps_and_then_the_others_are_all_steps(make: Callable[..., FlowScheduler]) -> None:
    scheduler = make()
    half = denoise(model, NOISE, scheduler, range(3))
    rest = denoise(model, half, scheduler, range(3, STEPS))
    assert torch.equal(rest, denoise(model, NOISE, make(), range(STEPS)))


@pytest.mark.parametrize("make", [ddim, euler], ids=["ddim", "euler"])
def test_x0_and_noise_give_the_latents_back(make: Callable[..., FlowScheduler]) -> None:
    """``x = alpha x0 + sigma eps`` with x0 as predicted, and eps from the model output."""
    scheduler, steps = make(), 3
    x = denoise(model, NOISE, scheduler, range(steps - 1))
    output = model(x, scheduler.timesteps[steps - 1])
    x0, after = foresee(model, NOISE, make(), steps)
    assert torch.equal(after, denoise(model, NOISE, make(), range(steps)))
    alpha, sigma = scheduler.alpha_sigma(steps - 1)
    eps = x0 + output if isinstance(scheduler, FlowScheduler) else sigma * x + alpha * output
    assert torch.allclose(scheduler.add_noise(x0, eps, steps - 1), x, atol=1e-5)


@pytest.mark.parametrize("make", [ddim, euler], ids=["ddim", "euler"])
@pytest.mark.parametrize("stop", [1, 3])
def test_foreseen_in_all_steps_that_are_left_is_finished(
    make: Callable[..., FlowScheduler], stop: int
) -> None:
    x0, _ = foresee(model, NOISE, make(), stop, range(stop, STEPS))
    assert torch.allclose(x0, denoise(model, NOISE, make(), range(STEPS)), atol=1e-4)
    coarse, _ = foresee(model, NOISE, make(), stop, [stop])
    assert not torch.allclose(coarse, x0, atol=1e-5)


def test_guidance_by_hand() -> None:
    uncond, cond = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0])
    assert classifier_free_guidance(uncond, cond, 6.0).tolist() == [7.0, 2.0]
    assert torch.equal(classifier_free_guidance(uncond, cond, 1.0), cond)
