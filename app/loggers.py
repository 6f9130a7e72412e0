"""The loggers of a run: none, one or several, each told the settings once."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from app.entry import build
from ipo_lightning.errors import InputError

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers import Logger

PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow", "CometLogger": "comet_ml",
            "NeptuneLogger": "neptune"}  # fmt: skip
"""Lightning's loggers that need a package which Lightning does not bring."""
NEED_A_LOGGER = ("LearningRateMonitor", "DeviceStatsMonitor")
"""Lightning's callbacks that have nowhere to write without one."""


def logger_nodes(cfg: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Key and node of each logger: of ``logger=[csv,wandb]`` two, of an own file perhaps one alone.

    Raises:
        InputError: something else stands there.
    """
    node = cfg.get("logger")
    if OmegaConf.is_dict(node) and "_target_" in node:
        yield "logger", node
        return
    for name, one in (node or {}).items() if OmegaConf.is_dict(node) or not node else ():
        if one is not None:
            yield f"logger.{name}", one
    if node and not OmegaConf.is_dict(node):
        known = "choose by logger=csv or logger=[tensorboard,csv]"
        raise InputError(setting="logger", value=node, expected=known)


def check_loggers(cfg: DictConfig) -> None:
    """Refuse a logger whose package is not installed, and callbacks that lack a logger.

    Raises:
        InputError: names the package, or the callback.
    """
    found = list(logger_nodes(cfg))
    for key, node in found:
        package = PACKAGES.get(_class_of(node))
        if package and find_spec(package) is None:
            raise InputError(
                f"{key}: the package {package} is not installed: pip install {package}"
            )
    for name, node in (cfg.get("callbacks") or {}).items():
        if not found and _class_of(node) in NEED_A_LOGGER:
            raise InputError(f"callbacks.{name}: {_class_of(node)} needs a logger: give logger=csv")


def _class_of(node: Any) -> str:
    named = OmegaConf.is_dict(node) and node.get("_target_")
    return str(named or "").rpartition(".")[2]


def loggers_of(cfg: DictConfig) -> "list[Logger]":
    """The loggers that ``logger=`` chooses."""
    return [build(node, key) for key, node in logger_nodes(cfg)]


def log_settings(trainer: "L.Trainer", cfg: DictConfig) -> None:
    """Tell each logger the resolved settings, once at the start of a command."""
    if not trainer.is_global_zero:
        return
    found: Any = OmegaConf.to_container(cfg, resolve=True)
    told = {key: value for key, value in found.items() if key != "hydra"}
    for logger in trainer.loggers:
        logger.log_hyperparams(told)
