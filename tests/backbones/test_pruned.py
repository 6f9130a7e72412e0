"""Candidates that are stopped on the way, foreseen, and go on."""

import pytest
import torch

from ipo_lightning.errors import InputError
from ipo_lightning.policy import Sampling
from tests.backbones.test_branched import CPU, KINDS, PROMPT, SEEDS, Policies, policies, rows_asked

__all__ = ["policies"]


@KINDS
def test_videos_that_go_on_are_those_that_never_stopped(kind: str, policies: Policies) -> None:
    """To the rounding, for samplers without memory or noise of their own; whatever the batch."""
    policy = policies(kind)
    network, text = policy.build().eval(), policy.embed(PROMPT, CPU)
    full = Sampling(5)
    draft = full.draft(prune_at=0.4, steps=1)
    rows = rows_asked(network)
    found = policy.foresee(network, SEEDS, text, None, draft)
    assert sum(rows) == draft.evaluations(3) == 9
    final = full.after(draft)
    rows.clear()
    after = policy.sample(network, SEEDS[1:], text, None, final, found.latents[1:])
    assert sum(rows) == final.evaluations(2) == 6
    assert after.isfinite().all() and not torch.allclose(after, found.x0[1:], atol=1e-3)
    again = policy.sample(network, SEEDS[1:], text, None, final, found.latents[1:])
    assert torch.equal(after, again)
    plain = policy.sample(network, SEEDS, text, None, full)[1:]
    if kind in ("ddim", "euler"):
        assert torch.allclose(after, plain, atol=1e-5)
    single = policy.sample(network, SEEDS[2:], text, None, final, found.latents[2:])
    assert torch.allclose(single, after[1:], atol=1e-5)


def test_the_noise_level_is_that_of_the_last_prediction(policies: Policies) -> None:
    policy = policies("euler")
    network, text = policy.build().eval(), policy.embed(PROMPT, CPU)
    sigmas = policy.batch_scheduler(Sampling(5), [0], 0, CPU).scheduler.sigmas
    for finish, step in ((0, 1), (1, 2), (2, 3)):
        draft = Sampling(5).draft(prune_at=0.4, **({"steps": finish} if finish else {}))
        level = policy.foresee(network, SEEDS[:1], text, None, draft).noise_level
        assert level == pytest.approx(float(sigmas[step]))


def test_guidance_is_counted_in_its_interval() -> None:
    """Of 10 steps 2 are made, of which one is guided, and then steps 2 and 6, of which one is."""
    full = Sampling(10, 3.0, guidance_interval=(0.1, 0.5))
    draft = full.draft(prune_at=0.2, steps=2)
    assert draft.finishing == (2, 6)
    assert draft.evaluations(1) == 1 + 2 + 2 + 1
    assert full.after(draft).evaluations(1) == full.evaluations(1) - 3


@pytest.mark.parametrize(
    ("cheaper", "named"),
    [
        ({"prune_at": 1.0}, "prune_at=1.0"),
        ({"prune_at": 0.0}, "prune_at=0.0"),
        ({"prune_at": 0.2, "guidance_scale": 2.0}, "guidance_scale=2.0: leave it out"),
        ({"prune_at": 0.2, "scheduler": "dpm"}, "scheduler=dpm: leave it out"),
        ({"prune_at": 0.4, "steps": 6}, "a draft takes 10 network evaluations"),
    ],
)
def test_what_cannot_be_pruned_is_refused(cheaper: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Sampling(10).draft(**cheaper)  # type: ignore[arg-type]
