"""A few faults of the campaign, always the same ones: damage and signals end in the same bits or in
a refusal that names the cause. ``make faults`` lets many happen, of every kind."""

from pathlib import Path

import pytest

from tests.faults.campaign import FINE, campaign
from tests.faults.runs import Runs


@pytest.mark.slow
def test_a_few_faults(tmp_path: Path) -> None:
    found = list(campaign(Runs(tmp_path), seed=2, count=5, kinds=("damage", "signal")))
    assert [one for one in found if one.outcome not in FINE] == []
    assert {one.kind for one in found} == {"damage", "signal"}
