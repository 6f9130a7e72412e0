"""Iterative preference optimisation of text-to-video diffusion transformers.

``import ipo_lightning as ipo`` offers what a run is made of, from `Store` to `RoundMaker`;
``examples/`` shows how the parts go together. A name is imported when it is first used, so that the
import itself takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipo_lightning.backbones.cogvideox import CogVideoX, Lora
    from ipo_lightning.backbones.wan import Wan
    from ipo_lightning.critics.protocols import Comparison, PairCritic, PointCritic, Rating
    from ipo_lightning.critics.stage.critique import critique_of
    from ipo_lightning.errors import InputError
    from ipo_lightning.evaluation import Evaluation
    from ipo_lightning.labelling import Labelling
    from ipo_lightning.losses import dpo_loss, kto_loss
    from ipo_lightning.module import PreferenceModule
    from ipo_lightning.parallel.runtime import Runtime
    from ipo_lightning.policy import Sampling
    from ipo_lightning.references import (
        AdapterReference,
        CachedReference,
        FrozenReference,
        MovingReference,
        NoReference,
    )
    from ipo_lightning.rounds import (
        Checkpoints,
        IterationCallback,
        PreferenceDataModule,
        RolloutPlan,
        RoundMaker,
        RoundStage,
        round_stages,
    )
    from ipo_lightning.sampling import Sampler
    from ipo_lightning.storage.layout import RunDir
    from ipo_lightning.storage.store import Store

__version__ = "0.1.0"

__all__ = [
    "AdapterReference",
    "CachedReference",
    "Checkpoints",
    "CogVideoX",
    "Comparison",
    "Evaluation",
    "FrozenReference",
    "InputError",
    "IterationCallback",
    "Labelling",
    "Lora",
    "MovingReference",
    "NoReference",
    "PairCritic",
    "PointCritic",
    "PreferenceDataModule",
    "PreferenceModule",
    "Rating",
    "RolloutPlan",
    "RoundMaker",
    "RoundStage",
    "RunDir",
    "Runtime",
    "Sampler",
    "Sampling",
    "Store",
    "Wan",
    "critique_of",
    "dpo_loss",
    "kto_loss",
    "round_stages",
]

_HOMES = {
    "backbones.cogvideox": ("CogVideoX", "Lora"),
    "backbones.wan": ("Wan",),
    "critics.protocols": ("Comparison", "PairCritic", "PointCritic", "Rating"),
    "critics.stage.critique": ("critique_of",),
    "errors": ("InputError",),
    "evaluation": ("Evaluation",),
    "labelling": ("Labelling",),
    "losses": ("dpo_loss", "kto_loss"),
    "module": ("PreferenceModule",),
    "parallel.runtime": ("Runtime",),
    "policy": ("Sampling",),
    "references": (
        "AdapterReference",
        "CachedReference",
        "FrozenReference",
        "MovingReference",
        "NoReference",
    ),
    "rounds": (
        "Checkpoints",
        "IterationCallback",
        "PreferenceDataModule",
        "RolloutPlan",
        "RoundMaker",
        "RoundStage",
        "round_stages",
    ),
    "sampling": ("Sampler",),
    "storage.layout": ("RunDir",),
    "storage.store": ("Store",),
}
"""Module -> the names of its own that are offered here."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
