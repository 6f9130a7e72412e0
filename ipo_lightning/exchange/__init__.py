"""Preference data in and out, a file a format; `read_preferences` reads them all."""

from ipo_lightning.exchange.reading import (
    FORMATS,
    Preferences,
    read_any,
    read_preferences,
    video_file,
    video_place,
)

__all__ = [
    "FORMATS",
    "Preferences",
    "read_any",
    "read_preferences",
    "video_file",
    "video_place",
]
