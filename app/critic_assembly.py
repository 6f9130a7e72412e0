"""From a composed conf/train_critic.yaml to a trained critic's folder."""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from omegaconf import DictConfig
from typing_extensions import override

from app.assembly import make_trainer, optimizer_of, shows_bars
from app.claiming import leads
from app.entry import build
from app.identity import Identity, identity_of
from app.keys import make
from app.loggers import log_settings
from app.process import accelerator_of
from data.critic_datamodule import CriticDataModule
from ipo_lightning.errors import InputError
from ipo_lightning.parallel.signals import Stopped, StopSignals
from ipo_lightning.reward.module import RewardModule, measure_scale
from ipo_lightning.rounds.checkpoints import fault_of
from ipo_lightning.rounds.trainer import check_whole_epochs
from ipo_lightning.storage.layout import RunDir
from ipo_lightning.storage.manifest import Manifest, read_manifest, stat_of
from ipo_lightning.storage.run_files import DamagedFile, read_content, read_object
from ipo_lightning.storage.store import (
    Store,
    file_sha256,
    remove,
    replaced_folder,
    write_atomically,
)

FIGURES = "figures.json"
"""In the critic's folder: what it reached on the held-out prompts; there, it is finished."""
REMAKE = "remove the folder that it is in: the same command makes it again"
LABELS = "labels.json"
"""In the run's folder: fingerprint of the labels that it is trained on."""

LENGTH = "stopping.epochs and stopping.patience say when the training ends"


class LeaveAtOnce(L.Callback):
    """Leaves the fit on a signal: the next one goes on from the last look at held-out prompts.

    Args:
        requeue: see `StopSignals`.
    """

    def __init__(self, requeue: bool) -> None:
        self.signals = StopSignals(requeue)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning has set its own handlers by now."""
        self.signals.install(trainer)

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Another rank, or a loader's worker, may have left before this process."""
        if not isinstance(exception, Stopped):
            self.signals.leave()

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The fit is over."""
        self.signals.restore()


@dataclass(frozen=True)
class CriticParts:
    """Everything that a critic's training is made of, before the trainer."""

    run: RunDir
    module: RewardModule
    datamodule: CriticDataModule

    @property
    def folder(self) -> Path:
        """Where the trained critic goes."""
        return self.run.path / "critic"

    @property
    def checkpoints(self) -> Path:
        """``best.ckpt`` and ``last.ckpt``."""
        return self.run.path / "checkpoints"

    @property
    def critic_words(self) -> str:
        """How the trained critic is chosen on a command line."""
        multimodal = (self.folder / "rubric.txt").is_file()
        kind = "critic=reward critic.model" if multimodal else "critic=trained critic.path"
        return f"{kind}={self.folder}"

    def identity(self, cfg: DictConfig) -> Identity:
        """What the critic is made of beside its settings; its labels have a file of their own."""
        return identity_of(cfg, [self.datamodule], {})

    def figures(self) -> dict[str, float] | None:
        """Those of the finished critic; None where there is none yet."""
        file = self.folder / FIGURES
        if not file.exists() or self._faults():
            return None
        try:
            found: dict[str, float] = json.loads(read_content(file, REMAKE))  # some may be NaN
            return {name: float(value) for name, value in found.items()} | {
                name: found[name] for name in ("training", "validation", "valid/loss")
            }
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, DamagedFile):
                raise
            raise DamagedFile(file, "no figures of a critic", REMAKE) from error

    def _faults(self) -> list[str]:
        """Files of the finished critic that are gone, or not as they were written, with a warning;
        its figures are read by themselves."""
        path, known = self.run.path, read_manifest(self.run.path, 0)
        names = [name for name in known.files if not known.unchanged(path, name)]
        if names:
            warnings.warn(
                f"{path / names[0]} is gone, or not as it was written; the critic is made anew of "
                f"{self.checkpoints}",
                stacklevel=3,
            )
        return names


def assemble(cfg: DictConfig) -> CriticParts:
    """Instantiate the parts; labels are read, no network is loaded yet."""
    module = make(
        RewardModule,
        cfg,
        build(cfg.network, "network"),
        build(cfg.reward_loss, "reward_loss"),
        optimizer_of(cfg),
    )
    family = module.family
    datamodule: CriticDataModule = build(
        cfg.data, "data", dims=family.dims, inputs=family.inputs, label_kind=module.label_kind,
        seed=cfg.seed, store=Store(cfg.paths.store),
    )  # fmt: skip
    return CriticParts(RunDir(f"{cfg.paths.outputs}/{cfg.name}"), module, datamodule)


def plan(parts: CriticParts, cfg: DictConfig) -> str:
    """What there is to train on, and how long at most."""
    data = parts.datamodule
    kind = "pairs" if parts.module.label_kind == "pairwise" else "rated videos"
    known = [
        sum(not math.isnan(one.labels[i]) for one in data.train) for i in range(len(data.dims))
    ]
    labels = ", ".join(f"{name} {count}" for name, count in zip(data.dims, known, strict=True))
    batch = data.batch_size * cfg.trainer.accumulate_grad_batches
    state = "finished" if parts.figures() else "to train"
    return (
        f"critic {parts.folder}: {state}\n"
        f"{len(data.train)} {kind} to train on (labels: {labels}), {len(data.valid)} held out\n"
        f"at most {cfg.stopping.epochs} looks at these, {data.optimizer_steps} optimizer steps of "
        f"{batch} {kind} a device before each; stops after {cfg.stopping.patience} without a "
        "lower loss"
    )


def claim_labels(parts: CriticParts) -> None:
    """Write down which labels the critic is trained on, or refuse others under its name.

    Raises:
        InputError: the file of preferences has changed since.
    """
    file = parts.run.path / LABELS
    known = read_object(file).get("content") if file.exists() else parts.datamodule.content
    if known != parts.datamodule.content:
        raise InputError(
            f"data.path={parts.datamodule.path}: the labels are not those that {parts.run.path} "
            "was begun with; give another name=NAME"
        )
    if leads():
        write_atomically(file, json.dumps({"content": parts.datamodule.content}).encode())


def fit(parts: CriticParts, cfg: DictConfig) -> dict[str, float]:
    """Train, from the newest checkpoint on; then write the best look's critic, with its scale."""
    trainer = build_trainer(parts, cfg)
    log_settings(trainer, cfg)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    last = whole_checkpoint(parts)
    trainer.fit(
        parts.module,
        datamodule=parts.datamodule,
        ckpt_path=last,
        weights_only=True,
    )
    best = str(parts.checkpoints / "best.ckpt")
    (found,) = trainer.validate(
        parts.module, datamodule=parts.datamodule, ckpt_path=best, verbose=False, weights_only=True
    )
    figures = {name: float(value) for name, value in sorted(found.items())}
    figures |= {"training": len(parts.datamodule.train), "validation": len(parts.datamodule.valid)}
    if trainer.is_global_zero:
        export(parts, figures, torch.device("cpu" if accelerator_of(cfg) == "cpu" else "cuda"))
    trainer.strategy.barrier()
    return figures


def whole_checkpoint(parts: CriticParts) -> str | None:
    """The last checkpoint; without it, or the best one, the training starts anew."""
    files = [parts.checkpoints / name for name in ("last.ckpt", "best.ckpt")]
    if not any(file.exists() or file.is_symlink() for file in files):
        return None
    for file in files:
        if fault := fault_of(file):
            warnings.warn(f"{file} is damaged ({fault}); the critic is trained anew", stacklevel=2)
            for one in files:
                remove(one)
            return None
    return str(files[0])


def build_trainer(parts: CriticParts, cfg: DictConfig) -> L.Trainer:
    """Lightning's trainer: an epoch is the updates between two looks at the held-out prompts."""
    best = ModelCheckpoint(
        parts.checkpoints,
        "best",
        monitor="valid/loss",
        save_last=True,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    stop = EarlyStopping(
        "valid/loss", patience=cfg.stopping.patience, check_on_train_epoch_end=True
    )
    bar = [TQDMProgressBar()] if shows_bars(cfg) else []
    if cfg.trainer.get("max_time") is not None:
        expected = f"the critic would count as trained before it is: leave it out; {LENGTH}"
        raise InputError(setting="trainer.max_time", value=cfg.trainer.max_time, expected=expected)
    trainer = make_trainer(
        cfg,
        parts.run,
        max_epochs=cfg.stopping.epochs,
        callbacks=[*bar, stop, best, LeaveAtOnce(cfg.requeue)],
        num_sanity_val_steps=0,
    )
    check_whole_epochs(trainer, LENGTH)
    return trainer


def export(parts: CriticParts, figures: Mapping[str, float], device: torch.device) -> None:
    """Write the critic's folder, whole or not at all."""
    network = parts.module.network
    scale = measure_scale(network, parts.datamodule.videos(), device)
    with replaced_folder(parts.folder) as folder:
        parts.module.family.export(network.cpu(), folder, scale)
        record(parts, folder)
        (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n")


def record(parts: CriticParts, folder: Path) -> None:
    """Write down what the critic's files are, which lie in ``folder`` now: into ``hashes.json``."""
    base = parts.folder.relative_to(parts.run.path)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    names = [(base / file.relative_to(folder)).as_posix() for file in files]
    hashes = dict(zip(names, map(file_sha256, files), strict=True))
    stats = {name: stat_of(file) or () for name, file in zip(names, files, strict=True)}
    Manifest(0, hashes, stats=stats).write(parts.run.path)


def table(figures: Mapping[str, float], dims: Sequence[str]) -> str:
    """Figures on the held-out prompts, by dimension, as lines for the terminal."""
    kinds = ("accuracy", "accuracy_with_ties", "spearman")
    shown = [kind for kind in kinds if any(f"valid/{kind}/{dim}" in figures for dim in dims)]
    heads = ["held-out prompts", *(kind.replace("_", " ") for kind in shown)]
    rows = [heads, *([dim, *(_cell(figures, kind, dim) for kind in shown)] for dim in dims)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    counts = f"{figures['training']:.0f} labels trained on, {figures['validation']:.0f} held out"
    end = [f"loss {figures['valid/loss']:.4f}; {counts}", *_by_chance(figures, dims)]
    return "\n".join([*lines, *end])


def _by_chance(figures: Mapping[str, float], dims: Sequence[str]) -> list[str]:
    """What to say of dimensions in which chance would do as well."""
    doubtful = [dim for dim in dims if figures.get(f"valid/accuracy_low/{dim}", 1.0) <= 0.5]
    if not doubtful:
        return []
    return [
        f"no better than chance, as far as these labels tell: {', '.join(doubtful)}; its scores "
        "order videos all the same: give more labels, or audit the critic before it labels"
    ]


def _cell(figures: Mapping[str, float], kind: str, dim: str) -> str:
    value = figures.get(f"valid/{kind}/{dim}")
    if value is None:
        return ""
    low, high = (figures.get(f"valid/{kind}_{end}/{dim}") for end in ("low", "high"))
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.2f}, {high:.2f}]"
