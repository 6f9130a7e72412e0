"""Every setting of every shipped config: a wrong value is refused, and nothing else happens."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from app.audit_settings import check_audit
from app.checks import check, check_critic
from app.entry import CONF, HYDRAS, choices_of, refuse_missing, register_resolvers
from app.free_text import OWN, Hints
from app.sample_settings import check_sample
from app.signatures import settings_of_parts
from ipo_lightning.errors import InputError
from ipo_lightning.settings import check as check_value

WRONG = [None, True, -1, 0, 1.5, 10**20, math.nan, math.inf, "text", "", [], [1], [None], {},
         {"a": 1}, "/dev/zero"]  # fmt: skip
CHECKS: dict[str, Callable[[DictConfig], None]] = {
    "train": check, "train_critic": check_critic, "sample": check_sample, "audit": check_audit,
}  # fmt: skip
NEEDED = {"train": [], "train_critic": ["data.path=setup.cfg"], "sample": ["ckpt=x", "prompt=x"],
          "audit": ["pairs=setup.cfg"]}  # fmt: skip
GROUPS = {
    "train": [path.name for path in CONF.iterdir() if path.is_dir()
              if path.name not in ("network", "reward_loss", "paths", "eval_critic",
                                   "hparams_search")],  # a plugin's settings
    "train_critic": ["network", "reward_loss", "optim"],
    "sample": ["rollout"],
    "audit": [],
}  # fmt: skip
GIVEN = {"data=imported": ["data.imported.path=setup.cfg"], "data=file": ["data.prompts.path=x"],
         "critic=reward": ["critic.model=x"], "critic=trained": ["critic.path=x"],
         "audit": ["critic=shapes"], "reference=adapter": ["experiment=shapes_lora"],
         "critic/vlm=openai": ["critic=ipo_form", "critic.vlm.model=x"],
         "rollout=served": ["rollout.served.model=x"]}  # fmt: skip


def places(node: Any, key: str = "") -> Iterator[str]:
    """The full key of every setting, but for what chooses a part."""
    for name, value in node.items() if isinstance(node, dict) else ():
        if name not in HYDRAS:
            yield f"{key}.{name}".lstrip(".")
            yield from places(value, f"{key}.{name}".lstrip("."))


def composed(program: str) -> Iterator[DictConfig]:
    """What a program may be given: its defaults, then each choice."""
    choices = [f"{group}={name}" for group in GROUPS[program] for name in choices_of(group)]
    for choice in ["", *choices, *(["critic/vlm=openai"] if program == "train" else [])]:
        words = [*NEEDED[program], *GIVEN.get(choice or program, []), *([choice] if choice else [])]
        if choice.startswith("experiment=ipo_"):
            words.append("data.prompts.path=x")
        yield compose(program, words)


def settings(program: str) -> Iterator[tuple[DictConfig, str, Any]]:
    """A configuration without references, the key of a setting, its annotation: each once."""
    seen = set()
    for cfg in composed(program):
        OmegaConf.set_struct(cfg, False)
        if "name" in cfg:
            cfg.name = "x"
        plain = OmegaConf.to_container(cfg, resolve=True)
        plain.pop("hydra", None)  # type: ignore[union-attr]
        cfg = OmegaConf.create(plain)  # type: ignore[arg-type]
        hints = Hints(cfg, {**OWN[program], **settings_of_parts()})
        for key in places(plain):
            target = OmegaConf.select(cfg, f"{key.rpartition('.')[0]}._target_")
            known = (target, key.rpartition(".")[2]) if target else key
            if known not in seen:
                seen.add(known)
                yield cfg, key, hints.of(key)


def takes(key: str, value: Any, hint: Any) -> bool:
    try:
        check_value(key, value, hint)
    except InputError as error:
        assert str(error).startswith(key) and "\n" not in str(error)
        return False
    return True


def refused(program: str, cfg: DictConfig, key: str, value: Any) -> str:
    """What a program says of a value; '' where it takes it. It never fails otherwise."""
    above, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, above) if above else cfg
    old = node[name]
    node[name] = value
    try:
        refuse_missing(cfg)
        CHECKS[program](cfg)
    except InputError as error:
        return str(error)
    except Exception as error:
        pytest.fail(f"{program}: {key}={value!r}: {type(error).__name__}: {error}")
    finally:
        node[name] = old
    return ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the held-out judge")
@pytest.mark.parametrize("program", CHECKS)
def test_a_wrong_value_of_any_setting_is_refused(program: str) -> None:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for cfg, key, hint in settings(program):
            taken = [value for value in WRONG if takes(key, value, hint)]
            for value in taken:
                refused(program, cfg, key, value)
            others = [value for value in WRONG if value not in taken and value == value]
            if others:
                assert refused(program, cfg, key, others[-1]), f"{key}={others[-1]}"
