"""The result of an audit in sentences: what the critic can be used for.

Three comparisons decide, each by its 95 % interval:

1. its accuracy with chance, 50 % of the pairs on which people had a preference;
2. with one person: the share of pairs on which each agrees with the majority of the others;
3. its answers in both orders: whether it has a position bias.
"""

from collections.abc import Mapping
from typing import Any, Literal

from ipo_lightning.critics.people.annotations import OVERALL

Plain = Mapping[str, Any]
Grade = Literal["unknown", "chance", "worse than chance", "above chance", "below people",
                "like people", "above people"]  # fmt: skip
TRUST: Mapping[Grade, str] = {
    "unknown": "There are too few prompts to compare it with chance: do not use it yet",
    "chance": "It is not significantly better than chance: do not use it",
    "worse than chance": "It is worse than chance: do not use it. Check whether its two videos, or "
    "the labels' sides, are exchanged",
    "above chance": "It is better than chance. No pair has verdicts by two people, so it cannot be "
    "compared with a person. Use it for many labels, whose errors average out, not for single "
    "pairs",
    "below people": "It is better than chance and worse than one more person ({gap}). Use it for "
    "many labels, best for the pairs with its highest certainty, not for single pairs",
    "like people": "It is better than chance and not significantly different from one more person "
    "({gap}). Use its labels like those of one more person",
    "above people": "It agrees with people more than one of them does with the others ({gap}). Use "
    "its labels like those of more than one person",
}


def grade(found: Plain) -> Grade:
    """The case of `TRUST` that an audit is."""
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
    """The verdict: how far they agree, what the critic can be used for, and warnings."""
    block, people = found["dims"][OVERALL], found["dims"][OVERALL]["people"]
    said = f"{found['critic']} agrees with people on {share(block['accuracy'])} of the pairs where "
    said += "they had a preference (chance: 50 %"
    if people is not None:
        said += (
            f"; where several people voted, one person agrees with the others on "
            f"{share(people['accuracy'])} and the critic on {share(people['critic'])}"
        )
    gap = "" if people is None else points(people["difference"])
    lines = [f"{said}).", f"{TRUST[grade(found)].format(gap=gap)}."]
    if grade(found) in ("above chance", "below people") and found["surest"]:
        half = min(found["surest"], key=lambda one: abs(one["share"] - 0.5))
        lines.append(
            f"On the {100 * half['share']:.0f} % of those pairs with its highest certainty it "
            f"agrees on {share(half['accuracy'])}."
        )
    return [*lines, *_warnings(found)]


def _warnings(found: Plain) -> list[str]:
    """Missing verdicts and position bias, which a good accuracy may hide."""
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
                f"It has a position bias to the {side} video ({share(place['first'])} of its "
                "decided answers are the first), and its verdict changes with the order on "
                f"{share(place['flips'])} of the pairs: ask it in both orders."
            )
    return lines


def points(difference: Plain) -> str:
    """The critic's share minus a person's in percentage points, with its interval."""
    value, low, high = (difference[name] for name in ("value", "low", "high"))
    if value is None or low is None:
        return "an unknown number of points"
    return f"{100 * value:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"


def settings_to_use(found: Plain) -> str:
    """The fitted scale and k of `preferences.rao_kupper` as settings, with a comment."""
    scale, ties = found["adapter"]["scale"], found["adapter"]["ties"]
    said = f"scale: {scale:.4g}  # P(A is better) = sigma(scale * d - ln ties)\nties: {ties:.4g}"
    if scale == 0:
        return f"{said}\n# do not use them: the calibration split does not determine them"
    if scale < 0:
        return f"{said}\n# do not use them: people prefer the videos that the critic does not"
    if found["kind"] == "pointwise":
        return f"{said}\n# d: the difference of two scores; critic=compared takes both settings"
    tone = "overconfident" if scale < 1 else "underconfident"
    return f"{said}\n# d: the critic's own log-odds; it is {tone}"


def share(estimate: Plain) -> str:
    """An estimate as a percentage with its interval."""
    if estimate["value"] is None:
        return "an unknown share"
    text = f"{100 * estimate['value']:.0f} %"
    if estimate["low"] is None:
        return text
    return f"{text} [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"
