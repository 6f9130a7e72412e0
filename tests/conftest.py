"""What every test stands on: one thread, no network, and a process left as it was found."""

import os

# Before torch loads: see app/entry.py.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import copy
import functools
import gc
import importlib.metadata
import importlib.util
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from app.entry import CONF, register_resolvers
from tests.helpers import compositions  # noqa: F401 - Hydra composes a choice once
from train import train

torch.set_num_threads(1)
gc.set_threshold(50_000, 20, 20)  # looking for garbage among all that is imported takes a tenth
os.fsync = lambda _: None  # no test cuts the power, and a slow disk would make all wait
# A shell's background job ignores these, and so would all runs of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

VISION = Path(sys.prefix) / "vision"
"""Where the Makefile puts torchvision beside a CPU build of torch."""
TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")


class TorchvisionFinder(importlib.metadata.MetadataPathFinder):
    """Finds torchvision in `VISION`, in this process alone: those that it starts are a user's."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package itself; its modules are found by it."""
        if fullname != "torchvision":
            return None
        return PathFinder.find_spec(fullname, [str(VISION)], target)

    @classmethod
    def find_distributions(cls, context: Any = None) -> Any:
        """Its version."""
        if context is None or context.name not in (None, "torchvision"):
            return iter(())
        here = importlib.metadata.DistributionFinder.Context(name="torchvision", path=[str(VISION)])
        return super().find_distributions(here)


def find_torchvision() -> None:
    """Let video processors have torchvision.

    Its compiled operators are for CUDA and do not load beside a CPU build of torch, where its
    import fails for want of two of them; the processors need its Python alone.
    """
    if importlib.util.find_spec("torchvision") is not None or not VISION.is_dir():
        return
    sys.meta_path.append(TorchvisionFinder())
    if torch.version.cuda is None:
        for name in ("nms", "qnms"):
            TORCHVISION.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


find_torchvision()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Have another process remove what a session without failures wrote: tens of thousands of
    folders, which pytest would remove at its end, while all wait."""
    config = session.config
    written = config._tmp_path_factory._basetemp  # type: ignore[attr-defined]
    if exitstatus or written is None or config.option.basetemp or shutil.which("rm") is None:
        return  # pytest's own habits; a worker's folder lies in that of the session
    garbage = written.rename(written.with_name(f"garbage-{written.name}"))
    os.spawnlp(os.P_NOWAIT, "rm", "rm", "-rf", str(garbage))


ComposeTrain = Callable[..., DictConfig]


@functools.cache
def kept(program: str, *overrides: str) -> DictConfig:
    """The settings of ``python PROGRAM.py OVERRIDES...``: composed once, to be copied."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, list(overrides))


def composed(program: str, *overrides: str, outputs: Path | None = None) -> DictConfig:
    """The settings of a configuration of conf/, which are the caller's own."""
    if outputs is None:
        return copy.deepcopy(kept(program, *overrides))
    cfg = copy.deepcopy(kept(program, "paths.outputs=outputs", *overrides))
    cfg.paths.outputs = str(outputs)  # what else names a folder is interpolated
    return cfg


@pytest.fixture
def compose_train(tmp_path: Path) -> ComposeTrain:
    """The settings of ``python train.py OVERRIDES...``, with its outputs in this test's folder."""

    def compose(*overrides: str, outputs: Path = tmp_path) -> DictConfig:
        if any(word.startswith(("paths.outputs=", "hydra.")) for word in overrides):
            return kept.__wrapped__("train", f"paths.outputs={outputs}", *overrides)
        return composed("train", *overrides, outputs=outputs)

    return compose


SMALL = (
    "rollout.prompts=3",
    "rollout.n=3",
    "rollout.steps=3",
    "data.optimizer_steps=6",
    "data.batch_size=2",
    "labelling.pair_rule.margin=0",
    "labelling.filters.motion_ratio=0",
    "evaluation.n=1",
    "evaluation.split=select",
    "evaluation.prompts=2",
    "callbacks.iteration.checkpoint_every=2",
    "callbacks.progress=null",
    "callbacks.videos=null",
    "callbacks.report=null",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "logger=none",
    "name=run",
)


@pytest.fixture
def small(compose_train: ComposeTrain, tmp_path: Path) -> ComposeTrain:
    """A run of seconds: ``small("loss=kto", outputs="elsewhere")``."""

    def compose(*overrides: str, outputs: str = "outputs") -> DictConfig:
        return compose_train(*SMALL, *overrides, outputs=tmp_path / outputs)

    return compose


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the videos and verdicts of the base's evaluation and of the first rollout."""
    outputs = tmp_path_factory.mktemp("stock")
    train(composed("train", *SMALL, f"paths.outputs={outputs}", "round=1", "until=labelling"))
    return outputs / "store"


@pytest.fixture
def begun(small: ComposeTrain, stock: Path) -> ComposeTrain:
    """As `small`, with a store that holds what every run makes before its first training: for tests
    of what comes after."""

    def compose(*overrides: str, outputs: str = "outputs") -> DictConfig:
        cfg = small(*overrides, outputs=outputs)
        if not Path(cfg.paths.store).exists():
            shutil.copytree(stock, cfg.paths.store)
        return cfg

    return compose


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Undo what a test does to the process: a run in this process sets threads and variables."""
    environment, dtype = dict(os.environ), torch.get_default_dtype()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    yield
    GlobalHydra.instance().clear()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.set_default_dtype(dtype)
    torch.set_num_threads(1)
    if torch.are_deterministic_algorithms_enabled():  # the setter alone takes two milliseconds
        torch.use_deterministic_algorithms(False)
    environment.pop("PYTEST_CURRENT_TEST", None)  # pytest's own
    for name in set(os.environ) - {*environment, "PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(environment)
