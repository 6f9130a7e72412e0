"""The loggers of a run: none, one or several, each told the settings once."""

from collections.abc import Iterator, Mapping
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


def logger_nodes(cfg: DictConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and settings of each logger: two of ``logger=[csv,wandb]``, one of an own file.

    Raises:
        InputError: something else stands there.
    """
    node = cfg.get("logger")
    if node is None:
        return
    if not OmegaConf.is_dict(node):
        known = "choose by logger=csv or logger=[tensorboard,csv]"
        raise InputError(setting="logger", value=node, expected=known)
    own: Any = OmegaConf.to_container(node, resolve=True)
    named = [name for name, one in own.items() if isinstance(one, dict) and "_target_" in one]
    parts = {f"logger.{name}": own.pop(name) for name in named}
    if "_target_" in own:
        yield "logger", own
    yield from parts.items()


def check_loggers(cfg: DictConfig) -> None:
    """Refuse a logger whose package is not installed, and callbacks that lack a logger.

    Raises:
        InputError: names the package, or the callback.
    """
    found = list(logger_nodes(cfg))
    for key, node in found:
        package = PACKAGES.get(class_of(node))
        if package and find_spec(package) is None:
            raise InputError(
                f"{key}: the package {package} is not installed: pip install {package}"
            )
    for name, node in (cfg.get("callbacks") or {}).items():
        if not found and class_of(node) in NEED_A_LOGGER:
            raise InputError(f"callbacks.{name}: {class_of(node)} needs a logger: give logger=csv")


def class_of(node: Mapping[str, Any] | None) -> str:
    """The name of the class that a node is an object of."""
    return str((node or {}).get("_target_")).rpartition(".")[2]


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
