"""What a run came to, in sentences: for a reader who has a minute."""

from collections.abc import Sequence
from typing import NamedTuple

from ipo_lightning.guards import best_of
from ipo_lightning.metrics.intervals import Interval, detectable
from ipo_lightning.report.costs import total_cost
from ipo_lightning.report.pairing import (
    Paired,
    by_prompt,
    grouped,
    mean_change,
    paired,
    record,
)
from ipo_lightning.report.run import Run
from ipo_lightning.report.tables import (
    Row,
    base_gauges,
    finite,
    gain_of,
    gauges_of,
    relative,
    setting,
)

BAND = 0.2  # a gauge that left the base's by a larger share is told
MOST_NAMED = 3  # prompts that are named in a sentence


def trained(lines: Sequence[Row]) -> list[Row]:
    """The lines of the rounds that were trained."""
    return [line for line in lines if line["round"] > 0]


def best_number(lines: Sequence[Row]) -> int | None:
    """The best round by the judge, 0 where no round gained; None where none is trained."""
    return best_of(lines)["round"] if trained(lines) else None


def shown_round(lines: Sequence[Row]) -> int | None:
    """The round that the page compares with the base: the best one, or the last of none."""
    return best_number(lines) or (trained(lines)[-1]["round"] if trained(lines) else None)


def headline(lines: Sequence[Row]) -> str:
    """The verdict on a run in one to three sentences."""
    best = best_number(lines)
    if best is None:
        return "No trained round is finished yet."
    by_number = {line["round"]: line for line in lines}
    last = max(by_number)
    said = [judged(by_number[best or last])]
    if best == 0 and len(trained(lines)) > 1:
        said.append("By the held-out judge no round is better than the base model: keep the base.")
    elif best == 0:
        said.append("Keep the base model.")
    elif best != last:
        said.append(
            f"It is the best round; round {last}, the last one, {figures(by_number[last])}."
        )
    return " ".join(said)


def judged(line: Row) -> str:
    """Whether a round is better than the base model, and by how much."""
    return f"Round {line['round']} {conclusion(line)}: it {figures(line)}."


def conclusion(line: Row) -> str:
    """What the interval of the gain says, or that of the win rate where there is none."""
    gain = line.get("gain") or {}
    for bounds, even in (
        ((gain.get("low"), gain.get("high")), 0.0),
        (line.get("win_rate_ci"), 0.5),
    ):
        low, high = (finite(bound) for bound in bounds or (None, None))
        if low is not None and high is not None:
            if low > even:
                return "is better than the base model"
            return (
                "is worse than the base model"
                if high < even
                else "shows no clear difference from the base model"
            )
    return "was not compared with the base model"


def figures(line: Row) -> str:
    """Win rate and gain of a round, with their intervals."""
    said = []
    rate = finite(line.get("win_rate"))
    if rate is not None:
        low, high = (finite(bound) for bound in line.get("win_rate_ci") or (None, None))
        within = "" if low is None or high is None else f" ({100 * low:.0f} to {100 * high:.0f} %)"
        said.append(f"wins {100 * rate:.0f} %{within} of paired comparisons with the base")
    if (gain := gain_of(line)) != "-":
        said.append(f"changes the held-out judge's score by {gain}")
    return " and ".join(said) or "has no figures of the held-out judge"


class Answer(NamedTuple):
    """A question that a reader has, and what the run says of it."""

    question: str
    text: str


def answers(run: Run) -> list[Answer]:
    """At what the shown round is better, where it is worse, at what cost, on what it was tested."""
    number = shown_round(run.lines)
    if number is None:
        return []
    pairs = paired(run, number)
    found = [("Better at", better(pairs)), ("Worse at", worse(run, number, pairs)),
             ("Cost", total_cost(run)), ("Tested on", tested(run, pairs))]  # fmt: skip
    return [Answer(question, text) for question, text in found if text]


def dimensions(pairs: Sequence[Paired], group: str = "eval_dims") -> dict[str, Interval]:
    """Change by dimension, with its interval."""
    names = sorted({name for one in pairs for name in one.row.get(group) or {}})
    return {name: mean_change(pairs, lambda one, name=name: one.change_of(group, name))  # type: ignore[misc]
            for name in names}  # fmt: skip


def better(pairs: Sequence[Paired]) -> str:
    """What has risen for certain by the judge, the largest first."""
    found = [(name, one) for name, one in dimensions(pairs).items() if one.low > 0]
    found.sort(key=lambda item: -item[1].value)
    if not found:
        return "no dimension of the judge for certain" if dimensions(pairs) else ""
    return ", ".join(f"{name} {one.value:+.2f}" for name, one in found)


def worse(run: Run, number: int, pairs: Sequence[Paired]) -> str:
    """What has fallen: dimensions, categories, prompts; gauges that left the base's."""
    said = [f"{name} {one.value:+.2f}" for name, one in dimensions(pairs).items() if one.high < 0]
    for name, own in grouped(pairs, lambda one: one.category).items():
        if (change := mean_change(own)).high < 0:
            said.append(f"category {name} {change.value:+.2f}")
    lost = record(pairs).lost
    said += [f"{lost} of {len(pairs)} videos lost"] if lost else []
    said += [*lost_prompts(pairs), *moved_gauges(run.lines, number)]
    return "; ".join(said) or "nothing that is measured"


def lost_prompts(pairs: Sequence[Paired]) -> list[str]:
    """How many prompts have a lower mean score, and which fell furthest."""
    changes = {text: mean_change(own).value for (_, text), own in by_prompt(pairs).items()}
    fallen = sorted((text for text in changes if changes[text] < 0), key=lambda text: changes[text])
    if not fallen:
        return []
    named = ", ".join(f'"{short(text)}" {changes[text]:+.2f}' for text in fallen[:MOST_NAMED])
    return [f"{len(fallen)} of {len(changes)} prompts ({named})"]


def short(prompt: str) -> str:
    """The beginning of a prompt, on one line."""
    flat = " ".join(prompt.split())
    return flat if len(flat) <= 60 else f"{flat[:57]}..."


def moved_gauges(lines: Sequence[Row], number: int) -> list[str]:
    """Gauges of the pixels that are far from the base's."""
    base = base_gauges(lines)
    gauges = next((gauges_of(line) for line in lines if line["round"] == number), {})
    ratios = {name: relative(gauges, base, name) for name in sorted(base)}
    far = {name: ratio for name, ratio in ratios.items() if ratio and abs(ratio - 1) > BAND}
    return [f"{WORDS.get(name, name)} {100 * (ratio - 1):+.0f} %" for name, ratio in far.items()]


WORDS = {
    "diversity": "diversity of a prompt's videos",
    "diversity_latents": "the same in latents",
    "real_error": "error on real clips",
}


def tested(run: Run, pairs: Sequence[Paired]) -> str:
    """Prompts, videos and split of the evaluation, and what it could have shown."""
    prompts = by_prompt(pairs)
    if not prompts:
        return ""
    split = setting(run.config, "evaluation.split")
    of = f" of the {split} split" if isinstance(split, str) else ""
    said = f"{len(prompts)} prompts{of}, {len(pairs)} pairs of videos"
    least = detectable(mean_change(pairs), len(prompts))
    if least == least:
        said += f"; a difference of {least:.3f} would have shown in 4 of 5 such tests"
    return f"{said}. {chosen_on(run)}".strip()


def chosen_on(run: Run) -> str:
    """On which prompts the best round was chosen."""
    lines = trained(run.lines)
    if any(line.get("choice") for line in lines):
        choice = next(line["choice"] for line in lines if line.get("choice"))
        return (f"The best round is chosen on others: {choice.get('prompts', '-')} prompts of the "
                f"{choice.get('split', 'select')} split.")  # fmt: skip
    if len(lines) < 2:
        return ""
    return ("The best round is chosen on these same prompts, so that its figures are slightly too "
            "good.")  # fmt: skip
