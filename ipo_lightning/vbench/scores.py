"""VBench's scores of its dimensions' values, by the constants of its leaderboard.

Huang et al., arXiv 2311.17982; github.com/Vchitect/VBench, ``scripts/constant.py``. Values and
scores are in [0, 1] where VBench's tables give percent. Nothing is clipped: a value below a
dimension's lowest counts below 0, as there.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ipo_lightning.errors import InputError


class Scale(NamedTuple):
    """The values of a dimension that count as 0 and as 1, and its weight in its group."""

    low: float
    high: float
    weight: float = 1.0


class Totals(NamedTuple):
    """VBench's three scores; they exist for all of its dimensions together only."""

    quality: float
    semantic: float
    total: float


QUALITY: Mapping[str, Scale] = {
    "subject_consistency": Scale(0.1462, 1.0),
    "background_consistency": Scale(0.2615, 1.0),
    "temporal_flickering": Scale(0.6293, 1.0),
    "motion_smoothness": Scale(0.706, 0.9975),
    "dynamic_degree": Scale(0.0, 1.0, weight=0.5),
    "aesthetic_quality": Scale(0.0, 1.0),
    "imaging_quality": Scale(0.0, 1.0),
}
SEMANTIC: Mapping[str, Scale] = {
    "object_class": Scale(0.0, 1.0),
    "multiple_objects": Scale(0.0, 1.0),
    "human_action": Scale(0.0, 1.0),
    "color": Scale(0.0, 1.0),
    "spatial_relationship": Scale(0.0, 1.0),
    "scene": Scale(0.0, 0.8222),
    "appearance_style": Scale(0.0009, 0.2855),
    "temporal_style": Scale(0.0, 0.364),
    "overall_consistency": Scale(0.0, 0.364),
}
DIMENSIONS: Mapping[str, Scale] = {**QUALITY, **SEMANTIC}
GROUP_WEIGHTS = 4.0, 1.0
"""Of the quality and of the semantic score in the total."""


def scaled(dimension: str, value: float) -> float:
    """A dimension's value on the common scale, where 0 is its lowest and 1 its highest."""
    scale = DIMENSIONS[dimension]
    return (value - scale.low) / (scale.high - scale.low)


def totals(values: Mapping[str, float]) -> Totals:
    """VBench's scores of the values of all 16 dimensions.

    VBench's own script counts a dimension that is missing as 0; here it has no total.

    Raises:
        InputError: a dimension is missing.
    """
    missing = [name for name in DIMENSIONS if name not in values]
    if missing:
        raise InputError(f"VBench's scores need all {len(DIMENSIONS)} dimensions; {len(missing)} "
                         f"are missing: {', '.join(missing)}")  # fmt: skip
    quality, semantic = (weighted_mean(values, group) for group in (QUALITY, SEMANTIC))
    of_quality, of_semantic = GROUP_WEIGHTS
    total = (of_quality * quality + of_semantic * semantic) / (of_quality + of_semantic)
    return Totals(quality, semantic, total)


def weighted_mean(values: Mapping[str, float], group: Mapping[str, Scale] = DIMENSIONS) -> float:
    """Weighted mean of the scaled values of a group's dimensions, of those that there are.

    Of some of a group it is a partial mean: comparable with those of the same dimensions only, and
    none of VBench's scores.

    Raises:
        InputError: there is none.
    """
    present = {name: scale.weight for name, scale in group.items() if name in values}
    if not present:
        raise InputError(f"no dimension of {', '.join(group)}")
    total = sum(weight * scaled(name, values[name]) for name, weight in present.items())
    return total / sum(present.values())
