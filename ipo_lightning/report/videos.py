"""Videos as small animated pictures within the page."""

import base64
from collections.abc import Callable
from functools import cache
from html import escape
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

    def __init__(self, find: Callable[[str], Path]) -> None:
        self.find = find
        self.picture = cache(self._picture)

    def _picture(self, name: str, label: str) -> Html:
        """An ``img`` that plays the video, or a note that it is missing."""
        try:
            clip = thumbnail(read_video(self.find(name)))
        except InputError:
            return tag("div", "video missing", class_="absent", title=name)
        still = data_url(animation(clip.frames[len(clip.frames) // 2][None], clip.fps, scale=1))
        calm = Html(f'<source media="(prefers-reduced-motion: reduce)" srcset="{still}">')
        moving = data_url(animation(clip.frames, clip.fps, scale=1))
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


def thumbnail(clip: Clip) -> Clip:
    """At most 25 frames of at most 192 px, of the same duration."""
    frames = clip.frames
    kept = frames[spread(len(frames), MAX_FRAMES)]
    if kept.shape[1] > MAX_HEIGHT:
        size = (MAX_HEIGHT, round(kept.shape[2] * MAX_HEIGHT / kept.shape[1]))
        pixels = kept.permute(0, 3, 1, 2).float()
        small = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        kept = small.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    return Clip(kept.contiguous(), clip.fps * len(kept) / len(frames))


def data_url(picture: bytes) -> str:
    """WebP bytes as a data URL."""
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")
