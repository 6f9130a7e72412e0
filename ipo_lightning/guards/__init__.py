"""Guards: what may be wrong with a run whose scores rise, looked for after every round."""

from ipo_lightning.guards.best import best_of, chosen_by
from ipo_lightning.guards.gauges import Diversity, Drift, GaugeBand
from ipo_lightning.guards.guard import Finding, Guard, RoundFacts
from ipo_lightning.guards.judge import CriticAlone, JudgeFell, NotBetter
from ipo_lightning.guards.labels import FewLabels, WinnersError
from ipo_lightning.guards.panel import Guards, alarms

__all__ = [
    "CriticAlone",
    "Diversity",
    "Drift",
    "FewLabels",
    "Finding",
    "GaugeBand",
    "Guard",
    "Guards",
    "JudgeFell",
    "NotBetter",
    "RoundFacts",
    "WinnersError",
    "alarms",
    "best_of",
    "chosen_by",
]
