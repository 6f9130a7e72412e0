"""The GPU path on a second device that is as strict as CUDA: whole runs, and faults that are found.

A test of a process of its own, since the device takes a backend's name there. Needs g++ and torch's
headers, which its wheel has.
"""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from app.entry import REPO
from tests.devices.runs import CASES, FAULTS, PLACES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the device is compiled by g++"),
]
WAITS = 2
"""Most often that a training step may wait for its device: whether the loss is finite, and which
means are known."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each case came to."""
    folder = tmp_path_factory.mktemp("second")
    library = folder / "second_device.so"
    python = [sys.executable, "-m"]
    build = [*python, "tests.devices.second_device", str(library)]
    subprocess.run(build, check=True, cwd=REPO)
    faults = [f"{place}: {fault}" for place in PLACES for fault in FAULTS]
    words = [str(library), str(folder / "outputs"), "start", *CASES, *faults]
    runs = subprocess.run(
        [*python, "tests.devices.runs", *words],
        cwd=REPO, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in runs.stdout.splitlines() if line.startswith('{"case"')]
    assert len(lines) == len(words) - 2, runs.stderr[-2000:]
    return {line["case"]: line for line in lines}


def test_an_adapter_starts_alike_on_every_device(found: dict[str, dict[str, Any]]) -> None:
    """Lightning enters the device around `configure_model`, whose generator draws other numbers."""
    assert found["start"]["weights"] > 0
    assert found["start"]["equal"] and found["start"]["schedules on"] == ["cpu"]


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_through_whole(found: dict[str, dict[str, Any]], case: str) -> None:
    run = found[case]
    assert "error" not in run, run
    assert run["round"] == (2 if case == "resumed" else 1)
    steps = run["steps"]
    assert len(steps) == 6 and all(step["operations"] > 100 for step in steps)
    assert max(step.get("values read", 0) for step in steps) <= WAITS
    assert not any("float64" in name for step in steps for name in step)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_is_found(found: dict[str, dict[str, Any]], place: str, fault: str) -> None:
    run = found[f"{place}: {fault}"]
    if fault == "float64":
        assert run["float64"], run
    else:
        error = run.get("error", "")
        assert "MIXED" in error or "to be on the same device" in error, run
