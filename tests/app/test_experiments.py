"""The experiments for real models: planned from their configs, found to fit their cards and their
hours, and shown in the README and the docs as the plan has them."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.entry import CONF, REPO
from ipo_lightning.errors import InputError
from tests.conftest import ComposeTrain
from train import train

EXPERIMENTS = sorted({path.stem for path in CONF.glob("experiment/ipo_*.yaml")} - {"ipo_base"})
CRITICS = ("critic=shapes", "eval_critic=shapes_judge")
WHOLE_RUNS = [(REPO / name).read_text() for name in ("README.md", "docs/first-real-run.md")]
"""Pages with figures of three rounds with the shipped prompts."""
FROM_ZERO = (REPO / "docs/from-zero.md").read_text()
"""With figures of the first round, of 400 prompts."""
CARDS = {"day": 80, "weekend": 24}
HOURS = {"day": 24, "weekend": 60}
SHORTER = re.findall(r"^\| `([^`]+)` \| ([\d.]+) \|", FROM_ZERO, re.MULTILINE)
"""What makes a round shorter, and the hours that are left, as docs/from-zero.md has them."""


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """The override that names a file of prompts."""
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a video of {number} apples\n" for number in range(400)))
    return f"data.prompts.path={file}"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_fits_its_card(
    name: str, compose_train: ComposeTrain, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = compose_train(f"experiment={name}", "dry_run=true")
    assert train(cfg) is None
    printed = capsys.readouterr().out
    peak, limit = re.search(r"peak: ([\d.]+) GiB .* of ([\d.]+) GiB: it fits", printed).groups()  # type: ignore[union-attr]
    card, length = re.search(r"x(\d+)gb", name), name.rpartition("_")[2]
    assert cfg.plan.memory_gib == (int(card[1]) if card else CARDS.get(length, 80))
    assert float(peak) <= float(limit) < cfg.plan.memory_gib
    assert cfg.round == 3 and float(hours_of(printed)) <= HOURS.get(length, 1000)
    assert f"{cfg.backbone.path} as published" in printed
    assert "\ncritic: KlingTeam/VideoReward (as published), 4.1 GiB of weights" in printed
    assert "\nheld-out judge: CodeGoat24/UnifiedReward" in printed and "unknown" not in printed
    refuse_other_figures(WHOLE_RUNS, name, printed)
    if f"| `{name}`" in FROM_ZERO:
        train(compose_train(f"experiment={name}", prompts, "round=1", "dry_run=true"))
        refuse_other_figures([FROM_ZERO], name, capsys.readouterr().out)


def refuse_other_figures(pages: Sequence[str], name: str, printed: str) -> None:
    """The rows of an experiment in tables of pages have the peak and the hours of a plan."""
    rows = [row for page in pages for row in re.findall(rf"^\| `{name}` .*$", page, re.MULTILINE)]
    peak = re.search(r"peak: ([\d.]+) GiB", printed)[1]  # type: ignore[index]
    assert all(row.endswith(f"| {hours_of(printed)} |") for row in rows)
    assert all(f" {peak} " in row.replace("GiB", "") for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("change", "hours"), SHORTER)
def test_a_round_is_made_shorter(
    change: str,
    hours: str,
    compose_train: ComposeTrain,
    prompts: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = "experiment=ipo_cogvideox_2b_lora_1x80gb"
    words = (experiment, prompts, *change.split(), "round=1", "dry_run=true")
    assert train(compose_train(*words)) is None
    assert float(hours_of(capsys.readouterr().out)) == float(hours)


@pytest.mark.slow
def test_what_would_fit_is_named(
    compose_train: ComposeTrain, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As docs/from-zero.md shows it."""
    (shown,) = re.findall(r"^```\n(peak: .*it does not fit\n.*)\n```$", FROM_ZERO, re.MULTILINE)
    words = ("experiment=ipo_cogvideox_2b_lora_1x80gb", prompts, "plan.memory_gib=24")
    train(compose_train(*words, "round=1", "dry_run=true"))
    assert shown in capsys.readouterr().out


def hours_of(printed: str) -> str:
    """Of all rounds together."""
    found = re.search(r"([\d.]+) h in all", printed)
    assert found
    return found[1]


@pytest.mark.slow
def test_real_videos_are_labelled_and_judged_by_critics_of_other_makes(
    compose_train: ComposeTrain, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan needs nothing of theirs."""
    cfg = compose_train("experiment=ipo_wan_1_3b", prompts, "dry_run=true")
    assert cfg.critic.model == "KlingTeam/VideoReward"
    assert cfg.eval_critic.vlm.model == "CodeGoat24/UnifiedReward-2.0-qwen-7b"
    assert train(cfg) is None
    assert "critic calls" in capsys.readouterr().out
    with pytest.raises(InputError, match="prompt_text=absent.py: .*No such file"):
        train(compose_train("experiment=ipo_wan_1_3b", CRITICS[1], prompts, "dry_run=true",
                            "critic.prompt_text=absent.py"))  # fmt: skip


def test_the_papers_setting_is_the_papers(compose_train: ComposeTrain, prompts: str) -> None:
    cfg = compose_train("experiment=ipo_paper", *CRITICS, prompts)
    assert (cfg.rollout.n, cfg.round, cfg.labelling.pair_rule.depth) == (8, 3, 1)
    assert cfg.trainer.devices * cfg.trainer.num_nodes == 128
    pairs = (
        128 * cfg.data.optimizer_steps * cfg.data.batch_size * cfg.trainer.accumulate_grad_batches
    )
    assert pairs == pytest.approx(100_000, rel=0.01)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`")
def test_an_unknown_hub_id_is_no_plan(compose_train: ComposeTrain) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        train(compose_train("backbone=cogvideox_2b", "backbone.path=some/model", "dry_run=true"))
