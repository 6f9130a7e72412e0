"""The layers of the project, read off its imports: what may know of what."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
LIBRARY = REPO / "ipo_lightning"

# Each module of the library is named once, a package as one. A module knows of its own layer and of
# those above it in this table; `shapes` is a world of its own, which nothing else in the library
# knows of.
MATHEMATICS = {"agreement", "annotations", "averages", "batch", "calibration", "errors", "flow",
               "gauges", "labelling", "losses", "metrics", "objectives", "offload", "preferences",
               "published", "records", "reward_losses", "rounds", "rowfiles", "seeds", "sharding",
               "store", "tournaments", "tracing", "visits"}  # fmt: skip
PROTOCOLS = {
    "annotating",
    "critics.base",
    "critics.chat",
    "critics.comparing",
    "critics.critique",
    "imported",
    "policy",
    "real",
    "video",
    "workers",
}
CONCRETE = {"backbones", "critics", "shapes"}
ORCHESTRATION = {"audit", "cards", "checkpoints", "estimate", "evaluation", "exchange", "hub",
                 "module", "reference_errors", "references", "report", "reward", "sampling",
                 "strategies"}  # fmt: skip

APPLICATION = {"callbacks", "conf", "data", "train", "sample", "audit", "tests", "benchmarks"}
SETTINGS = {"hydra", "omegaconf", "conf"}


def imports(path: Path) -> Iterator[str]:
    """Full names of the modules, and of the names in them, that a file imports anywhere."""
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
    """What a file imports of the library: ``losses`` or ``critics.base``."""
    found = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "ipo_lightning":
            deep = parts[1] in CONCRETE and len(parts) > 2
            found.add(".".join(parts[1 : 3 if deep else 2]))
    return found


def module(path: Path) -> str:
    """The name of a library file: ``losses`` or ``critics.base``."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPO / folder).rglob("*.py"))


def files(name: str) -> list[Path]:
    """The file of a module, or all files of a package that the table names as one."""
    path = LIBRARY / name.replace(".", "/")
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def named(path: Path) -> str:
    return str(path.relative_to(REPO))


def test_every_module_has_its_layer() -> None:
    single = {path.stem for path in LIBRARY.glob("*.py")} - {"__init__"}
    packages = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    layered = MATHEMATICS | {name for name in PROTOCOLS if "." not in name} | ORCHESTRATION
    assert single | packages == layered | CONCRETE, "name new modules in this file's table"


@pytest.mark.parametrize("name", sorted(MATHEMATICS))
def test_mathematics_knows_torch_alone(name: str) -> None:
    allowed = {"torch", "safetensors", "ipo_lightning"}
    for path in files(name):
        assert tops(path) <= allowed | ({"torchmetrics"} if name == "metrics" else set())
        assert within(path) <= MATHEMATICS


@pytest.mark.parametrize("path", [path for name in sorted(PROTOCOLS) for path in files(name)],
                         ids=named)  # fmt: skip
def test_protocols_know_mathematics(path: Path) -> None:
    assert within(path) <= MATHEMATICS | PROTOCOLS
    assert not tops(path) & {"diffusers", "transformers", "peft", "lightning"}


@pytest.mark.parametrize("path", sources("ipo_lightning/backbones", "ipo_lightning/critics"),
                         ids=named)  # fmt: skip
def test_implementations_do_not_orchestrate(path: Path) -> None:
    family = module(path).partition(".")[0]
    own = {name for name in within(path) if name.startswith(family)}
    assert within(path) <= MATHEMATICS | PROTOCOLS | own
    assert "lightning" not in tops(path)


@pytest.mark.parametrize(
    "path", [path for name in sorted(ORCHESTRATION) for path in files(name)], ids=named
)
def test_orchestration_knows_no_implementation(path: Path) -> None:
    assert within(path) <= MATHEMATICS | PROTOCOLS | ORCHESTRATION
    assert not tops(path) & {"diffusers", "transformers", "peft"}


@pytest.mark.parametrize("path", sources("ipo_lightning"), ids=named)
def test_library_knows_no_application(path: Path) -> None:
    assert not tops(path) & (APPLICATION | SETTINGS)


@pytest.mark.parametrize("path", sources("data", "callbacks"), ids=named)
def test_data_and_callbacks_meet_on_disk(path: Path) -> None:
    own = path.relative_to(REPO).parts[0]
    assert not tops(path) & ((APPLICATION | SETTINGS) - {own})
    assert within(path) <= MATHEMATICS | PROTOCOLS | ORCHESTRATION


@pytest.mark.parametrize(
    "path",
    [REPO / name for name in ("train.py", "sample.py", "audit.py")] + sources("conf"),
    ids=named,
)
def test_entry_points_get_what_is_concrete_from_the_configuration(path: Path) -> None:
    assert within(path) <= MATHEMATICS | PROTOCOLS | ORCHESTRATION


def test_no_drawer_for_odds_and_ends() -> None:
    hidden = {".venv", ".git", "build"}
    found = [p for p in REPO.rglob("utils.py") if not hidden & set(p.relative_to(REPO).parts)]
    assert found == []


def test_data_is_source() -> None:
    """An ignored or shadowed ``data/`` has cost others their source files."""
    lines = (REPO / ".gitignore").read_text().splitlines()
    assert not {line.strip().strip("/*") for line in lines} & {"data", "**/data", "*data*"}
    assert not (REPO / "tests/data").exists()
