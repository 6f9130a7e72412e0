"""diffusers' caches of network activations, switched on for one batch at a time.

A cache is known by its class: whichever `enable_cache` of the installed diffusers takes. What its
fields ask for by their names, such as the number of steps, is filled in for each batch.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from threading import Lock
from typing import Any, cast

from diffusers import FasterCacheConfig
from diffusers import hooks as diffusers_hooks
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

from ipo_lightning.backbones.denoising import Model
from ipo_lightning.backbones.schedulers import BatchScheduler
from ipo_lightning.errors import InputError
from ipo_lightning.policy import Sampling

LAYERS = [r"[^.]*blocks\.\d+\.(attn\d*|ffn?)"]
"""Attention and feed-forward of every block: of these families, TaylorSeer's own patterns match
none."""
COUNTS_NO_FORWARDS = ("FirstBlockCacheConfig", "SeaCacheConfig")
"""Caches that may pass over steps of one prediction: they compare what they see, and keep what
belongs to each prediction apart."""
MIXES_FORWARDS = ("FasterCacheConfig", "PyramidAttentionBroadcastConfig")
"""Caches that do not keep apart what belongs to two forwards of a step."""

_one_batch = Lock()
"""A cache keeps its state on the network: one batch at a time, however many threads there are."""


def cache_kinds() -> dict[str, type]:
    """The classes of cache configs that the installed diffusers has, by name."""
    named = CacheMixin.enable_cache.__code__.co_varnames  # what it imports, to tell them apart
    kinds = {name: getattr(diffusers_hooks, name, None) for name in named}
    return {name: kind for name, kind in kinds.items() if inspect.isclass(kind)
            and name.endswith("Config")}  # fmt: skip


class Place:
    """Where a batch is on its way from noise to clean latents, for the cache on its network.

    Args:
        network: that has a cache; None: there is none.
        scheduler: of the batch.
    """

    def __init__(self, network: Any = None, scheduler: BatchScheduler | None = None) -> None:
        self._network, self._scheduler = network, scheduler
        self._facts: dict[str, Any] = {}

    @property
    def timestep(self) -> float:
        """The timestep of the step that is being made."""
        return float(self._facts.get("timestep", 0.0))

    def following(self, model: Model) -> Model:
        """A model that tells each of its steps before it makes it."""
        if self._network is None:
            return model

        def following(latents: Tensor, timestep: Tensor) -> Tensor:
            self._facts = self._at(float(timestep))
            return model(latents, timestep)

        return following

    def context(self, name: str) -> AbstractContextManager[None]:
        """Entered around a forward: tells a cache which prediction of guidance it belongs to."""
        if self._network is None:
            return nullcontext()
        enter = self._network.cache_context
        kinds = [one.kind for one in inspect.signature(enter).parameters.values()]
        facts = self._facts if inspect.Parameter.VAR_KEYWORD in kinds else {}
        return cast(AbstractContextManager[None], enter(name, **facts))

    def _at(self, timestep: float) -> dict[str, Any]:
        """What diffusers' `CacheContext` holds of a step; sigma as flow matching has it, in [0, 1]:
        the share of noise in what the network sees."""
        scheduler = cast(BatchScheduler, self._scheduler)
        timesteps = scheduler.timesteps.tolist()
        i = timesteps.index(timestep)
        return {"step_index": i, "num_inference_steps": len(timesteps), "timestep": timestep,
                "sigma": scheduler.noise_level(i)}  # fmt: skip


@contextmanager
def cached(
    network: Any,
    cache: Any,
    scheduler: BatchScheduler,
    steps: range,
    frames_first: bool,
) -> Iterator[Place]:
    """Let a network keep activations from step to step, as ``cache`` says.

    The cache is new for each batch and is taken off the network after it.

    Args:
        network: a transformer of diffusers.
        cache: a config of one of `cache_kinds`, or None: nothing is kept.
        scheduler: of the batch. steps: those of its steps that the batch makes.
        frames_first: whether latents are (B, F, C, H, W).
    """
    if cache is None:
        yield Place()
        return
    place = Place(network, scheduler)
    config = filled(cache, len(scheduler.timesteps), steps, frames_first, lambda: place.timestep)
    with _one_batch:
        network.enable_cache(config)
        try:
            yield place
        finally:
            network.disable_cache()


def filled(
    cache: Any,
    total: int,
    steps: range,
    frames_first: bool,
    current_timestep: Callable[[], float] = float,
) -> Any:
    """A cache config with what its fields ask for by their names.

    Args:
        total: steps of the sampling. steps: those of them that it is used for.
        frames_first: whether latents are (B, F, C, H, W).
        current_timestep: tells the timestep of the step that is being made.
    """

    def raw_vision(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
        """Latents of the videos in a forward, each (C, F, H, W)."""
        sample = kwargs["hidden_states"]
        return list((sample.transpose(1, 2) if frames_first else sample).unbind())

    asked: dict[str, Any] = {
        "current_timestep_callback": current_timestep,
        "raw_vision_callback": raw_vision,
        "num_inference_steps": total,
    }
    own = {field.name: getattr(cache, field.name) for field in fields(cache)}
    if not any(own.get(name) for name in ("skip_predict_identifiers", "use_lite_mode")):
        asked["cache_identifiers"] = own.get("cache_identifiers") or LAYERS
    whole = replace(cache, **{name: value for name, value in asked.items() if name in own})
    if own.get("mag_ratios") is None:
        return whole
    return replace(  # diffusers has made them as many as there are steps
        whole, mag_ratios=whole.mag_ratios[steps.start : steps.stop], num_inference_steps=len(steps)
    )


# -------------------------------------------------------------------- early checks


def check_cache(sampling: Sampling, network: Any, together: bool, frames_first: bool) -> None:
    """Refuse a cache that diffusers does not have, or that would do nothing or harm here.

    Args:
        network: a small one of the family, to try it on.
        together: whether both predictions of guidance, if any, are made in one forward.
        frames_first: whether latents are (B, F, C, H, W).

    Raises:
        InputError: says what to give instead.
    """
    cache, name = sampling.cache, type(sampling.cache).__name__
    if not isinstance(cache, tuple(cache_kinds().values())):
        raise InputError(f"cache={name}: choose one of {', '.join(cache_kinds())}")
    _check_guidance(sampling, together)
    if isinstance(cache, FasterCacheConfig):
        _check_faster(cache, sampling.guided, "BFCHW" if frames_first else "BCFHW")
    try:
        network.enable_cache(filled(cache, sampling.steps, range(sampling.steps), frames_first))
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"cache={name}: {error}") from error
    if not any(_has_hooks(part) for part in network.modules() if part is not network):
        raise InputError(
            f"cache={name}: it finds no layer to keep in a {type(network).__name__}; it is made "
            "for other models, or its patterns of layers' names match none"
        )


def _check_guidance(sampling: Sampling, together: bool) -> None:
    name = type(sampling.cache).__name__
    interval = 0 < len(sampling.guided_steps) < sampling.steps
    if interval and name not in COUNTS_NO_FORWARDS:
        raise InputError(
            f"guidance_interval with cache={name}, which counts on the same predictions at every "
            f"step; give one of the two, or a cache of {', '.join(COUNTS_NO_FORWARDS)}"
        )
    if name in MIXES_FORWARDS and not together:
        raise InputError(
            f"cache={name}: it needs both predictions of guidance in one forward (of two it takes "
            "one's results for the other), and here a step takes two; give guidance_forwards=1, "
            "or FirstBlockCacheConfig"
        )


def _check_faster(cache: Any, guided: bool, layout: str) -> None:
    if not (guided or cache.is_guidance_distilled) or cache.tensor_format != layout:
        raise InputError(
            "cache=FasterCacheConfig: it halves the work of guidance, so give a guidance_scale "
            f"above 1, and tensor_format={layout} for this family"
        )


def _has_hooks(part: nn.Module) -> bool:
    registry = getattr(part, "_diffusers_hook", None)
    return registry is not None and bool(registry.hooks)
