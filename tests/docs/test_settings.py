"""docs/cli.md has every top-level setting and group with its default; no page names another one."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.entry import CONF, REPO, choices_of
from ipo_lightning.commands import Command
from ipo_lightning.exchange.__main__ import COMMANDS as EXCHANGE
from ipo_lightning.prompts.__main__ import COMMANDS as PROMPTS

CLI = (REPO / "docs/cli.md").read_text()
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
CONFIGS = {
    "train.py": "train",
    "train.py task=critic": "train_critic",
    "sample.py": "sample",
    "audit.py": "audit",
    "compare.py": "compare",
}
"""Heading of a part of docs/cli.md -> its config."""


def part(program: str) -> str:
    """The part of docs/cli.md about a program."""
    return CLI.split(f"\n## Settings of `{program}`\n")[1].split("\n## ")[0]


def rows(text: str, columns: int) -> list[tuple[str, ...]]:
    """Cells of the tables with so many columns, without heads and code marks."""
    lines = [re.split(r" \| ", line.strip("| ")) for line in text.splitlines() if line[:3] == "| `"]
    return [tuple(cell.replace("`", "") for cell in line) for line in lines if len(line) == columns]


def shown(value: Any) -> str:
    """A value as a table has it."""
    plain = {"???": "none", "": "empty", None: "null", True: "true", False: "false"}
    known = isinstance(value, str | bool | None) and value in plain
    return plain[value] if known else str(value)


def settings(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full key and value of each leaf."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from settings(value, f"{prefix}{key}.")
        elif key != "defaults":
            yield f"{prefix}{key}", value


def read(config: str) -> dict[str, Any]:
    """A top-level config as it is written."""
    found: dict[str, Any] = yaml.safe_load((CONF / f"{config}.yaml").read_text())
    return found


@pytest.mark.parametrize(("program", "config"), CONFIGS.items())
def test_every_setting_is_told_with_its_default(program: str, config: str) -> None:
    tree = {key: value for key, value in read(config).items() if key not in ("defaults", "hydra")}
    if config == "train_critic":
        del tree["optim"]  # differences to the group
    told = {row[0]: row[1] for row in rows(part(program), 3)}
    real = {key: shown(value) for key, value in settings(tree) if not key.endswith("_target_")}
    assert told.keys() == real.keys()
    made = {key for key, value in real.items() if value.startswith("${")}
    assert all(told[key] == "made of the choices" for key in made)
    assert {key: told[key] for key in told.keys() - made} == {
        key: real[key] for key in real.keys() - made
    }


def test_every_group_is_told_with_its_default_and_choices() -> None:
    told = {row[0]: row[1:] for row in rows(part("train.py"), 4)}
    defaults = dict(next(iter(one.items())) for one in read("train")["defaults"] if one != "_self_")
    groups = {
        key: ", ".join(value) if isinstance(value, list) else shown(value)
        for key, value in defaults.items()
        if "hydra" not in key
    }
    assert {key: default for key, (default, _, _) in told.items()} == groups
    for group, (_, choices, _) in told.items():
        if not group.endswith("critic"):
            assert set(choices.split(", ")) == set(choices_of(group)) - {"ipo_base", "shorter"}


@pytest.mark.parametrize("program", ["train.py task=critic", "sample.py", "audit.py", "compare.py"])
def test_the_groups_of_other_programs_are_named(program: str) -> None:
    for one in read(CONFIGS[program])["defaults"]:
        group = "" if one == "_self_" else next(iter(one)).removeprefix("optional ")
        assert "hydra" in group or not group or f"`{group}`" in part(program)


@pytest.mark.parametrize(("name", "commands"), [("exchange", EXCHANGE), ("prompts", PROMPTS)])
def test_every_setting_of_the_parts_is_told(name: str, commands: Mapping[str, Command]) -> None:
    told = [row[:3] for row in rows(part(f"python -m ipo_lightning.{name}"), 4)]
    assert told == [
        (command, key, "none" if default is None else shown(default))
        for command, (_, known) in commands.items()
        for key, default in known.items()
    ]


def known_settings() -> set[str]:
    """Full keys of all settings of all choices, and of what stands above them."""
    keys: set[str] = set()
    for file in CONF.rglob("*.yaml"):
        group = file.parent.relative_to(CONF).as_posix().replace("/", ".").strip(".")
        prefix = "" if group in ("", "experiment") else f"{group}."
        for key, _ in settings(yaml.safe_load(file.read_text()) or {}, prefix):
            keys |= {key, key.replace("critic.", "eval_critic.", 1)}
    parts = [key.split(".") for key in keys]
    return {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}


KNOWN = known_settings()
GROUPS = {key.partition(".")[0] for key in KNOWN if "." in key} - {"hydra"}


def named_settings(page: Path) -> Iterator[str]:
    """What a page names as a setting: dotted words in code marks that start with a group's name."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for code in re.findall(r"`([^`]+)`", prose):
        for word in re.findall(r"(?<![\w./+@-])([a-z_]+(?:\.\w+)+)", code):
            owner, _, last = word.rpartition(".")
            module = (REPO / word.replace(".", "/")).parent.with_suffix(".py").is_file()
            file = last in ("jsonl", "json", "py", "yaml", "html", "md", "mp4", "csv")
            # Another critic, by the reader's own name.
            member = owner in ("critic.members", "eval_critic.members")
            if word.partition(".")[0] in GROUPS and not (module or file or member):
                yield word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    assert set(named_settings(page)) - KNOWN == set()
