"""Branched rollouts: the candidates of a prompt share their first denoising steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ipo_lightning.policy import Sampling
from ipo_lightning.seeds import derive_seed, gaussian
from tests.helpers import tiny, tiny_wan

CPU = torch.device("cpu")
PROMPT = ["a red ring moving left"]
SEEDS = [5, 6, 7]
KINDS = pytest.mark.parametrize("kind", ["ddim", "dpm", "unipc", "euler"])
Policies = Callable[[str], Any]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """A policy by the name of its sampler, each folder built once."""
    root, built = tmp_path_factory.mktemp("pipelines"), dict[str, Any]()

    def policy(kind: str) -> Any:
        if kind not in built:
            family = tiny if kind in ("ddim", "dpm") else tiny_wan
            built[kind] = family.policy(family.save_pipeline(root / kind, kind=kind))
        return built[kind]

    return policy


def levels(policy: Any, steps: int) -> list[tuple[float, float]]:
    """alpha and sigma, the factors of clean latents and noise, at each step of the sampler."""
    scheduler = policy.batch_scheduler(Sampling(steps), [0], 0, CPU)
    return [(float(a), float(b)) for a, b in map(scheduler.alpha_sigma, range(steps))]


class Toy(nn.Module):
    """Outputs what stands for the predicted clean latents, step after step of one batch."""

    def __init__(self, policy: Any, steps: int, pred_x0: Callable[..., Tensor]) -> None:
        super().__init__()
        self.levels, self.pred_x0 = iter(levels(policy, steps)), pred_x0
        self.flow = isinstance(policy, tiny_wan.Wan)
        self.device_of = nn.Parameter(torch.zeros(1))

    def forward(self, *, hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        alpha, sigma = next(self.levels)
        x0 = self.pred_x0(hidden_states, alpha, sigma)
        return ((hidden_states * (1 if self.flow else alpha) - x0) / sigma,)


def rows_asked(network: nn.Module) -> list[int]:
    """The rows of every forward from now on."""
    rows: list[int] = []
    network.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    return rows


@KINDS
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_shared_steps_are_computed_once(policies: Policies, kind: str, guidance: float) -> None:
    """k + N (T - k) network evaluations, twice that with guidance."""
    policy = policies(kind)
    network, text = policy.build(), policy.embed([*PROMPT, ""], CPU)
    rows = rows_asked(network)
    sampling = Sampling(steps=5, guidance_scale=guidance, shared=0.4, batch_size=2)
    policy.sample(network, SEEDS, text[:1], text[1:], sampling)
    assert sum(rows) == (2 + 3 * (5 - 2)) * (2 if sampling.guided else 1)
    assert sum(rows) == sampling.evaluations(len(SEEDS))


@KINDS
def test_candidates_differ_and_know_nothing_of_each_other(policies: Policies, kind: str) -> None:
    policy = policies(kind)
    network, text = policy.build(), policy.embed(PROMPT, CPU)
    sampling = Sampling(steps=5, shared=0.4)
    videos = policy.sample(network, SEEDS, text, None, sampling)
    assert torch.equal(policy.sample(network, SEEDS, text, None, sampling), videos)
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        assert (videos[one] - videos[other]).abs().mean() > 0.1
    fewer = policy.sample(network, SEEDS[:2], text, None, sampling)
    assert torch.allclose(fewer, videos[:2], atol=1e-5)
    another = policy.sample(network, [5, 9, 7], text, None, sampling)
    assert torch.allclose(another[[0, 2]], videos[[0, 2]], atol=1e-5)
    assert (another[1] - videos[1]).abs().mean() > 0.1


@KINDS
def test_candidates_are_more_alike_than_independent_ones(policies: Policies, kind: str) -> None:
    """The shared steps matter: another first seed moves all candidates."""
    policy = policies(kind)
    network, text = policy.build(), policy.embed(PROMPT, CPU)
    sampling = Sampling(steps=5, shared=0.6)
    videos = policy.sample(network, SEEDS, text, None, sampling)
    moved = policy.sample(network, [8, 6, 7], text, None, sampling)
    assert (moved[1:] - videos[1:]).abs().mean() > 0.01


@KINDS
def test_nothing_shared_is_nothing_changed(policies: Policies, kind: str) -> None:
    policy = policies(kind)
    network, text = policy.build(), policy.embed(PROMPT, CPU)
    plain = policy.sample(network, SEEDS, text, None, Sampling(steps=4))
    assert torch.equal(policy.sample(network, SEEDS, text, None, Sampling(4, shared=0.0)), plain)
    assert torch.equal(policy.sample(network, SEEDS, text, None, Sampling(4, shared=0.1)), plain)


@KINDS
def test_a_perfect_prediction_recovers_the_clean_latents(policies: Policies, kind: str) -> None:
    policy = policies(kind)
    clean = tiny.normal(3, *policy.latent_shape)
    network = Toy(policy, 8, lambda sample, *_: clean.expand_as(sample))
    text = policy.embed(PROMPT, CPU)
    got = policy.sample(network, SEEDS, text, None, Sampling(steps=8, shared=0.5))
    assert torch.allclose(got, clean.expand_as(got), atol=1e-4)


@KINDS
def test_the_noise_at_the_branch_is_the_candidates_own(policies: Policies, kind: str) -> None:
    """What the network sees first in a branch: the shared x0 prediction, and its seed's noise."""
    policy, steps, shared = policies(kind), 6, 3
    clean, seen = tiny.normal(3, *policy.latent_shape), list[Tensor]()

    def pred_x0(sample: Tensor, *_: float) -> Tensor:
        seen.append(sample)
        return clean.expand_as(sample)

    text = policy.embed(PROMPT, CPU)
    network = Toy(policy, steps, pred_x0)
    policy.sample(network, SEEDS, text, None, Sampling(steps=steps, shared=0.5))
    assert [len(sample) for sample in seen] == [1] * shared + [len(SEEDS)] * (steps - shared)
    assert torch.equal(seen[0][0], gaussian(derive_seed(SEEDS[0], "shared"), policy.latent_shape))
    alpha, sigma = levels(policy, steps)[shared]
    own = torch.stack([gaussian(seed, policy.latent_shape) for seed in SEEDS])
    assert torch.allclose(seen[shared], alpha * clean + sigma * own, atol=1e-5)


@pytest.mark.slow
@KINDS
def test_variance_of_gaussian_data(policies: Policies, kind: str) -> None:
    """With the best denoiser of N(0, s^2) data, what the branch loses is what theory says.

    A step from the predicted clean latents, their mean given x, leaves out their variance given x:
    the variance at the branch is short by alpha^2 var(x0 | x), which the steps after it scale with
    the rest. Early branches lose little, since alpha is small.
    """
    policy, steps, s = policies(kind), 20, 0.5

    def best(sample: Tensor, alpha: float, sigma: float) -> Tensor:
        return sample * alpha * s**2 / (alpha**2 * s**2 + sigma**2)

    def variance(shared: float) -> float:
        """Over many prompts with two candidates each, of the second."""
        text, sampling = policy.embed(PROMPT, CPU), Sampling(steps=steps, shared=shared)
        drawn = [
            policy.sample(Toy(policy, steps, best), [2 * i, 2 * i + 1], text, None, sampling)[1]
            for i in range(24)
        ]
        return float(torch.stack(drawn).var())

    alone = variance(0.0)
    for shared in (0.2, 0.4):
        at = round(shared * steps)
        alpha, sigma = levels(policy, steps)[at]
        before = levels(policy, steps)[at - 1]
        left_out = s**2 * before[1] ** 2 / (before[0] ** 2 * s**2 + before[1] ** 2)
        whole = alpha**2 * s**2 + sigma**2
        kept = 1 - alpha**2 * left_out / whole
        assert variance(shared) / alone == pytest.approx(kept, rel=0.06)
        assert kept > 0.85


def test_different_prompts_share_nothing(policies: Policies) -> None:
    policy = policies("ddim")
    text = policy.embed([*PROMPT, "a blue cross"], CPU)
    with pytest.raises(ValueError, match="in common"):
        policy.sample(policy.build(), [1, 2], text, None, Sampling(steps=4, shared=0.5))
