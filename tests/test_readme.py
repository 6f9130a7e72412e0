"""What the README and docs/ show is true: examples run, commands compose, plans are printed so."""

import importlib
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from configparser import ConfigParser
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from app.entry import (
    CONF,
    REPO,
    TASKS,
    build,
    refuse_missing,
    refuse_misspelt,
    task_of,
)
from app.free_text import as_typed
from app.seeds import with_seeds
from ipo_lightning.commands import settings_of
from ipo_lightning.critics.protocols import PointCritic
from ipo_lightning.errors import InputError
from ipo_lightning.exchange.__main__ import COMMANDS as EXCHANGE
from ipo_lightning.prompts.__main__ import COMMANDS as PROMPTS
from ipo_lightning.vbench.__main__ import export_settings
from ipo_lightning.video import Clip
from tests.conftest import ComposeTrain
from tests.helpers.choices import lacking
from train import train

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
README = PAGES[0].read_text()
FROM_ZERO = (REPO / "docs/from-zero.md").read_text()
PLACEHOLDERS = {
    "conf/loss/mine.yaml": "{_target_: my_losses.bounded_loss, _partial_: true, beta: 1.0}",
    **{
        f"conf/critic/{name}.yaml": "{_target_: my_critics.Bright}"
        for name in ("NAME", "one", "two")
    },
}
"""Choices that the pages leave to the reader."""


# -------------------------------------------------------------------- what the pages hold


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Language and content of the fenced blocks."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def named_blocks(page: Path) -> Iterator[tuple[str, str]]:
    """File name and content of the Python and YAML blocks that start with the name of a file.

    On the README all of them do.
    """
    for language, content in blocks(page.read_text()):
        name = re.match(r"# (\S+\.(?:py|yaml))\n", content)
        if language in ("python", "yaml"):
            assert name or page != PAGES[0], "an example starts with the name of its file"
            if name:
                yield name[1], content


NAMED = [(page.name, name, content) for page in PAGES for name, content in named_blocks(page)]
OWN = {name: content for _, name, content in NAMED if not (REPO / name).exists()}
"""Files that a reader writes; those that name a file of the repository are excerpts of it."""
MODULES = [name.removesuffix(".py") for name in OWN if name.endswith(".py")]
CHOICES = [tuple(Path(name).with_suffix("").parts[1:]) for name in OWN if name.endswith(".yaml")]

PROGRAMS = (
    r"python (?:train|sample|audit)\.py\b|python -m (?:ipo_lightning|examples)\.|python benchmarks/"
    r"|torchrun\b|srun\b(?!.* ray start )|make\b"
)


def commands(page: Path) -> list[str]:
    """The commands of the project on a page, in blocks and prose."""
    text = page.read_text().replace("\\\n", " ")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = [" ".join(found.split()) for found in re.findall(rf"`((?:{PROGRAMS})[^`]*)`", prose)]
    fenced = [line.strip() for _, block in blocks(text) for line in block.splitlines()]
    return [*inline, *(line for line in fenced if re.match(PROGRAMS, line))]


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]
PLACES = {command: page for page, command in reversed(COMMANDS)}
"""Each command once, with the first page that shows it."""


# -------------------------------------------------------------------- commands


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the pages' files, which Python imports from; its ``conf`` is returned."""
    for name, content in {**OWN, **PLACEHOLDERS}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "conf"
    for module in MODULES:
        sys.modules.pop(module, None)


def searched(folder: Path) -> str:
    return f"hydra.searchpath=[file://{folder}]"


@pytest.mark.slow
@pytest.mark.parametrize(("command", "page"), PLACES.items())
def test_every_command_composes(command: str, page: str, examples: Path) -> None:
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        refuse_other_targets(words[1:])
    elif words[1] == "-m" or "/" in words[1]:
        refuse_other_flags(words[1:])
    else:
        program = next(place for place, word in enumerate(words) if word.endswith(".py"))
        refuse_other_settings(words[program], words[program + 1 :], examples)


def refuse_other_settings(program: str, words: list[str], examples: Path) -> None:
    """Compose a command of an entry point, as it does before anything is loaded."""
    words = [word for word in words if not word.startswith("hydra.searchpath")]
    if program in ("sample.py", "compare.py"):
        config = program.removesuffix(".py")
        refuse_misspelt(config, as_typed(config, words))
    elif program == "audit.py":
        refuse_misspelt("audit", [*words, searched(examples)])
    else:
        words = list(takewhile(lambda word: word != "--cfg", words))
        config, words = TASKS[task_of(words)], [*words, searched(examples)]
        words = with_seeds(config, as_typed(config, words))
        if plugin := next(filter(None, map(lacking, words)), None):
            with pytest.raises(InputError, match=f"pip install {plugin}"):
                refuse_misspelt(config, words)
            return
        refuse_misspelt(config, words)
        if "-m" not in words:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                refuse_missing(compose(config, words))


def refuse_other_flags(words: list[str]) -> None:
    """Look a module or script up, and its settings or flags in its source."""
    for name, known in (("exchange", EXCHANGE), ("prompts", PROMPTS)):
        if words[:2] == ["-m", f"ipo_lightning.{name}"]:
            if len(words) > 2:
                settings_of(words[3:], known[words[2]][1])
            return
    if words[:2] == ["-m", "ipo_lightning.vbench"]:
        if words[2:3] == ["export"] and words[3:]:
            refuse_misspelt("sample", as_typed("sample", export_settings(words[3:])[1]))
        return
    found = importlib.util.find_spec(words[1]) if words[0] == "-m" else None
    source = Path(found.origin) if found and found.origin else REPO / words[0]
    flags = [word for word in words if word.startswith("--")]
    assert all(f'"{flag}"' in source.read_text() for flag in flags)


def refuse_other_targets(words: list[str]) -> None:
    """Look targets up in the Makefile, extras in setup.cfg."""
    setup = ConfigParser()
    setup.read(REPO / "setup.cfg")
    targets = re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(), re.MULTILINE)
    variables = re.findall(r"^([A-Z]+) \?=", (REPO / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        name, _, value = word.partition("=")
        assert name in (*targets, *variables)
        if name not in ("EXTRAS", *targets):
            continue
        assert set(value.split(",")) - {""} <= set(setup["options.extras_require"])


def test_downloads_are_those_of_the_configs() -> None:
    configs = "".join(file.read_text() for file in CONF.rglob("*.yaml"))
    downloads = [words for page in PAGES for _, block in blocks(page.read_text())
                 for words in re.findall(r"^hf download (.+)$", block, re.MULTILINE)]  # fmt: skip
    assert downloads
    for words in downloads:
        assert all(word in configs for word in words.split() if word != "--revision")


def test_the_pages_show_commands() -> None:
    assert len(COMMANDS) >= 12
    assert {"make demo", "make test"} <= {
        c.split("  ")[0] for page, c in COMMANDS if page == "README.md"
    }


# -------------------------------------------------------------------- examples


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("module", MODULES)
def test_python_examples_are_modules(module: str, examples: Path) -> None:
    own = vars(importlib.import_module(module)).values()
    assert all(one.__doc__ for one in own if getattr(one, "__module__", None) == module)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_yaml_examples_are_choices(
    choice: tuple[str, str], examples: Path, compose_train: ComposeTrain
) -> None:
    group, name = choice
    assert build(compose_train(f"{group}={name}", searched(examples))[group], group)


@pytest.mark.parametrize(("page", "name", "content"), NAMED)
def test_examples_agree(page: str, name: str, content: str) -> None:
    """Of a file of the repository a page shows a part; of a reader's, all pages show the same."""
    if name in OWN:
        assert content == OWN[name]
    else:
        assert content.partition("\n")[2].strip("\n") in (REPO / name).read_text()


# -------------------------------------------------------------------- plans


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "from-zero.md"])
def test_the_command_for_real_models_makes_the_plan_that_is_shown(
    page: str,
    examples: Path,
    compose_train: ComposeTrain,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the reader's own prompts, 400 of them."""
    (command,) = {
        " ".join(command.split())
        for where, command in COMMANDS
        if where == page and "experiment=ipo_" in command and "dry_run" in command
    }
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a video of {number} apples\n" for number in range(400)))
    words = command.replace("path=prompts.txt", f"path={prompts}").split()[2:]
    assert train(compose_train(*words, searched(examples))) is None
    printed = capsys.readouterr().out.replace(str(tmp_path), "outputs").splitlines()
    text = README if page == "README.md" else FROM_ZERO
    (shown,) = [block for _, block in blocks(text) if "it fits" in block]
    assert set(shown.splitlines()) - {"..."} <= {line.rstrip() for line in printed}


# -------------------------------------------------------------------- the pages themselves


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1200


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as hosts of repositories make them."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / link if link else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in headings(target), f"{page.name}: {link}#{anchor}"
