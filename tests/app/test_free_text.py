"""Free text is taken as typed: by every program, for every setting that is text."""

import random
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from app.checks import check
from app.entry import CONF, HYDRAS, refuse_misspelt, register_resolvers
from app.free_text import OWN, Hints, as_typed
from app.quoting import QUOTED, as_text
from app.signatures import settings_of_parts
from ipo_lightning.errors import InputError
from ipo_lightning.settings import is_text
from tests.conftest import ComposeTrain

TEXTS = ("7064e87", "1", "true", "010", "0x1f", "1_000", "nan", "cost ${seed}", "\\${seed}", "a, b",
         "{x", "it's", "[1, 2", "a=b", "epoch=3-step=100.ckpt", '"said', "end\\", "${oc.env:HOME}",
         "12:30", "2024-01-01", " padded ", "null?", "-1", "a\nb", "choice(a,b)")  # fmt: skip
NEEDED = {"train": [], "train_critic": [], "sample": ["critic=shapes"], "audit": ["critic=shapes"]}
CHOICES = ["data=file", "critic=ipo_form", "critic/vlm=openai", "eval_critic=reward"]
KEYS = {
    "train": ["name", "+push_to_hub", "++backbone.revision", "backbone.path", "paths.outputs",
              "paths.store", "rollout.negative_prompt", "data.prompts.path", "critic.vlm.model",
              "critic.vlm.server.base_url", "critic.vlm.server.key_variable",
              "logger.tensorboard.save_dir",
              "critic.prompt_template.prompt_text", "eval_critic.model"],
    "train_critic": ["name", "data.path", "data.videos", "network.model", "network.revision"],
    "sample": ["ckpt", "prompt", "prompts", "negative_prompt", "backbone.path"],
    "audit": ["pairs", "videos", "name", "format"],
    "compare": ["a", "b", "prompts", "name", "negative_prompt", "eval_critic.path", "paths.store"],
}  # fmt: skip
WITH = {
    "train": CHOICES,
    "train_critic": ["network=multimodal"],
    "sample": [],
    "audit": ["critic=clip"],
    "compare": ["eval_critic=clip"],
}


def composed(program: str, words: list[str]) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(program, words)


@pytest.mark.slow
@pytest.mark.parametrize("program", KEYS)
def test_every_program_takes_text_as_typed(program: str) -> None:
    keys = KEYS[program]
    for turn in range(0, len(TEXTS), len(keys)):
        given = {key: TEXTS[(turn + place) % len(TEXTS)] for place, key in enumerate(keys)}
        words = as_typed(
            program, [*WITH[program], *(f"{key}={text}" for key, text in given.items())]
        )
        refuse_misspelt(program, words)
        cfg = composed(program, words)
        assert {key: OmegaConf.select(cfg, key.lstrip("+")) for key in given} == given
        assert as_typed(program, words) == words  # the ranks that Lightning starts read it again


def test_any_text_is_read_back() -> None:
    """And what is quoted once is not quoted again."""
    draw = random.Random(0)
    parts = [*"a'\"${},[]()=#:?*\\\n\t ", "1e5", "${seed}", "true", "\u00e9"]
    for _ in range(500):
        text = "".join(draw.choice(parts) for _ in range(draw.randint(1, 7)))
        if QUOTED.fullmatch(text) or text == "null":
            continue
        word = as_text(text)
        read = OverridesParser.create().parse_override(f"prompt={word}").value()
        assert OmegaConf.create({"prompt": read, "seed": 0}).prompt == text
        assert as_text(word) == word


def test_quotes_of_ones_own_are_kept_and_refer_to_nothing() -> None:
    words = ["prompt='a, b'", 'negative_prompt="${seed}"', "ckpt=null", "prompts=", "n=2"]
    kept = as_typed("sample", words)
    assert kept == ["prompt='a, b'", 'negative_prompt="\\${seed}"', "ckpt=null", "prompts=", "n=2"]


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("name=1e5,2e5", "name='1e5','2e5'"),
        ("name=a,b", "name=a,b"),
        ("name='a, b',c", "name='a, b',c"),
        ("name=choice(1,true)", "name=choice('1','true')"),
        ("seed=1,2", "seed=1,2"),
        ("loss=dpo,kto", "loss=dpo,kto"),
        ("loss.beta=interval(100,2000)", "loss.beta=interval(100,2000)"),
        ("name=range(1,3)", "name=range(1,3)"),
        ("rollout.negative_prompt=a, b", "rollout.negative_prompt='a, b'"),
    ],
)
def test_sweeps_stay_sweeps(word: str, read: str) -> None:
    for sweep in ("-m", "--multirun", "hydra.mode=MULTIRUN"):
        assert as_typed("train", [sweep, word]) == [sweep, read]
        refuse_misspelt("train", [sweep, read])


def test_flags_and_their_values_are_left_alone(tmp_path: Path) -> None:
    words = ["-cd", f"{tmp_path}", "--cfg", "job", "--config-name=train", "--info", "all",
             "name=1e5", "seed=2", "hydra.run.dir=a b", "~logger"]  # fmt: skip
    assert as_typed("train", words) == ["name='1e5'" if one == "name=1e5" else one for one in words]
    assert as_typed("train", ["name=1e5", "--info"]) == ["name='1e5'", "--info"]
    assert as_typed("train", ["seed=2", "-m", "name=1e5,2", "-cd", "."]) == [
        "-m", "-cd", ".", "seed=2", "name='1e5','2'",
    ]  # fmt: skip


def leaves(node: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {key: node}
    return {
        place: value
        for name, one in node.items()
        if name not in HYDRAS
        for place, value in leaves(one, f"{key}.{name}".lstrip(".")).items()
    }


@pytest.mark.parametrize("program", OWN)
def test_what_every_text_is_is_declared(program: str) -> None:
    """Else a value such as 7064e87 would be read as a number."""
    cfg = composed(program, WITH[program])
    hints = Hints(cfg, {**OWN[program], **settings_of_parts()})
    found = leaves(OmegaConf.to_container(cfg, resolve=False))
    texts = [key for key, value in found.items() if isinstance(value, str)]
    assert not [key for key in texts if hints.of(key) is Any]
    free = [f"{key}=7064e87" for key in texts if is_text(hints.of(key))]
    assert len(free) > 3
    words = as_typed(program, [*WITH[program], *free])
    assert all(word.endswith("='7064e87'") for word in words[len(WITH[program]) :])


@pytest.mark.parametrize(
    ("yaml", "said"),
    [("backbone: {revision: 7064e87}", "backbone.revision=7.064e\\+90: give a text, or null"),
     ("name: 2024", "name=2024: give the name of a folder; one that looks like a number in quotes"),
     ("name: true", "name=True: give"), ("paths: {store: 1}", "paths.store=1: give a text")],
)  # fmt: skip
def test_numbers_for_texts_in_files_are_refused(
    yaml: str, said: str, compose_train: ComposeTrain, tmp_path: Path
) -> None:
    file = tmp_path / "experiment/mine.yaml"
    file.parent.mkdir()
    file.write_text(f"# @package _global_\n{yaml}\n")
    with pytest.raises(InputError, match=said):
        check(compose_train(f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"))
