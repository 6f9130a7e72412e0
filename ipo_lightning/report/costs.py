"""What a run cost, stage by stage: seconds, network evaluations, calls of critics."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ipo_lightning.errors import InputError
from ipo_lightning.policy import Sampling
from ipo_lightning.report.run import RoundFiles, Run
from ipo_lightning.report.tables import Row, seconds_of, setting
from ipo_lightning.storage.layout import DRAFT_CRITIQUE, STAGES


class Cost(NamedTuple):
    """Of a stage; None: not known."""

    seconds: float = 0.0
    evaluations: int | None = None
    """One video through the network once; a step with guidance has two."""
    calls: int | None = None
    """Questions to a critic: a video, or a couple in one order."""

    def __add__(self, other: object) -> "Cost":
        if not isinstance(other, Cost):
            return NotImplemented
        return Cost(
            self.seconds + other.seconds,
            both(self.evaluations, other.evaluations),
            both(self.calls, other.calls),
        )


def both(first: int | None, second: int | None) -> int | None:
    """The sum of what is known."""
    return second if first is None else first if second is None else first + second


def costs(run: Run) -> dict[str, Cost]:
    """Stage -> cost of all rounds so far, in the order of the loop."""
    by_number = {line["round"]: line for line in run.lines}
    totals: dict[str, Cost] = {}
    for one in run.rounds:
        for stage, cost in round_costs(one, by_number.get(one.number, {}), run.config).items():
            totals[stage] = totals.get(stage, Cost()) + cost
    order = [*(stage for stage in STAGES if stage in totals), *totals]
    return {stage: totals[stage] for stage in order}


def round_costs(one: RoundFiles, line: Row, config: Row) -> dict[str, Cost]:
    """Stage -> cost of one round."""
    found = {stage: Cost(seconds) for stage, seconds in seconds_of(line).items()}
    draws, trained = draws_of(config, len(one.pairs) or len(one.points))
    kind = 2 if one.pairs else 1
    evaluated = [*one.evaluation, *({**row, "prompt_index": f"choice {row.get('prompt_index')}"}
                                    for row in one.choice)]  # fmt: skip
    counts = {
        "rollout": (line.get("evaluations") or sampled(one.candidates, config), None),
        DRAFT_CRITIQUE: (None, questions(one.draft_verdicts)),
        "critique": (None, questions(one.verdicts)),
        "reference errors": (draws and draws * kind, None),
        "training": (trained and trained * kind, None),
        "evaluation": (sampled(evaluated, config, shared=False), 2 * len(evaluated)),
    }
    return {stage: cost._replace(evaluations=counts[stage][0], calls=counts[stage][1])
            if stage in counts else cost for stage, cost in found.items()}  # fmt: skip


def sampled(rows: list[dict[str, Any]], config: Row, *, shared: bool = True) -> int | None:
    """Network evaluations of sampling these videos; None where the settings do not say.

    Args:
        shared: whether they are candidates; else they are an evaluation's.
    """
    rollout = config.get("rollout")
    if not isinstance(rollout, Mapping):
        return None
    evaluated = setting(config, "evaluation.guidance_scale")
    if not shared and evaluated is not None:
        rollout = {**rollout, "guidance_scale": evaluated}
    names = ("steps", "guidance_scale", "guidance_interval", *(("shared",) if shared else ()))
    try:
        sampling = Sampling(**{name: rollout[name] for name in names if name in rollout})
        counts: dict[object, int] = {}
        for row in rows:
            counts[row.get("prompt_index")] = counts.get(row.get("prompt_index"), 0) + 1
        return sum(sampling.evaluations(count) for count in counts.values())
    except (InputError, TypeError, ValueError):
        return None


def questions(verdicts: list[dict[str, Any]]) -> int:
    """Questions behind verdicts: one a video, one an order of a couple."""
    orders = (row.get("shown") or [] if "p_first" in row else [True] for row in verdicts)
    return sum(answer is not None for shown in orders for answer in shown)


def draws_of(config: Row, labels: int) -> tuple[int | None, int | None]:
    """Draws of labels that a round has at most, and that it trains on; None where the number of
    devices is not a setting."""
    names = ("data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices",
             "trainer.num_nodes")  # fmt: skip
    values = [setting(config, name) for name in (*names, "data.optimizer_steps")]
    if any(not isinstance(value, int) or value < 1 for value in values):
        return None, None
    *factors, steps = values
    group = [setting(config, f"trainer.strategy.{name}") or 1 for name in ("ulysses", "ring")]
    a_step, passes = math.prod(factors) // math.prod(group), setting(config, "data.max_passes")
    made = min(steps, -(-passes * labels // a_step)) if isinstance(passes, int) else steps
    return steps * a_step, made * a_step


def total(run: Run) -> Cost:
    """Of all stages together."""
    return sum(costs(run).values(), Cost())


def total_cost(run: Run) -> str:
    """The total in words; "" where nothing was timed."""
    whole = total(run)
    if not whole.seconds:
        return ""
    said = [duration(whole.seconds)]
    if whole.evaluations:
        said.append(f"{thousands(whole.evaluations)} network evaluations")
    if whole.calls:
        said.append(f"{thousands(whole.calls)} critic calls")
    return ", ".join(said)


def duration(seconds: float) -> str:
    """A time as people say it: ``48 s``, ``2 min 40 s``, ``3 h 05 min``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    if whole < 60:
        return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.2f} s"
    return f"{minutes} min {rest:02d} s" if minutes < 60 else (
        f"{minutes // 60} h {minutes % 60:02d} min"
    )  # fmt: skip


def thousands(count: int | None) -> str:
    """A count with a space between groups of three digits; "-" for an unknown one."""
    return "-" if count is None else f"{count:,}".replace(",", " ")


def cost_rows(run: Run) -> list[dict[str, str]]:
    """One row a stage, and the total: heading -> cell; none where nothing was timed."""
    found = costs(run)
    whole = sum(cost.seconds for cost in found.values())
    if not whole:
        return []
    return [
        {
            "stage": stage,
            "time": duration(cost.seconds),
            "share": f"{100 * cost.seconds / whole:.0f} %",
            "network evaluations": thousands(cost.evaluations),
            "critic calls": thousands(cost.calls),
        }
        for stage, cost in [*found.items(), ("all", total(run))]
    ]
