"""A seed is a function of what is drawn: rank, batch and order have no part in it."""

import random
from itertools import product

import numpy as np
import torch

from ipo_lightning.seeds import derive_seed, gaussian, generator


def test_a_seed_is_pinned() -> None:
    """Another value here would change every video of every run: raise RECIPE and say so."""
    assert derive_seed(0, "rollout", 1, 0, 0) == 541042062498556355


def test_seeds_differ_in_every_part_and_fit_63_bits() -> None:
    seeds = {derive_seed(*parts) for parts in product(range(4), ("a", "b"), range(8), range(8))}
    assert len(seeds) == 4 * 2 * 8 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_parts_do_not_run_together() -> None:
    assert (
        len({derive_seed(1, 23), derive_seed(12, 3), derive_seed(123), derive_seed("1", 23)}) == 4
    )
    assert derive_seed("a", "b") != derive_seed("a,b")


def test_noise_is_that_of_its_seed_and_standard_normal() -> None:
    one = gaussian(7, (3, 4, 5))
    assert one.dtype == torch.float32
    assert torch.equal(one, gaussian(7, (3, 4, 5)))
    assert not torch.equal(one, gaussian(8, (3, 4, 5)))
    many = gaussian(9, (100_000,))
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


def test_drawing_leaves_every_global_generator_alone() -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    gaussian(1, (10,))
    torch.rand(3, generator=generator(2))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()


def test_global_seeding_does_not_reach_the_noise() -> None:
    torch.manual_seed(1)
    before = gaussian(5, (4,))
    torch.manual_seed(2)
    assert torch.equal(before, gaussian(5, (4,)))
