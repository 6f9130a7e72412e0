"""CogVideoX 1.0 and 1.5 (2B, 5B and anything of their classes) through the diffusers classes.

Latents are (B, F, C, H, W), scaled by the VAE's ``scaling_factor``; what differs between
checkpoints (``snr_shift_scale``, scale, rotary positions, text length, patches in time) is read
from their configs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, cast

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor, nn
from transformers import T5EncoderModel

from ipo_lightning.backbones.diffusers_folder import DiffusersFolder
from ipo_lightning.backbones.lora import Lora
from ipo_lightning.backbones.network_settings import Attention, NetworkSettings, Precision
from ipo_lightning.backbones.quantised import Kind
from ipo_lightning.backbones.schedulers import (
    BatchScheduler,
    StochasticDPMScheduler,
    VPredictionScheduler,
)
from ipo_lightning.backbones.start import Start
from ipo_lightning.backbones.vae import VAEPrecision, VAESettings
from ipo_lightning.backbones.video_sampler import VideoSampler
from ipo_lightning.errors import InputError
from ipo_lightning.objectives import Density, VPrediction, Weighting, Window
from ipo_lightning.policy import Sampling
from ipo_lightning.settings import Count, Null, Positive, Text, checked

__all__ = ["CogVideoX", "Lora"]  # configs name the adapter by the family's module


@checked
class CogVideoX(VideoSampler, DiffusersFolder):
    """The CogVideoX family as a `Policy`.

    The transformer of 1.5 takes latent frames two by two. Where their number is odd, as of 81
    frames, one more is sampled at the front and never decoded, and real videos start with a second
    copy of their first latent frame, as in the authors' training script.

    Args:
        path: a diffusers folder or a hub id.
        name: what people call it; part of run names and model cards, of no fingerprint.
        revision: of the hub id; None for a folder.
        num_frames, height, width: of the videos, in frames (4k + 1) and pixels; None takes the
            checkpoint's own.
        fps: frames per second of the mp4 files, and of critics.
        lora: train an adapter of these settings; None trains all weights.
        weighting, window, density: of the error, see `VPrediction`.
        checkpointing: gradient checkpointing, which recomputes activations in the backward: about
            a third more time for a small part of the memory; needed at real sizes.
        decode_batch: videos that the VAE decodes together: memory against speed.
        weights, quantize, compile, attention: see `NetworkSettings`.
        text_dtype: precision in which the text encoder is loaded.
        vae_dtype: precision in which the VAE decodes and encodes: half the memory of decoding in
            bfloat16 or float16, and pixels that differ a little.
        tiling: decode a video in overlapping tiles: other pixels at their seams, a part of the
            memory.
        start: weights to begin with in place of the base model's; None: its own.
    """

    family = "CogVideoX"
    pipeline_class = CogVideoXPipeline
    transformer_class = CogVideoXTransformer3DModel
    vae_class = AutoencoderKLCogVideoX
    text_encoder_class = T5EncoderModel
    samplers: ClassVar = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}
    scheduler_classes = tuple(samplers.values())
    guidance_videos = 2
    frames_first = True

    def __init__(
        self,
        path: Text,
        *,
        name: str = "cogvideox",
        revision: str | None = None,
        num_frames: Annotated[Count | None, Null("the checkpoint's own")] = None,
        height: Annotated[Count | None, Null("the checkpoint's own")] = None,
        width: Annotated[Count | None, Null("the checkpoint's own")] = None,
        fps: Positive = 8,
        lora: Lora | None = None,
        weighting: Weighting = "v",
        window: Window = (0.0, 1.0),
        density: Density = "uniform",
        checkpointing: bool = False,
        decode_batch: Count = 1,
        weights: Precision = "float32",
        quantize: Kind | None = None,
        compile: bool = False,
        attention: Attention | None = None,
        text_dtype: Precision = "float32",
        vae_dtype: VAEPrecision = "float32",
        tiling: bool = False,
        start: Start | None = None,
    ) -> None:
        self._objective = (weighting, (window[0], window[1]), density)
        VPrediction(torch.ones(1), *self._objective)  # refuses wrong settings, reads no file
        network = NetworkSettings(weights, quantize, compile, attention, checkpointing)
        vae = VAESettings(decode_batch, tiling, vae_dtype)
        super().__init__(
            path, revision, name, fps,
            lora=lora, network=network, vae=vae, text_dtype=text_dtype, start=start,
        )  # fmt: skip
        self._check_frames(num_frames)
        self._size = (num_frames, height, width)

    # ---------------------------------------------------------------- what it is

    @cached_property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of the videos, in pixels."""
        frames, height, width = self._size
        ratio, largest = self._spatial_ratio, self._largest
        size = (
            frames or self.config["sample_frames"],
            height or largest[0] * ratio,
            width or largest[1] * ratio,
        )
        self._check_grid(size[1], size[2], self.config["patch_size"])
        beyond = size[1] > largest[0] * ratio or size[2] > largest[1] * ratio
        if beyond and self._patch_frames > 1:
            raise InputError(
                f"backbone: {size[1]} x {size[2]} pixels; this checkpoint has positions for "
                f"{largest[0] * ratio} x {largest[1] * ratio}"
            )
        return size

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(F, C, H, W) of one video, with the frames that fill the last patch."""
        frames, height, width = self.size
        ratio = self._spatial_ratio
        return (
            self._latent_frames + self._fill,
            self._latent_channels,
            height // ratio,
            width // ratio,
        )

    @property
    def tokens(self) -> int:
        """Tokens of a video and its prompt, which attention sees together."""
        frames, _, height, width = self.latent_shape
        patch = self.config["patch_size"]
        video = frames // self._patch_frames * (height // patch) * (width // patch)
        return int(video + self.config["max_text_seq_length"])

    @property
    def _spatial_ratio(self) -> int:
        return int(2 ** (len(self._vae_config["block_out_channels"]) - 1))

    @property
    def _latent_channels(self) -> int:
        return int(self._vae_config["latent_channels"])

    @property
    def _largest(self) -> tuple[int, int]:
        """Height and width that the transformer was made for, in latents."""
        return self.config["sample_height"], self.config["sample_width"]

    @property
    def _latent_frames(self) -> int:
        return int((self.size[0] - 1) // self._vae_config["temporal_compression_ratio"] + 1)

    @property
    def _patch_frames(self) -> int:
        """Latent frames in a patch: 1 before CogVideoX 1.5."""
        return int(self.config.get("patch_size_t") or 1)

    @property
    def _fill(self) -> int:
        """Latent frames at the front that only fill the last patch."""
        return -self._latent_frames % self._patch_frames

    def _from_vae(self, mean: Tensor) -> Tensor:
        latents = mean.permute(0, 2, 1, 3, 4) * self._vae_config["scaling_factor"]
        return torch.cat([latents[:, :1]] * self._fill + [latents], dim=1)

    def _to_vae(self, latents: Tensor) -> Tensor:
        seen = latents[:, self._fill :]
        return seen.permute(0, 2, 1, 3, 4) / self._vae_config["scaling_factor"]

    # ---------------------------------------------------------------- the network

    def objective(self) -> VPrediction:
        """v-prediction on the checkpoint's own schedule."""
        return VPrediction(self.scheduler.alphas_cumprod, *self._objective)

    def predict(self, network: nn.Module, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """v for noised latents (B, F, C, H, W), timesteps (B,) and prompt embeddings (B, L, D)."""
        with self.network_settings.autocast(sample.device):
            v: Tensor = network(
                hidden_states=sample,
                encoder_hidden_states=text,
                timestep=timestep,
                image_rotary_emb=self._rotary(sample),
                return_dict=False,
            )[0]
        return v

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """(P, L, D) on the CPU, as diffusers does it: padded to full length, no attention mask."""
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.config["max_text_seq_length"],
            truncation=True,
            return_tensors="pt",
        )
        encoder = self._text_encoder.to(device)
        return cast(Tensor, encoder(tokens.input_ids.to(device))[0]).float().cpu()

    # ---------------------------------------------------------------- sampling

    def batch_scheduler(
        self, sampling: Sampling, seeds: Sequence[int], first: int, device: torch.device
    ) -> BatchScheduler:
        """DDIM, or the stochastic DPM with each video's own noise."""
        scheduler = self.scheduler
        if sampling.scheduler is not None:
            kind = self.samplers[sampling.scheduler]
            scheduler = kind.from_config(scheduler.config, timestep_spacing="trailing")
        if isinstance(scheduler, CogVideoXDDIMScheduler):
            return VPredictionScheduler(scheduler, sampling.steps, device)
        return StochasticDPMScheduler(scheduler, sampling.steps, seeds, device)

    def guidance_scale_at(self, sampling: Sampling, timestep: Tensor) -> float:
        """The guidance scale at a timestep ().

        The dynamic one is diffusers' ``use_dynamic_cfg`` to the letter, which the IPO authors
        sample with: it mixes the timestep (0 to 999) with the number of steps, so that at 50 steps
        it is no ramp but goes up and down between 1 and 1 + guidance_scale.
        """
        if not sampling.dynamic_guidance:
            return sampling.guidance_scale
        share = (sampling.steps - timestep.item()) / sampling.steps
        return 1 + sampling.guidance_scale * ((1 - math.cos(math.pi * share**5.0)) / 2)

    def _rotary(self, sample: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rotary positions for latents (B, F, C, H, W); None for the 2B family."""
        if not self.config["use_rotary_positional_embeddings"]:
            return None
        frames, _, height, width = sample.shape[1:]
        return _rotary_table(
            self.config["attention_head_dim"],
            (height, width),
            self._largest,
            frames,
            self.config["patch_size"],
            self.config.get("patch_size_t"),
            sample.device,
        )


@lru_cache(maxsize=8)
def _rotary_table(
    head_dim: int,
    latent_size: tuple[int, int],
    sample_size: tuple[int, int],
    frames: int,
    patch: int,
    patch_frames: int | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of CogVideoX's three-dimensional rotary positions.

    In 1.0 those of the trained size are stretched over the video; in 1.5 (``patch_frames`` set)
    they are whole numbers, and a smaller video takes the first of them.
    """
    grid = (latent_size[0] // patch, latent_size[1] // patch)
    trained = (sample_size[0] // patch, sample_size[1] // patch)
    if patch_frames is None:
        crops = get_resize_crop_region_for_grid(grid, trained[1], trained[0])
        places = {"crops_coords": crops, "temporal_size": frames}
    else:
        steps = -(-frames // patch_frames)
        places = {"crops_coords": None, "temporal_size": steps, "grid_type": "slice"}
        places["max_size"] = trained
    return get_3d_rotary_pos_embed(embed_dim=head_dim, grid_size=grid, device=device, **places)
