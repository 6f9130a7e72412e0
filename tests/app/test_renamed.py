"""Old names: refused on the command line with the new one, read in the folders of old runs."""

from pathlib import Path

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from app import claiming
from app.entry import refuse_misspelt
from app.renamed import TARGETS, with_new_names
from ipo_lightning.errors import InputError
from ipo_lightning.storage.layout import RunDir
from tests.conftest import ComposeTrain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "new"),
    [
        (["data.updates=6"], "give data.optimizer_steps=6"),
        (["labelling.guards.motion_ratio=0"], "give labelling.filters.motion_ratio=0"),
        (["optim.warmup_updates=1"], "give optim.warmup_steps=1"),
        (["calibration.visits=9"], "give calibration.draws=9"),
        (["callbacks.iteration.together=1"], "give callbacks.iteration.parallel_prompts=1"),
        (["critic=ipo_form", "critic/chat=openai"], "give critic/vlm=openai"),
        (["critic=ipo_form", "critic.chat.model=m"], "give critic.vlm.model=m"),
        (["critic=ipo_form", "critic.form.wording=own"], "critic.prompt_template.prompt_text=own"),
        (["eval_critic=hpsv3", "eval_critic.wording=f"], "give eval_critic.prompt_text=f"),
        (["critic=human", "critic.enough=0.9"], "give critic.min_answered=0.9"),
    ],
)
def test_an_old_name_is_refused_with_the_new_one(words: list[str], new: str) -> None:
    with pytest.raises(InputError, match=r"is now called") as refused:
        refuse_misspelt("train", words)
    assert new in str(refused.value)


def test_every_target_is_where_the_table_says() -> None:
    for new in TARGETS.values():
        assert get_object(new) is not None


def test_names_of_others_stay() -> None:
    theirs = {"critic": {"_target_": "mine.Critic", "chat": 1, "form": {"wording": "x"}}}
    assert with_new_names(theirs) == theirs
    members = {"critic": {"members": {"form": {"_target_": "mine.Critic"}}}}
    assert with_new_names(members) == members


def test_the_folder_of_an_old_run_is_taken_for_what_it_is(
    compose_train: ComposeTrain, tmp_path: Path
) -> None:
    """Its config.yaml has the names of the time; one value that differs is still refused."""
    new, run = compose_train("critic=ipo_form", "critic.vlm.model=m"), RunDir(tmp_path / "run")
    text = OmegaConf.to_yaml(claiming.without_hydra(new), resolve=True)
    for today, before in (
        ("optimizer_steps:", "updates:"),
        ("  filters:", "  guards:"),
        ("labelling.Filters", "labelling.Guards"),
        ("labelling.tournaments", "tournaments"),
        ("  prompt_template:", "  form:"),
        ("critics.vlm.templates", "critics.forms"),
        ("  vlm:", "  chat:"),
        ("critics.vlm.local.LocalVLM", "critics.local.LocalChat"),
        ("critics.vlm.critics.PairVLMCritic", "critics.judges.PairJudge"),
        ("prompt_text:", "wording:"),
        ("draws.calibration", "calibration"),
        ("warmup_steps:", "warmup_updates:"),
    ):
        assert today in text
        text = text.replace(today, before)
    run.path.mkdir()
    run.config_file.write_text(text)
    claiming.claim(run, new)
    run.config_file.write_text(text.replace("updates: 80", "updates: 81"))
    with pytest.raises(InputError, match=r"data\.optimizer_steps: 81 -> 80"):
        claiming.claim(run, new)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[1]", "a: *b", "trainer:\n", "trainer: 3\ndata: 1\n",
                                  "seed: 1\n", "trainer: {a: 1}\ndata: []\n"])  # fmt: skip
def test_a_run_whose_settings_are_damaged_is_refused(
    text: str, compose_train: ComposeTrain, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.config_file.write_text(text)
    with pytest.raises(InputError) as refused:
        claiming.claim(run, compose_train())
    assert str(run.path) in str(refused.value) and run.config_file.read_text() == text
