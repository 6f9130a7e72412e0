"""The VAE of a policy: pixels to latents and back, and ways to save memory meanwhile."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from threading import Lock
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ipo_lightning.errors import InputError

CPU = torch.device("cpu")


VAEPrecision = Literal["float32", "bfloat16", "float16"]


class VAESettings(NamedTuple):
    """How videos are decoded."""

    decode_batch: int = 1
    """Videos that are decoded together: memory against speed."""
    tiling: bool = False
    """Decode a video in overlapping tiles: other pixels at their seams, a part of the memory."""
    dtype: VAEPrecision = "float32"
    """Precision of its weights and arithmetic."""

    @property
    def identity(self) -> dict[str, Any]:
        """What changes pixels or latents, where it is not the default."""
        own = {"tiling": self.tiling, "vae_dtype": self.dtype}
        return {name: value for name, value in own.items() if value not in (False, "float32")}


class VideoVAE:
    """A VAE that is loaded when it is first used, and works on the device of its inputs.

    Args:
        load: gives the VAE of diffusers, in the precision of the settings.
        settings: how it decodes.
        stateful: its forwards keep state on the VAE, so that threads must take turns.
    """

    def __init__(
        self, load: Callable[[], Any], settings: VAESettings, *, stateful: bool = False
    ) -> None:
        self.settings, self._stateful = settings, stateful
        self._load = load
        self._take_turns()
        self._tiling, self._slicing, self._offload = settings.tiling, False, False

    def _take_turns(self) -> None:
        self._loading = Lock()
        self._turn: AbstractContextManager[Any] = Lock() if self._stateful else nullcontext()

    def __getstate__(self) -> dict[str, Any]:
        """Another process loads it for itself."""
        left = ("model", "_loading", "_turn")
        return {name: value for name, value in self.__dict__.items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._take_turns()

    @cached_property
    def model(self) -> Any:
        """The VAE of diffusers, frozen."""
        vae = self._load()
        if self._tiling:
            vae.enable_tiling()
        if self._slicing:
            vae.enable_slicing()
        return vae.eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Frames of each video, uint8 (T, H, W, C) on the CPU, of latents (B, C, F, H, W).

        Raises:
            InputError: the frames are not of ``size`` (height, width), where tiles do not fit it.
        """
        vae, videos = self._on(latents.device), list[Tensor]()
        for some in latents.split(self.settings.decode_batch):
            with self._turn:
                pixels = vae.decode(some.to(vae.dtype)).sample.float()  # (B, C, T, H, W) in [-1, 1]
            if pixels.shape[-2:] != size:
                raise InputError(
                    f"tiling=true: diffusers' tiles of this VAE do not fit {size[0]} x {size[1]} "
                    "pixels; give false"
                )
            frames = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
            videos.extend(frames.permute(0, 2, 3, 4, 1).cpu())
        if self._offload:
            self._on(CPU)
        return videos

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """The posterior's mean (B, C, F, H, W), float32, of videos uint8 (B, T, H, W, C)."""
        vae = self._on(frames.device)
        pixels = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        with self._turn:
            mean: Tensor = vae.encode(pixels.to(vae.dtype)).latent_dist.mean
        return mean.float()

    def save_memory(self, *, tiling: bool, slicing: bool, offload: bool) -> None:
        """Load it anew with these ways to save memory, see `Policy.save_memory`."""
        self._tiling = tiling or self.settings.tiling
        self._slicing, self._offload = slicing, offload
        self.release()

    def release(self) -> None:
        """Give back its memory; it is loaded again when it is next used."""
        self.__dict__.pop("model", None)

    def _on(self, device: torch.device) -> Any:
        with self._loading:  # threads that decode side by side must not load it twice
            return self.model.to(device)
