"""diffusers' caches of network activations, switched on for one batch at a time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from threading import Lock
from typing import Any, cast

from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from torch import Tensor, nn

from ipo_lightning.backbones.denoising import Model

CACHES = (FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig)

_one_batch = Lock()
"""A cache keeps its state on the network: one batch at a time, however many threads there are."""


@contextmanager
def cached(network: Any, cache: Any, model: Model) -> Iterator[Model]:
    """Give the model whose network keeps activations from step to step, as ``cache`` says.

    The cache is new for each batch and is taken off the network after it.

    Args:
        network: a transformer of diffusers, which ``model`` calls.
        cache: one of `CACHES`, or None: the model is given as it is.
    """
    if cache is None:
        yield model
        return
    current_timestep = [0.0]

    def timed(latents: Tensor, timestep: Tensor) -> Tensor:
        current_timestep[0] = float(timestep)
        return model(latents, timestep)

    callback = {}
    if hasattr(cache, "current_timestep_callback"):
        callback["current_timestep_callback"] = lambda: current_timestep[0]
    with _one_batch:
        network.enable_cache(replace(cache, **callback))
        try:
            yield timed
        finally:
            network.disable_cache()


def cache_context(network: nn.Module, cache: Any, name: str) -> AbstractContextManager[None]:
    """Entered around a forward: tells a cache which prediction of guidance it belongs to."""
    if cache is None:
        return nullcontext()
    context: AbstractContextManager[None] = cast(Any, network).cache_context(name)
    return context
