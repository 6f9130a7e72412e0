"""The settings of a run, kept in its checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from typing_extensions import override

from app.identity import told_changes
from app.renamed import with_new_names
from ipo_lightning.errors import InputError


class SettingsInCheckpoints(L.Callback):
    """Keeps the settings in each checkpoint, and refuses one of a run of others.

    Within a sweep checkpoints have the same names, and round 1 has the same labels.

    Args:
        settings: see `settings_of`.
    """

    def __init__(self, settings: Sequence[Mapping[str, Any]]) -> None:
        self.settings = settings

    @override
    def state_dict(self) -> dict[str, Any]:
        """The settings."""
        return {"settings": list(self.settings)}

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse a foreign one; those of before say nothing."""
        known = checkpoint["callbacks"].get(self.state_key, {}).get("settings")
        old = list(map(with_new_names, known)) if known else self.settings
        if changed := told_changes(old, self.settings):
            raise InputError(
                f"{trainer.ckpt_path} is of a run of other settings ({changed}): remove "
                "it, and the training goes on from an earlier checkpoint, or starts anew"
            )
