"""The datamodule that streams critic-labelled pairs and points; it is part of the library."""

from ipo_lightning.rounds.datamodule import PreferenceDataModule

__all__ = ["PreferenceDataModule"]
