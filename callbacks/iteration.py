"""The callback that regenerates and relabels the data between rounds, where configs look for it."""

from ipo_lightning.rounds.iteration import IterationCallback

__all__ = ["IterationCallback"]
