"""What the plan says of the critics: what they take, where they are, how long they are asked."""

from collections.abc import Iterator, Mapping

from ipo_lightning.critics.stage.costs import Cost
from ipo_lightning.planning.estimate import GIB, Estimate

BESIDE = "on the same device, beside the policy"


def of_roles(estimate: Estimate) -> dict[str, Cost]:
    """The critic and the judge."""
    return {"critic": estimate.job.critic, "held-out judge": estimate.job.judge}


def critic_lines(estimate: Estimate) -> Iterator[str]:
    """A line for the critic, one for the judge; with those that are asked as one below it."""
    resident = sum(estimate.resident.values())
    for role, cost in of_roles(estimate).items():
        yield f"{role}: {_told(cost, resident)}"
        for one in cost.members:
            yield f"  {one.member}: {_told(one, resident)}"


def _told(cost: Cost, resident: float) -> str:
    if cost.place == "server":
        return f"{cost.name}, at {cost.address or 'a server'}; it takes nothing of this device"
    if cost.place == "none":
        return f"{cost.name}, without weights; nothing of the device"
    where = f"{BESIDE} ({_gib(resident)} resident)"
    if cost.members:
        size = "unknown, see below" if cost.held is None else f"{_gib(cost.held)} at most"
        return f"{cost.name}, {size}, {where}"
    if cost.weights is None:
        return f"{cost.name}, memory and hours unknown: {cost.unknown}; {where}"
    sizes = f"{_gib(cost.weights)} of weights"
    if cost.activations is None:
        return f"{cost.name}, {sizes}, activations unknown: {cost.unknown}; {where}"
    sizes += f" + {_gib(cost.activations)} while it sees a video"
    return f"{cost.name} ({cost.source}), {sizes}, {where}"


def unknown_critics(estimate: Estimate) -> str:
    """What the peak lacks, as words after it."""
    lacking = [role for role, cost in of_roles(estimate).items() if cost.held is None]
    return f" (without the {' and the '.join(lacking)}, unknown)" if lacking else ""


def critic_flops(estimate: Estimate, answers: Mapping[str, int]) -> dict[str, float]:
    """Operations on the devices, by who is asked; not of what is unknown."""
    found = {}
    for role, cost in of_roles(estimate).items():
        calls = answers[role] / max(1, len(cost.members))
        flops = estimate.critic_flops(cost, calls)
        if cost.place == "device" and flops:
            found[role] = flops
    return found


def served_hours(
    estimate: Estimate, answers: Mapping[str, int], seconds: float | None
) -> Iterator[str]:
    """What there is to say of the time of critics on servers, and of those that are unknown.

    Args:
        seconds: of a call of a server; None: not given.
    """
    for role, cost in of_roles(estimate).items():
        if cost.place == "server" and seconds is not None:
            hours = answers[role] * seconds / 3600
            yield f"{role} at its server: {answers[role]} calls x {seconds:g} s = {hours:.3g} h"
        elif cost.place == "server":
            yield f"{role} at its server: {answers[role]} calls; plan.critic_seconds gives hours"
        elif cost.flops is None:
            yield f"{role}: its hours are unknown; {answers[role]} calls"


def in_gib(size: float) -> str:
    """A number: to a tenth; of what is small, to three digits."""
    value = size / GIB
    return f"{value:.1f}" if value >= 1 or not value else f"{value:.3g}"


def _gib(size: float) -> str:
    return f"{in_gib(size)} GiB"
