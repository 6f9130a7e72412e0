"""Wan 2.1 text-to-video (1.3B, 14B and anything of their classes) through the diffusers classes.

Latents are (B, C, F, H, W), each channel of the VAE less its mean and over its standard deviation;
both, and the sampler, are read from the checkpoint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from ipo_lightning.backbones.diffusers_folder import DiffusersFolder
from ipo_lightning.backbones.lora import Lora
from ipo_lightning.backbones.network_settings import Attention, NetworkSettings, Precision
from ipo_lightning.backbones.quantised import Kind
from ipo_lightning.backbones.schedulers import FlowScheduler
from ipo_lightning.backbones.start import Start
from ipo_lightning.backbones.vae import VAEPrecision, VAESettings
from ipo_lightning.backbones.video_sampler import VideoSampler
from ipo_lightning.errors import InputError
from ipo_lightning.objectives import Density, FlowMatching, Weighting, Window
from ipo_lightning.policy import Sampling
from ipo_lightning.settings import Count, Null, Positive, Text, checked

__all__ = ["Lora", "Wan"]  # configs name the adapter by the family's module

SHIFT = {"UniPCMultistepScheduler": "flow_shift", "FlowMatchEulerDiscreteScheduler": "shift"}
"""What a scheduler calls its shift."""

FLOW: dict[str, dict[str, Any]] = {
    "UniPCMultistepScheduler": {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "use_dynamic_shifting": False,
    },
    "FlowMatchEulerDiscreteScheduler": {
        "use_dynamic_shifting": False,
        "stochastic_sampling": False,  # its noise would be the batch's, not a video's own
        "invert_sigmas": False,
    },
}
"""The settings with which a scheduler follows the path that `FlowMatching` trains on."""

ORIGINAL = (
    (r"\battn1\.", "self_attn."),
    (r"\battn2\.", "cross_attn."),
    (r"\bnorm_added_k\b", "norm_k_img"),
    (r"\badd_(k|v)_proj\b", r"\1_img"),
    (r"_attn\.to_(q|k|v)\b", r"_attn.\1"),
    (r"_attn\.to_out\.0\b", "_attn.o"),
    (r"^(blocks\.\d+)\.norm2\b", r"\1.norm3"),
    (r"^(blocks\.\d+)\.ffn\.net\.0\.proj\b", r"\1.ffn.0"),
    (r"^(blocks\.\d+)\.ffn\.net\.2\b", r"\1.ffn.2"),
    (r"^(blocks\.\d+)\.scale_shift_table\b", r"\1.modulation"),
    (r"^scale_shift_table\b", "head.modulation"),
    (r"^proj_out\b", "head.head"),
    (r"^condition_embedder\.time_proj\b", "time_projection.1"),
    (r"^condition_embedder\.(text|time)_embedder\.linear_1\b", r"\1_embedding.0"),
    (r"^condition_embedder\.(text|time)_embedder\.linear_2\b", r"\1_embedding.2"),
    (r"^condition_embedder\.image_embedder\.norm1\b", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\b", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2\b", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2\b", "img_emb.proj.4"),
)
"""Layers of diffusers -> those of Wan's own code, which most LoRA files name."""


@checked
class Wan(VideoSampler, DiffusersFolder):
    """The Wan 2.1 text-to-video family as a `Policy`.

    Args:
        path: a diffusers folder or a hub id.
        name: what people call it; part of run names and model cards, of no fingerprint.
        revision: of the hub id; None for a folder.
        num_frames, height, width: of the videos, in frames (4k + 1) and pixels.
        fps: frames per second of the mp4 files, and of critics.
        lora: train an adapter of these settings; None trains all weights.
        weighting, window, density: of the error, see `FlowMatching`.
        shift: of the noise levels, in sampling and in training alike; None takes the checkpoint's
            own. More of it spends more steps on much noise, which larger videos need.
        text_length: tokens that a prompt is padded or cut to.
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

    family = "Wan 2.1 text-to-video"
    pipeline_class = WanPipeline
    transformer_class = WanTransformer3DModel
    vae_class = AutoencoderKLWan
    text_encoder_class = UMT5EncoderModel
    samplers: ClassVar = {
        "unipc": UniPCMultistepScheduler,
        "euler": FlowMatchEulerDiscreteScheduler,
    }
    scheduler_classes = tuple(samplers.values())
    stateful_vae = True

    def __init__(
        self,
        path: Text,
        *,
        name: str = "wan",
        revision: str | None = None,
        num_frames: Count = 81,
        height: Count = 480,
        width: Count = 832,
        fps: Positive = 16,
        lora: Lora | None = None,
        weighting: Weighting = "v",
        window: Window = (0.0, 1.0),
        density: Density = "uniform",
        shift: Annotated[Positive | None, Null("the checkpoint's own")] = None,
        text_length: Count = 512,
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
        FlowMatching(1.0 if shift is None else shift, *self._objective)  # refuses wrong settings
        network = NetworkSettings(weights, quantize, compile, attention, checkpointing)
        vae = VAESettings(decode_batch, tiling, vae_dtype)
        super().__init__(
            path, revision, name, fps,
            lora=lora, network=network, vae=vae, text_dtype=text_dtype, start=start,
        )  # fmt: skip
        self._check_frames(num_frames)
        self._size, self._shift, self.text_length = (num_frames, height, width), shift, text_length

    # ---------------------------------------------------------------- what it is

    @property
    def shift(self) -> float:
        """The shift of the noise levels, see `FlowMatching`."""
        return float(self.scheduler.config[SHIFT[type(self.scheduler).__name__]])

    @cached_property
    def size(self) -> tuple[int, int, int]:
        """Frames, height and width of the videos, in pixels."""
        self._check_grid(self._size[1], self._size[2], self.config["patch_size"][1])
        return self._size

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, F, H, W) of one video."""
        frames, height, width = self.size
        ratio = self._spatial_ratio
        return (
            self._latent_channels,
            (frames - 1) // self._vae_config["scale_factor_temporal"] + 1,
            height // ratio,
            width // ratio,
        )

    @property
    def tokens(self) -> int:
        """Tokens of a video; its prompt's are not divided."""
        whole = math.prod(self.latent_shape[1:])
        return int(whole // math.prod(self.config["patch_size"]))

    @property
    def _spatial_ratio(self) -> int:
        return int(self._vae_config["scale_factor_spatial"])

    @property
    def _latent_channels(self) -> int:
        return int(self._vae_config["z_dim"])

    def original_layer(self, layer: str) -> str:
        """The name of one of the network's layers in Wan's own code."""
        for ours, theirs in ORIGINAL:
            layer = re.sub(ours, theirs, layer)
        return layer

    def _check_index(self, index: dict[str, Any]) -> None:
        super()._check_index(index)
        two = (index.get("transformer_2") or [None, None])[1] is not None
        if two or index.get("boundary_ratio") is not None:
            raise InputError(
                f"backbone.path={self.path} has one transformer for much noise and one for little "
                f"(Wan 2.2 A14B); {self.family} has one"
            )
        if index.get("expand_timesteps"):
            raise InputError(
                f"backbone.path={self.path} takes a timestep for each token (Wan 2.2 TI2V); "
                f"{self.family} takes one a video"
            )

    def _configured_scheduler(self, scheduler: Any) -> Any:
        kind, config = type(scheduler).__name__, scheduler.config
        odd = [f"{k}={config.get(k)}" for k, v in FLOW[kind].items() if config.get(k) != v]
        if odd:
            raise InputError(f"{self.path}: a {kind} with {', '.join(odd)} is not {self.family}'s")
        if self._shift is None:
            return scheduler
        return type(scheduler).from_config(config, **{SHIFT[kind]: self._shift})

    def _own_settings(self) -> list[Any]:
        return [self.text_length, self.shift]

    # ---------------------------------------------------------------- latents

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's channels, (1, C, 1, 1, 1)."""
        both = (self._vae_config["latents_mean"], self._vae_config["latents_std"])
        mean, std = (torch.tensor(one, device=like.device).view(1, -1, 1, 1, 1) for one in both)
        return mean, std

    def _from_vae(self, mean: Tensor) -> Tensor:
        channel_mean, channel_std = self._moments(mean)
        return (mean - channel_mean) / channel_std

    def _to_vae(self, latents: Tensor) -> Tensor:
        channel_mean, channel_std = self._moments(latents)
        return latents * channel_std + channel_mean

    # ---------------------------------------------------------------- the network

    def objective(self) -> FlowMatching:
        """Flow matching at the noise levels of the checkpoint's own sampler.

        The UniPC sampler of Wan's authors and of diffusers gives the network whole timesteps; the
        Euler sampler gives exact ones. The network is trained on those that it is sampled with.
        """
        whole = isinstance(self.scheduler, UniPCMultistepScheduler)
        return FlowMatching(self.shift, *self._objective, integer_timesteps=whole)

    def predict(self, network: nn.Module, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """The velocity for noised latents (B, C, F, H, W), timesteps (B,), embeddings (B, L, D)."""
        with self.network_settings.autocast(sample.device):
            velocity: Tensor = network(
                hidden_states=sample,
                timestep=timestep,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return velocity

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """(P, L, D) on the CPU, as diffusers does it: cleaned, zero beyond the prompt's tokens.

        The network sees no attention mask: the zeros are part of what it was trained on. Cleaning
        repairs broken Unicode where ftfy is installed, and only undoes HTML and spaces elsewhere.
        """
        tokens = self._tokenizer(
            [prompt_clean(prompt) for prompt in prompts],
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(device)
        encoder = self._text_encoder.to(device)
        hidden: Tensor = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state.float()
        return hidden.masked_fill(tokens.attention_mask[..., None] == 0, 0).cpu()

    # ---------------------------------------------------------------- sampling

    def check_sampling(self, sampling: Sampling) -> None:
        """Refuse with `InputError` a scheduler, guidance or cache that the family does not have."""
        super().check_sampling(sampling)
        if sampling.dynamic_guidance:
            raise InputError("dynamic_guidance=true: only CogVideoX has it; give false")

    def batch_scheduler(
        self, sampling: Sampling, seeds: Sequence[int], first: int, device: torch.device
    ) -> FlowScheduler:
        """UniPC or Euler, at the checkpoint's shift; neither draws noise for the seeds."""
        return FlowScheduler(self._scheduler_of(sampling), sampling.steps, first, device)

    def _scheduler_of(self, sampling: Sampling) -> Any:
        """The scheduler that a sampling names, with the settings of the checkpoint's own."""
        if sampling.scheduler is None:
            return self.scheduler
        kind = self.samplers[sampling.scheduler]
        if isinstance(self.scheduler, kind):
            return self.scheduler
        chosen = {**FLOW[kind.__name__], SHIFT[kind.__name__]: self.shift}
        return kind.from_config(self.scheduler.config, **chosen)
