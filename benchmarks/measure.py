"""What a piece of work costs: seconds, floating-point operations, bytes at its peak."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]
Clock = Callable[[], float]


def seconds(work: Work, device: torch.device, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call, on the wall unless another clock is given."""
    synchronize(device)
    started = clock()
    work()
    synchronize(device)
    return clock() - started


def interleaved(
    works: Mapping[str, Work],
    device: torch.device,
    repeats: int,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each piece of work, in turns, so that a slow minute hits all of them alike."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            spent = seconds(work, device, clock)
            if repeat:  # the first turn warms up
                found[name].append(spent)
    return found


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios within the same turn."""
    return statistics.median(one / other for one, other in zip(times, base, strict=True))


def flops(work: Work) -> int:
    """Floating-point operations of matrix products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_bytes(work: Work, device: torch.device) -> int:
    """The most memory held at one time beyond what was held before."""
    if device.type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = peak = 0
    for event in sorted(_allocations(seen), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def free_bytes(device: torch.device) -> float:
    """Memory that a GPU, or this machine, has to spare; without bound where it is not known."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    file = Path("/proc/meminfo")
    lines = file.read_text().splitlines() if file.exists() else []
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return next((1024 * float(kib) for kib in found), float("inf"))


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 0) -> float:
    """Operations a second of a large matrix product, the best of five."""
    size = size or (8192 if device.type == "cuda" else 2048)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: left @ right, device) for _ in range(5))


def hardware(device: torch.device) -> str:
    """The name of a GPU, or of this machine's processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    model = next((line.partition(": ")[2] for line in lines if "model name" in line), "")
    return model or platform.processor()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; what a row does not have is left empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names), *([str(row.get(n, "")) for n in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocations(seen: Any) -> list[Any]:
    results = seen.profiler.kineto_results.events()
    return [event for event in results if event.name() == "[memory]"]
