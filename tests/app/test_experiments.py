"""The experiments for real models: planned from their configs, found to fit their cards, and shown
in the README and docs/from-zero.md as the plan has them."""

import re
from pathlib import Path

import pytest

from app.entry import CONF, REPO
from ipo_lightning.errors import InputError
from tests.conftest import ComposeTrain
from train import train

EXPERIMENTS = sorted(path.stem for path in CONF.glob("experiment/ipo_*.yaml"))
CRITICS = ("critic=shapes", "eval_critic=shapes_judge")
PAGES = [(REPO / name).read_text() for name in ("README.md", "docs/from-zero.md")]
SHORTER = re.findall(r"^\| `([^`]+)` \| ([\d.]+) \|", PAGES[1], re.MULTILINE)
"""What makes a round shorter, and the hours that are left, as docs/from-zero.md has them."""


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """The override that names a file of prompts."""
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"a video of {number} apples\n" for number in range(400)))
    return f"data.prompts.path={file}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "ipo_base"])
def test_an_experiment_fits_its_card(
    name: str, compose_train: ComposeTrain, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = compose_train(f"experiment={name}", prompts, "round=1", "dry_run=true")
    assert train(cfg) is None
    printed = capsys.readouterr().out
    peak, limit = re.search(r"peak: ([\d.]+) GiB .* of ([\d.]+) GiB: it fits", printed).groups()  # type: ignore[union-attr]
    card = re.search(r"x(\d+)gb", name)
    assert cfg.plan.memory_gib == int(card[1] if card else 80)
    assert float(peak) <= float(limit) < cfg.plan.memory_gib
    assert f"{cfg.backbone.path} as published" in printed
    assert " h in all" in printed
    assert "\ncritic: KlingTeam/VideoReward (as published), 4.1 GiB of weights" in printed
    assert "\nheld-out judge: CodeGoat24/UnifiedReward" in printed and "unknown" not in printed
    rows = [row for page in PAGES for row in re.findall(rf"^\| `{name}` .*$", page, re.MULTILINE)]
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
    (shown,) = re.findall(r"^```\n(peak: .*it does not fit\n.*)\n```$", PAGES[1], re.MULTILINE)
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
