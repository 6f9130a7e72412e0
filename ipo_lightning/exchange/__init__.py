"""Preference data of other projects: read, written and converted, one module a format."""

from ipo_lightning.exchange.reading import (
    FORMATS,
    Preferences,
    read_any,
    read_preferences,
)
from ipo_lightning.exchange.videos import Finder, Named, unpack, video_file, video_place, videos_of

__all__ = [
    "FORMATS",
    "Finder",
    "Named",
    "Preferences",
    "videos_of",
    "read_any",
    "read_preferences",
    "unpack",
    "video_file",
    "video_place",
]
