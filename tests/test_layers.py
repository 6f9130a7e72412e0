"""The layers of the project, read off its imports: what may know of what."""

import ast
import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
LIBRARY = REPO / "ipo_lightning"

MATHEMATICS, PROTOCOLS, IMPLEMENTATIONS, ORCHESTRATION = range(4)
# A folder of the library, or a module at its door, to its layer; the longest name that fits counts.
# `shapes` is a world of its own, which nothing else in the library knows of.
LAYERS = {
    "errors": MATHEMATICS,
    "commands": MATHEMATICS,
    "seeds": MATHEMATICS,
    "settings": MATHEMATICS,
    "losses": MATHEMATICS,
    "objectives": MATHEMATICS,
    "labelling": MATHEMATICS,
    "metrics": MATHEMATICS,
    "reward.losses": MATHEMATICS,
    "storage": MATHEMATICS,
    "storage.foreign_yaml": PROTOCOLS,
    "prompts": MATHEMATICS,
    "prompts.expanding": IMPLEMENTATIONS,
    "prompts.__main__": IMPLEMENTATIONS,
    "policy": PROTOCOLS,
    "decoding": PROTOCOLS,
    "video": PROTOCOLS,
    "draws": PROTOCOLS,
    "parallel": PROTOCOLS,
    "critics.protocols": PROTOCOLS,
    "critics.stage": PROTOCOLS,
    "critics.people": PROTOCOLS,
    "backbones": IMPLEMENTATIONS,
    "critics": IMPLEMENTATIONS,
    "reward.multimodal": IMPLEMENTATIONS,
    "reward.trained": IMPLEMENTATIONS,
    "serving": PROTOCOLS,
    "serving.videos": IMPLEMENTATIONS,
    "shapes": IMPLEMENTATIONS,
    "references": ORCHESTRATION,
    "sampling": ORCHESTRATION,
    "module": ORCHESTRATION,
    "training": ORCHESTRATION,
    "evaluation": ORCHESTRATION,
    "audit": ORCHESTRATION,
    "comparison": ORCHESTRATION,
    "guards": ORCHESTRATION,
    "exchange": ORCHESTRATION,
    "hub": ORCHESTRATION,
    "parallel.signals": ORCHESTRATION,  # handlers next to those of Lightning's trainer
    "parallel.strategies": ORCHESTRATION,  # a plugin of Lightning's
    "planning": ORCHESTRATION,
    "report": ORCHESTRATION,
    "rounds": ORCHESTRATION,
    "reward": ORCHESTRATION,
    "vbench": ORCHESTRATION,
    "vbench.scores": MATHEMATICS,
    "vbench.measures": MATHEMATICS,
    "vbench.critics": IMPLEMENTATIONS,
    "vbench.files": IMPLEMENTATIONS,
    "vbench.metrics": IMPLEMENTATIONS,
}
MAY_IMPORT = {
    MATHEMATICS: {MATHEMATICS},
    PROTOCOLS: {MATHEMATICS, PROTOCOLS},
    IMPLEMENTATIONS: {MATHEMATICS, PROTOCOLS, IMPLEMENTATIONS},
    ORCHESTRATION: {MATHEMATICS, PROTOCOLS, ORCHESTRATION},
}
MODELS = {"diffusers", "transformers", "peft"}
MAY_NOT_USE = {
    PROTOCOLS: MODELS | {"lightning"},
    IMPLEMENTATIONS: {"lightning"},
    ORCHESTRATION: MODELS,
}
"""Packages of others that a layer does without; mathematics has `MATHEMATICS_USES` alone."""
MATHEMATICS_USES = {"torch", "safetensors", "torchmetrics"}

APPLICATION = {
    "app",
    "callbacks",
    "data",
    "train",
    "sample",
    "audit",
    "compare",
    "tests",
    "benchmarks",
    "examples",
}
SETTINGS = {"hydra", "omegaconf", "app"}


@functools.cache
def imports(path: Path) -> list[str]:
    """Full names of the modules, and of the names in them, that a file imports anywhere."""
    return list(imported(path))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tops(path: Path) -> set[str]:
    """Top-level packages that a file imports, without the standard library's."""
    return {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)


def within(path: Path) -> set[str]:
    """What a file imports of the library: ``losses.dpo_loss`` or ``critics.protocols.Rating``."""
    prefix = "ipo_lightning."
    return {name.removeprefix(prefix) for name in imports(path) if name.startswith(prefix)}


def layer(name: str) -> int | None:
    """The layer of a module, or of a name in it."""
    fits = [key for key in LAYERS if f"{name}.".startswith(f"{key}.")]
    return LAYERS[max(fits, key=len)] if fits else None


def module(path: Path) -> str:
    """The name of a library file: ``losses`` or ``critics.protocols``."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts).removesuffix(".__init__")


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPO / folder).rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(REPO))


MODULES = [path for path in sources("ipo_lightning") if path.parent != LIBRARY or
           path.name != "__init__.py"]  # fmt: skip


def test_every_folder_has_its_layer() -> None:
    names = {module(path) for path in MODULES}
    assert {name for name in names if layer(name) is None} == set(), "name them in LAYERS"
    gone = {key for key in LAYERS if not any(f"{name}.".startswith(f"{key}.") for name in names)}
    assert gone == set()


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_knows_of_its_layers_alone(path: Path) -> None:
    own = layer(module(path))
    assert own is not None
    assert {name for name in within(path) if layer(name) not in MAY_IMPORT[own]} == set()
    if own == MATHEMATICS:
        assert tops(path) <= MATHEMATICS_USES | {"ipo_lightning"}
    else:
        assert not tops(path) & MAY_NOT_USE[own]


@pytest.mark.slow
@pytest.mark.parametrize("path", MODULES, ids=named)
def test_nothing_knows_of_the_embedded_world(path: Path) -> None:
    if not module(path).startswith("shapes"):
        assert not any(name.startswith("shapes") for name in within(path))


@pytest.mark.slow
@pytest.mark.parametrize("path", sources("ipo_lightning"), ids=named)
def test_library_knows_no_application(path: Path) -> None:
    assert not tops(path) & (APPLICATION | SETTINGS)


@pytest.mark.parametrize("path", sources("data", "callbacks"), ids=named)
def test_data_and_callbacks_meet_on_disk(path: Path) -> None:
    own = path.relative_to(REPO).parts[0]
    assert not tops(path) & ((APPLICATION | SETTINGS) - {own})
    assert not any(layer(name) == IMPLEMENTATIONS for name in within(path))


@pytest.mark.parametrize(
    "path",
    [REPO / name for name in ("train.py", "sample.py", "audit.py", "compare.py")] + sources("app"),
    ids=named,
)
def test_entry_points_get_what_is_concrete_from_the_configuration(path: Path) -> None:
    assert not any(layer(name) == IMPLEMENTATIONS for name in within(path))


def test_conf_is_yaml_alone() -> None:
    assert [path for path in (REPO / "conf").rglob("*.*") if path.suffix != ".yaml"] == []


def test_few_modules_lie_at_the_door() -> None:
    assert len(list(LIBRARY.glob("[!_]*.py"))) <= 12


def test_folders_do_not_import_each_other_in_a_circle() -> None:
    """Of the library's folders, the modules at the door counted each for itself."""
    knows: dict[str, set[str]] = {}
    for path in MODULES:
        own = module(path).partition(".")[0]
        others = {name.partition(".")[0] for name in within(path)} - {own}
        knows.setdefault(own, set()).update(others)
    while free := [name for name, others in knows.items() if not others & knows.keys()]:
        for name in free:
            del knows[name]
    assert knows == {}


@pytest.mark.slow
def test_no_drawer_for_odds_and_ends() -> None:
    hidden = {".venv", ".git", "build"}
    found = [p for p in REPO.rglob("utils.py") if not hidden & set(p.relative_to(REPO).parts)]
    assert found == []


def test_data_is_source() -> None:
    """An ignored or shadowed ``data/`` has cost others their source files."""
    lines = (REPO / ".gitignore").read_text().splitlines()
    assert not {line.strip().strip("/*") for line in lines} & {"data", "**/data", "*data*"}
    assert not (REPO / "tests/data").exists()
