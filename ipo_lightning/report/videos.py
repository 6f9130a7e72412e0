"""Videos as small animated pictures within the page."""

import base64
from collections.abc import Callable
from functools import cache
from html import escape
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ipo_lightning.errors import InputError
from ipo_lightning.report.markup import Html, tag
from ipo_lightning.video import Clip, animation, read_video, spread

MAX_FRAMES = 25  # of a thumbnail
MAX_HEIGHT = 192  # px of a thumbnail; smaller videos are not scaled


class Videos:
    """Videos by name, as embedded pictures; each is made once."""

    def __init__(self, find: Callable[[str], Path], room: float = inf) -> None:
        """``room``: bytes that all pictures may have; later ones are left out."""
        self.find, self.room = find, room
        self.picture = cache(self._picture)

    def _picture(self, name: str, label: str) -> Html:
        """An ``img`` that plays the video, or a note that it is missing or there is no room."""
        if self.room <= 0:
            return tag("div", "left out: the page is full", class_="absent", title=name)
        try:
            clip = thumbnail(read_video(self.find(name)))
        except InputError:
            return tag("div", "video missing", class_="absent", title=name)
        still = data_url(animation(clip.frames[len(clip.frames) // 2][None], clip.fps, scale=1))
        calm = Html(f'<source media="(prefers-reduced-motion: reduce)" srcset="{still}">')
        moving = data_url(animation(clip.frames, clip.fps, scale=1))
        self.room -= len(moving) + len(still)
        height, width = clip.frames.shape[1:3]
        size = f'width="{width}" height="{height}"'
        image = Html(f'<img src="{moving}" alt="{escape(label)}" {size} loading="lazy">')
        return tag("picture", calm, image)

    def figure(self, name: Any, label: str, *captions: str) -> Html:
        """A playing thumbnail over lines of text."""
        known = isinstance(name, str) and bool(name)
        missing = tag("div", "no video", class_="absent")
        picture = self.picture(name, label) if known else missing
        words = [tag("span", caption) for caption in captions if caption]
        return tag("figure", picture, tag("figcaption", *words), class_="video")


def thumbnail(clip: Clip, at_most: int = MAX_FRAMES, height: int = MAX_HEIGHT) -> Clip:
    """At most 25 frames of at most 192 px, of the same duration."""
    frames = clip.frames
    kept = frames[spread(len(frames), at_most)]
    if kept.shape[1] > height:
        size = (height, round(kept.shape[2] * height / kept.shape[1]))
        pixels = kept.permute(0, 3, 1, 2).float()
        small = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        kept = small.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    return Clip(kept.contiguous(), clip.fps * len(kept) / len(frames))


def data_url(picture: bytes) -> str:
    """WebP bytes as a data URL."""
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")
