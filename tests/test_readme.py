"""What the README and docs/ show is true: its examples run, its commands compose."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from app.entry import (
    CONF,
    REPO,
    TASKS,
    build,
    quote_free_text,
    refuse_missing,
    refuse_misspelt,
    task_of,
)
from ipo_lightning.critics.protocols import PointCritic
from ipo_lightning.video import Clip
from tests.conftest import ComposeTrain
from train import train

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
README = PAGES[0].read_text()
PLACEHOLDERS = {
    "loss/mine.yaml": "{_target_: my_losses.bounded_loss, _partial_: true, beta: 1.0}",
    **{f"critic/{name}.yaml": "{_target_: my_critics.Bright}" for name in ("NAME", "one", "two")},
}
"""Choices that the pages leave to the reader."""


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of the fenced blocks."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The commands of the entry points on a page, in blocks and prose."""
    text = page.read_text().replace("\\\n", " ")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = re.findall(r"`(python (?:train|sample|audit)\.py[^`]*)`", prose)
    fenced = [line.strip() for _, block in blocks(text) for line in block.splitlines()]
    shown = (line for line in fenced if re.match(r"python (train|sample|audit)\.py", line))
    return [*inline, *shown]


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the README's files, which Python imports from; its ``conf`` is returned."""
    for language, content in blocks(README):
        name = re.match(r"# (\S+\.(?:py|yaml))\n", content)
        if language in ("python", "yaml"):
            assert name, "an example starts with the name of its file"
            assert not (REPO / name[1]).exists(), f"{name[1]} would be hidden by the shipped one"
            (tmp_path / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name[1]).write_text(content)
    for place, content in PLACEHOLDERS.items():
        (tmp_path / "conf" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / place).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "conf"
    for module in ("my_losses", "my_critics"):
        sys.modules.pop(module, None)


def searched(folder: Path) -> str:
    return f"hydra.searchpath=[file://{folder}]"


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_composes(page: str, command: str, examples: Path) -> None:
    program, *words = shlex.split(command, comments=True)[1:]
    words = [word for word in words if not word.startswith("hydra.searchpath")]
    if program == "sample.py":
        words = quote_free_text(words, ("prompt", "prompts", "ckpt"))
        refuse_misspelt("sample", words)
    elif program == "audit.py":
        refuse_misspelt("audit", [*words, searched(examples)])
    else:
        config, words = TASKS[task_of(words)], [*words, searched(examples)]
        refuse_misspelt(config, words)
        if "-m" not in words:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                refuse_missing(compose(config, words))


def test_the_pages_show_commands() -> None:
    assert len(COMMANDS) >= 12
    assert {"make demo", "make test"} <= {
        c.split("  ")[0] for _, b in blocks(README) for c in b.splitlines()
    }


def test_the_loss_is_trained_with(
    examples: Path, compose_train: ComposeTrain, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = "loss=bounded", "loss.beta=500", searched(examples)
    cfg = compose_train(*overrides)
    policy_win, policy_lose = torch.tensor([0.100, 0.098]), torch.tensor([0.2, 0.2])
    reference = torch.tensor([0.1, 0.1]), torch.tensor([0.2, 0.2])
    loss, margin = build(cfg.loss, "loss")(policy_win, policy_lose, *reference)
    torch.testing.assert_close(margin, torch.tensor([0.0, 0.002]), rtol=0, atol=1e-7)
    torch.testing.assert_close(loss, torch.tensor([0.5, 0.26894]), rtol=0, atol=1e-4)
    train(compose_train(*overrides, "dry_run=true", "round=1"))
    assert "pairwise" in capsys.readouterr().out


def test_the_critic_is_asked(
    examples: Path, compose_train: ComposeTrain, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = compose_train("critic=bright", searched(examples))
    critic = build(cfg.critic, "critic")
    assert isinstance(critic, PointCritic)
    clips = [Clip(torch.full((9, 4, 4, 3), 51, dtype=torch.uint8), 8.0)] * 2
    scores = [rating.score for rating in critic.rate(clips, ["a red ring", "a dark ring"])]
    assert scores == pytest.approx([0.2, 0.8])
    train(compose_train("critic=bright", searched(examples), "dry_run=true", "round=1"))
    assert "critic calls" in capsys.readouterr().out


def test_the_command_for_real_models_makes_the_plan_that_is_shown(
    examples: Path,
    compose_train: ComposeTrain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the reader's own prompts."""
    (command,) = [c for page, c in COMMANDS if page == "README.md" and "experiment=ipo_" in c]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a video of {number} apples\n" for number in range(200)))
    words = command.replace("path=prompts.txt", f"path={prompts}").split()[2:]
    assert train(compose_train(*words, searched(examples))) is None
    shown = re.search(r"^stage +weights.*?it fits$", README, re.MULTILINE | re.DOTALL)
    assert shown
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert {line for line in shown[0].splitlines() if line != "..."} <= set(printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_python_examples_are_modules(examples: Path) -> None:
    assert importlib.import_module("my_losses").bounded_loss.__doc__
    assert importlib.import_module("my_critics").Bright.__doc__
