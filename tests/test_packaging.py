"""What is shipped: the library with its data, and nothing that would get in another's way."""

import configparser
import functools
import importlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from email import message_from_string
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import ipo_lightning
from app.entry import REPO
from tests.test_layers import imports, named, sources

SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(REPO / "setup.cfg")


def requirements(section: str, key: str) -> set[str]:
    """Normalised names of the packages asked for."""
    lines = SETUP[section][key].splitlines()
    names = [re.match(r"[\w-]+", line.strip()) for line in lines if not line.startswith("#")]
    return {name[0].lower().replace("_", "-") for name in names if name}


@functools.cache
def distributions_of_packages() -> Mapping[str, list[str]]:
    """Import name -> what provides it; reading it off the environment takes a while."""
    return packages_distributions()


def distributions(path: Path) -> set[str]:
    """What must be installed for a file's imports."""
    known = distributions_of_packages()
    tops = {name.partition(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    ours = {"ipo_lightning", "app", "callbacks", "data", "train", "sample", "audit", "compare",
            "tests", "benchmarks"}  # fmt: skip
    return {known.get(top, [top])[0].lower().replace("_", "-") for top in tops - ours}


SHIPPED = [
    *sources("ipo_lightning", "app", "callbacks", "data"),
    REPO / "train.py",
    REPO / "sample.py",
    REPO / "audit.py",
    REPO / "compare.py",
]


@pytest.mark.parametrize("path", SHIPPED, ids=named)
def test_what_is_imported_is_required(path: Path) -> None:
    asked = requirements("options", "install_requires")
    optional = requirements("options.extras_require", "critics")
    optional |= requirements("options.extras_require", "gpu")
    optional |= requirements("options.extras_require", "ray")
    assert distributions(path) <= asked | optional


def test_the_least_releases_are_what_the_bounds_name() -> None:
    """`.ci/bounds minimum` installs each of them as it stands."""
    made = subprocess.run(
        [sys.executable, REPO / ".ci/minimum.py"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    names = {line.partition("==")[0].lower().replace("_", "-") for line in made if "==" in line}
    assert names == requirements("options", "install_requires") | {"pytorch-lightning"}
    assert len(names) == len(made) and not any(">" in line for line in made)


def test_the_version_is_in_the_changelog() -> None:
    assert f"## [{ipo_lightning.__version__}]" in (REPO / "CHANGELOG.md").read_text()


def test_the_version_is_the_one_that_is_cited() -> None:
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert citation["version"] == ipo_lightning.__version__
    assert citation["license"] == SETUP["metadata"]["license_expression"]


def test_the_hooks_are_the_checks() -> None:
    """A commit is refused for what ``make check`` would refuse, and for nothing else."""
    (recipe,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", (REPO / "Makefile").read_text(), re.M)
    checks = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe.splitlines()]
    (repo,) = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["entry"] for hook in repo["hooks"]] == checks


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the tree stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE", "ipo_lightning",
             "data", "app")  # fmt: skip
    source.mkdir()
    subprocess.run(["cp", "-r", *(REPO / name for name in names), source], check=True)
    code = "import sys; from setuptools.build_meta import build_wheel as b; b(sys.argv[1])"
    build = [sys.executable, "-c", code, str(folder)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def in_wheel(wheel: Path, name: str) -> str:
    """A file beside the package."""
    with zipfile.ZipFile(wheel) as archive:
        info = f"ipo_lightning-{ipo_lightning.__version__}.dist-info"
        return archive.read(f"{info}/{name}").decode()


@pytest.mark.slow
def test_the_wheel_is_described_for_an_index(wheel: Path) -> None:
    """Links lead to pages of the repository, for there are no others."""
    told = message_from_string(in_wheel(wheel, "METADATA"))
    assert {one.partition(",")[0] for one in told.get_all("Project-URL", [])} == {
        "Documentation", "Changelog", "Issues"
    }  # fmt: skip
    text = told.get_payload()
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    assert {one for one in links if not one.startswith(("https://", "#"))} == set()
    root = SETUP["metadata"]["url"]
    for link in links:
        if link.startswith(root):
            assert (REPO / re.sub(rf"{root}/(blob|raw)/main/", "", link)).exists(), link
    assert f"{root}/raw/main/docs/images/before_after.png" in links


@pytest.mark.slow
def test_the_console_scripts_are_there(wheel: Path) -> None:
    scripts = configparser.ConfigParser()
    scripts.read_string(in_wheel(wheel, "entry_points.txt"))
    for target in scripts["console_scripts"].values():
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.slow
def test_the_wheel_holds_the_library_alone(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in held} == {
        "ipo_lightning", f"ipo_lightning-{ipo_lightning.__version__}.dist-info"
    }  # fmt: skip
    wanted = {
        str(path.relative_to(REPO))
        for path in (REPO / "ipo_lightning").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert wheel.stat().st_size < 10 * 2**20


def test_nothing_shipped_names_the_machine_that_built_it() -> None:
    configs = list((REPO / "ipo_lightning" / "shapes" / "pipeline").rglob("*.json"))
    assert configs
    for config in configs:
        assert '_path": "/' not in config.read_text(encoding="utf-8"), config
