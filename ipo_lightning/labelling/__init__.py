"""Verdicts to pairs or points: pure functions, whose results do not depend on the input's order.

Whatever gives no label is counted under a reason. Ties are dropped: no order breaks them.
"""

from ipo_lightning.labelling.drafts import Drafts
from ipo_lightning.labelling.filters import Filters
from ipo_lightning.labelling.labeller import Labelling, Labels
from ipo_lightning.labelling.rules import (
    Acceptance,
    Couple,
    PairRule,
    all_pairs,
    best_versus_worst,
    top_against_bottom,
    widest,
)
from ipo_lightning.labelling.standings import Standing, compared, rated
from ipo_lightning.labelling.weights import (
    PairWeight,
    by_certainty,
    by_edge,
    by_margin,
    by_rarity,
    uniform,
)

__all__ = [
    "Acceptance",
    "Couple",
    "Drafts",
    "Filters",
    "Labelling",
    "Labels",
    "PairRule",
    "PairWeight",
    "Standing",
    "all_pairs",
    "best_versus_worst",
    "by_certainty",
    "by_edge",
    "by_margin",
    "by_rarity",
    "compared",
    "rated",
    "top_against_bottom",
    "uniform",
    "widest",
]
