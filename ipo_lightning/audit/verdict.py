"""An audit in a sentence: what the critic may be trusted with, and what that is held against.

Three comparisons decide, each by its 95 % interval, and no other threshold:

1. against chance, 50 % of the pairs on which people had a preference;
2. against one person, by the share of pairs on which each agrees with the majority of the others;
3. and with the order of the videos: a critic whose answers follow the place says so.
"""

from collections.abc import Mapping
from typing import Any, Literal

from ipo_lightning.critics.people.annotations import OVERALL

Plain = Mapping[str, Any]
Grade = Literal["unknown", "chance", "worse than chance", "above chance", "below people",
                "like people", "above people"]  # fmt: skip
TRUST: Mapping[Grade, str] = {
    "unknown": "There are too few prompts to tell it from chance: trust it with nothing yet",
    "chance": "It is not told apart from chance: to be trusted with nothing",
    "worse than chance": "It is worse than chance: to be trusted with nothing; are its two places, "
    "or the labels' sides, exchanged?",
    "above chance": "No pair has verdicts by two people, so there is no ceiling to hold it to. It "
    "is better than chance: to be trusted for labels in numbers, whose errors average out, not for "
    "any single pair",
    "below people": "It is better than chance and worse than one more person ({gap}): to be "
    "trusted for labels in numbers, best of the pairs that it is surest of, not for any single "
    "pair",
    "like people": "It is better than chance and not told apart from one more person ({gap}): to "
    "be trusted for labels as one, as far as so many pairs tell",
    "above people": "It agrees with people more than one of them does with the others ({gap}): to "
    "be trusted for labels as more than one person",
}


def grade(found: Plain) -> Grade:
    """Which of the cases of `TRUST` an audit is."""
    block = found["dims"][OVERALL]
    low, high = block["accuracy"]["low"], block["accuracy"]["high"]
    if low is None or high is None:
        return "unknown"
    if low <= 0.5:
        return "worse than chance" if high < 0.5 else "chance"
    people = block["people"]
    if people is None or people["difference"]["low"] is None:
        return "above chance"
    if people["difference"]["high"] < 0:
        return "below people"
    return "above people" if people["difference"]["low"] > 0 else "like people"


def sentences(found: Plain) -> list[str]:
    """The verdict: how far they agree, what to trust it with, and what to know beside."""
    block, people = found["dims"][OVERALL], found["dims"][OVERALL]["people"]
    said = f"{found['critic']} agrees with people on {share(block['accuracy'])} of the pairs where "
    said += "they had a preference (chance: 50 %"
    if people is not None:
        said += (
            f"; where several looked, one person agrees with the others on "
            f"{share(people['accuracy'])} and it on {share(people['critic'])}"
        )
    gap = "" if people is None else points(people["difference"])
    lines = [f"{said}).", f"{TRUST[grade(found)].format(gap=gap)}."]
    if grade(found) in ("above chance", "below people") and found["surest"]:
        half = min(found["surest"], key=lambda one: abs(one["share"] - 0.5))
        lines.append(
            f"On the {100 * half['share']:.0f} % of those pairs that it is surest of it agrees on "
            f"{share(half['accuracy'])}."
        )
    return [*lines, *_beside(found)]


def _beside(found: Plain) -> list[str]:
    """What a good accuracy may hide."""
    lines = []
    answered, place = found["answered"]["share"], found["place"]
    if answered["value"] is not None and answered["value"] < 1:
        all_of_them = share(found["dims"][OVERALL]["accuracy_all"])
        lines.append(
            f"It gave no verdict on {100 * (1 - answered['value']):.1f} % of the pairs; of all "
            f"pairs where people had a preference it agrees on {all_of_them}."
        )
    if place and place["first"]["low"] is not None:
        low, high = place["first"]["low"], place["first"]["high"]
        if low > 0.5 or high < 0.5:
            side = "first" if low > 0.5 else "second"
            lines.append(
                f"It leans to the {side} place ({share(place['first'])} of its decided answers "
                f"are the first), and changes its verdict with the order on {share(place['flips'])}"
                " of the pairs: ask it in both orders."
            )
    return lines


def points(difference: Plain) -> str:
    """A difference of two shares, the critic's less a person's, with its interval."""
    value, low, high = (difference[name] for name in ("value", "low", "high"))
    if value is None or low is None:
        return "an unknown number of points"
    return f"{100 * value:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"


def settings_to_use(found: Plain) -> str:
    """The fitted scale and k of `preferences.rao_kupper`, as settings and in words."""
    scale, ties = found["adapter"]["scale"], found["adapter"]["ties"]
    said = f"scale: {scale:.4g}  # P(A is better) = sigma(scale * d - ln ties)\nties: {ties:.4g}"
    if scale == 0:
        return f"{said}\n# not to be used: the calibration split tells nothing of them"
    if scale < 0:
        return f"{said}\n# not to be used: the scale says that people prefer what it does not"
    if found["kind"] == "pointwise":
        return f"{said}\n# d: the difference of two scores; critic=compared takes both settings"
    tone = "surer than it is right" if scale < 1 else "right more often than it is sure"
    return f"{said}\n# d: the critic's own log-odds; it is {tone}"


def share(estimate: Plain) -> str:
    """An estimate as a percentage with its interval."""
    if estimate["value"] is None:
        return "an unknown share"
    text = f"{100 * estimate['value']:.0f} %"
    if estimate["low"] is None:
        return text
    return f"{text} [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"
