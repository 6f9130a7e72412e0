"""How the entry points read their configuration: resolvers, early refusals, run names.

Nothing heavy is imported here, so that a misspelt key is refused in the first second.
"""

import difflib
import functools
import hashlib
import json
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from app.ending import fail
from app.held_out import register_held_out
from app.later import load_later
from app.quoting import quoted
from app.renamed import old_name
from ipo_lightning.errors import InputError, pipe_may_close, within
from ipo_lightning.parallel.degrees import Degrees
from ipo_lightning.parallel.signals import Stopped, stop_signals
from ipo_lightning.settings import signature_of
from ipo_lightning.storage.writing import cause

# Idle OpenMP threads spin by default: beside any other busy process that makes every small
# operation wait for a whole time slice (measured: 20 to 40 times slower). It must be set before
# torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Where the extra gpu is installed, diffusers imports it, and each part says what it lacks.
for part in ("bitsandbytes", "torchao", "torch.utils._pytree", "diffusers.quantizers"):
    logging.getLogger(part).setLevel(logging.ERROR)
load_later("bitsandbytes")  # a second, of which only 8-bit optimizers and weights make use

REPO = Path(__file__).resolve().parent.parent
CONF = REPO / "conf"

TASKS = {"policy": "train", "critic": "train_critic"}
"""What train.py trains -> the configuration of it."""
PASSING = ("task", "round", "name", "until", "dry_run", "report_only", "debug", "plan",
           "push_to_hub", "requeue", "accept_version", "log", "paths", "logger", "callbacks",
           "guards", "stages", "start", "start_merge", "hydra")  # fmt: skip
"""Keys that do not change what a run computes."""
PLACES = (("critic", "answers"), ("eval_critic", "answers"), ("network", "cache"))
"""Settings that say where something lies that is known by its content, or that saves time."""
REACHED = ("server", "reload", "wait", "poll", "form")
"""Settings of ``rollout.served`` that say how a server is reached, and not what it makes."""
OPTIONAL = ("critic", "eval_critic", "rollout")
"""Groups that sample.py, audit.py and compare.py may do without: Hydra passes over a choice that is
none."""
HYDRAS = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
"""Keys of a node that are no settings of its target."""
TRAINER = ("precision", "accumulate_grad_batches", "gradient_clip_val")
"""Keys of the trainer that do."""
MORE_TRAINER = ("gradient_clip_algorithm", "benchmark", "deterministic")
"""The same; part of a run's settings where they are given."""


def register_resolvers() -> None:
    """``${repo:PATH}``: a path in the clone; ``${run_name:}``, ``${critic_name:}``: a name made of
    the choices. Also every critic as a choice of ``eval_critic``."""
    OmegaConf.register_new_resolver("repo", lambda path: str(REPO / path), replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("critic_name", critic_name, replace=True)
    register_held_out(CONF)


def settings(cfg: DictConfig) -> dict[str, Any]:
    """What determines a run's results, as plain JSON that is the same in every clone."""
    found: dict[str, Any] = within_clone(json.loads(json.dumps(determining(cfg))))
    return found


LATER = {
    "float32_matmul": "highest",
    "rollout.served": None,
    **{
        f"rollout.{name}": None
        for name in ("guidance_interval", "guidance_forwards", "attention", "compile")
    },
    **{
        f"rollout.draft.{name}": None
        for name in (
            "prune_at",
            "critic",
            "margin",
            "guidance_interval",
            "attention",
            "compile",
            "lora",
            "weights",
        )
    },
    "evaluation.guidance_scale": None,
}
"""Settings that runs of before do not name, and the values by which they computed."""


def determining(cfg: DictConfig) -> dict[str, Any]:
    """The settings that determine a run's results, resolved, with their paths as they are."""
    kept: dict[str, Any] = {
        str(key): OmegaConf.to_container(cfg[key], resolve=True)
        if OmegaConf.is_config(cfg[key])
        else cfg[key]
        for key in cfg
        if key not in (*PASSING, "trainer")
    }
    for key, value in LATER.items():
        _drop(kept, key.split("."), value)
    rollout = kept.get("rollout") or {}
    for key in REACHED:
        (rollout.get("served") or {}).pop(key, None)
    if not any((rollout.get("draft") or {}).values()):
        rollout.pop("draft", None)  # runs of before made none, and do not name it
    kept["trainer"] = {key: cfg.trainer.get(key) for key in TRAINER}
    given = {key: cfg.trainer.get(key) for key in MORE_TRAINER}
    kept["trainer"] |= {key: value for key, value in given.items() if value is not None}
    for group, key in PLACES:
        (kept.get(group) or {}).pop(key, None)
    return kept


def _drop(kept: dict[str, Any], key: Sequence[str], value: Any) -> None:
    """Remove a setting that has this value."""
    *groups, name = key
    for group in groups:
        kept = kept.get(group) or {}
    if kept.get(name, ...) == value:
        del kept[name]


def within_clone(value: Any) -> Any:
    """Plain data in which paths in this clone start at the clone, wherever it lies."""
    if isinstance(value, dict):
        return {within_clone(key): within_clone(one) for key, one in value.items()}
    if isinstance(value, list):
        return [within_clone(one) for one in value]
    return value.replace(f"{REPO}/", "") if isinstance(value, str) else value


def settings_but_batches(cfg: DictConfig) -> dict[str, Any]:
    """`settings`, with the labels an update takes on all devices in place of how it gets them.

    Two batches of 8 and one of 16 train the same; where the number of devices is left to be found
    out, nothing is known and nothing replaced.
    """
    found = settings(cfg)
    devices, nodes = cfg.trainer.devices, cfg.trainer.num_nodes
    if isinstance(devices, int) and devices > 0:
        batch = found["data"].pop("batch_size") * found["trainer"].pop("accumulate_grad_batches")
        found["labels an update"] = batch * devices * nodes // degrees_of(cfg).size
    return found


def degrees_of(cfg: DictConfig) -> Degrees:
    """How many devices make a forward together (context parallelism)."""
    strategy = cfg.trainer.strategy
    if not isinstance(strategy, DictConfig):
        return Degrees()
    with within("trainer.strategy"):
        return Degrees(strategy.get("ulysses", 1), strategy.get("ring", 1))


def run_name(*, _root_: DictConfig) -> str:
    """``BACKBONE-LOSS[-lora]-sSEED-HASH``: equal settings share a name, others never do."""
    loss = str(_root_.loss.get("_target_", "loss")).rpartition(".")[2].removesuffix("_loss")
    parts = [str(_root_.backbone.get("name", "model")), loss]
    if _root_.backbone.get("lora"):
        parts.append("lora")
    return _named(_root_, parts)


def critic_name(*, _root_: DictConfig) -> str:
    """``critic-LOSS-sSEED-HASH``, see `run_name`."""
    loss = str(_root_.reward_loss.get("_target_", "loss")).rpartition(".")[2]
    return _named(_root_, ["critic", loss])


def _named(cfg: DictConfig, parts: list[str]) -> str:
    text = json.dumps(settings(cfg), sort_keys=True)
    return "-".join([*parts, f"s{cfg.seed}", hashlib.sha256(text.encode()).hexdigest()[:6]])


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """``key: old -> new`` for every setting that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys(), key=str):
            yield from differences(old.get(key), new.get(key), f"{prefix}.{key}".lstrip("."))
    elif old != new:
        yield f"{prefix}: {old} -> {new}"


def build(node: Any, key: str, **extra: Any) -> Any:
    """Make what a config node describes, its parts first.

    Each class or function is checked against its own annotations before it is called, see
    `ipo_lightning.settings`.

    Args:
        key: where the node stands among the settings.
        extra: for the outermost call: objects made elsewhere, and what takes a setting's place.

    Raises:
        InputError: names the wrong setting by its full key.
    """
    if OmegaConf.is_config(node):
        node = OmegaConf.to_container(node, resolve=True)
    if isinstance(node, list):
        return [build(one, f"{key}.{place}") for place, one in enumerate(node)]
    if not isinstance(node, dict):
        return node
    own = {name: value for name, value in node.items() if name not in HYDRAS}
    if node.get("_recursive_", True):
        own = {name: build(value, f"{key}.{name}") for name, value in own.items()}
    return _called(node, key, own, extra) if "_target_" in node else own


def _called(node: dict[str, Any], key: str, own: dict[str, Any], extra: dict[str, Any]) -> Any:
    """What a node's target makes of its settings; a partial, where it says so."""
    target = {name: node[name] for name in ("_target_", "_args_") if name in node}
    try:
        found = instantiate(target, _partial_=True, _convert_="all")
        with within(key):
            if signature := signature_of(found.func):
                signature.check(own)
            if node.get("_partial_"):
                return functools.partial(found.func, *found.args, **own)
            return found(**{**own, **extra})
    except InputError:
        raise
    except Exception as error:
        if extra and not isinstance(error, InstantiationException | TypeError):
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        raise InputError(f"{key}: {one_line(cause or error)}") from error


def refuse_missing(cfg: DictConfig) -> None:
    """Refuse values that have no honest default and were not given."""
    missing = sorted(_missing(OmegaConf.to_container(cfg, resolve=False)))
    if missing:
        raise InputError(f"{missing[0]} has no default: give {missing[0]}=VALUE")


def _missing(node: Any, key: str = "") -> Iterator[str]:
    """Keys of the values that are ``???``; omegaconf's own search fails at what refers to one."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _missing(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list):
        for place, value in enumerate(node):
            yield from _missing(value, f"{key}[{place}]")
    elif node == "???":
        yield key


# -------------------------------------------------------------------- the command line


def refuse_misspelt(config: str, arguments: Sequence[str]) -> None:
    """Compose every choice on the command line once, before anything heavy is imported.

    Raises:
        InputError: a key or a choice does not exist; the message names the nearest one.
    """
    if any(a.startswith("-") and a not in ("-m", "--multirun") for a in arguments):
        return  # --help, --cfg and the like are Hydra's own
    words = [a for a in arguments if not a.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(words)
    except HydraException as error:
        raise InputError(_unparsed(words, error)) from error
    with composer():
        for one in single_runs(overrides):
            _compose(config, one)


def _unparsed(words: Sequence[str], error: HydraException) -> str:
    """Which word Hydra's grammar does not take, and how it is quoted."""
    for word in words:
        try:
            OverridesParser.create().parse_override(word)
        except HydraException:
            key, equals, _ = word.partition("=")
            if not equals:
                return f"{word}: give KEY=VALUE ({word!r} has no =)"
            text = f"{key}={quoted(word.partition('=')[2])}"
            shown = f'"{text}"' if not set(text) & set('"$`\\!') else shlex.quote(text)
            return f"{word}: Hydra does not take this value as it is; quote it, as {shown}"
    return one_line(error)


def task_of(arguments: Sequence[str]) -> str:
    """What ``task=`` asks for on the command line; without it, a policy.

    Raises:
        InputError: there is no such task.
    """
    given = [found[1] for word in arguments if (found := re.fullmatch(r"\+{0,2}task=(.*)", word))]
    task = given[-1].strip("'\"") if given else "policy"
    if task not in TASKS:
        raise InputError(f"task={task}: choose one of {', '.join(TASKS)}{_nearest(task, [*TASKS])}")
    return task


@contextmanager
def friendly(debug: bool) -> Iterator[None]:
    """End with one to three lines and status 1 where the input is at fault, and with a signal's
    status (143 of SIGTERM, 130 of Ctrl-C) where one came."""
    try:
        with stop_signals(), pipe_may_close(), none_lacking():
            yield
    except Stopped as stopped:
        if stopped.told:
            print(f"\n{stopped.told}", file=sys.stderr)  # noqa: T201 - below a progress bar
        raise
    except InputError as error:
        if debug:
            traceback.print_exc()
        fail(str(error))
    except OSError as error:  # of a file that others write, such as a logger
        unwritten = cause(error, Path(error.filename or "."))
        if debug or unwritten is None:
            raise
        fail(str(unwritten))


@contextmanager
def none_lacking() -> Iterator[None]:
    """Say which setting was deleted, or that ``${...}`` leads nowhere.

    Raises:
        InputError: in place of OmegaConf's own errors.
    """
    try:
        yield
    except OmegaConfBaseException as error:
        said = r"(?:Key '.*' is not in struct|Missing key \S+)\s+full_key: (\S+)"
        if lacking := re.search(said, str(error)):
            needed = "it cannot be done without; leave it as it is"
            raise InputError(setting=lacking[1], expected=needed) from error
        raise InputError(one_line(error)) from error


def single_runs(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """The overrides with each sweep's first choice, then with each further choice in its turn."""
    choices = [_choices(override) for override in overrides]
    first = [options[0] for options in choices]
    yield first
    for place, options in enumerate(choices):
        for option in options[1:]:
            yield [*first[:place], option, *first[place + 1 :]]


def _choices(override: Override) -> list[str]:
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line]
    key = line.partition("=")[0]
    if not override.is_discrete_sweep():
        interval: Any = override.value()  # the sweeper chooses; its ends stand for it
        return [f"{key}={end}" for end in (interval.start, interval.end)]
    if "glob(" in line:
        return [line] if key == line else [f"{key}={choices_of(key)[0]}"]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def choices_of(group: str) -> list[str]:
    """The shipped choices of a config group."""
    folders = [CONF / group, CONF / "critic"] if group == "eval_critic" else [CONF / group]
    return sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})


def _compose(config: str, words: list[str]) -> DictConfig:
    try:
        cfg = compose(config, words)
    except MissingConfigException as error:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        options = [str(option) for option in error.options or choices_of(group)]
        raise InputError(_no_such_choice(group, choice, options)) from error
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise InputError(_explain(config, words, error)) from error
    for word in words:
        group, _, choice = word.partition("=")
        if group in OPTIONAL and cfg.get(group) is None:
            raise InputError(_no_such_choice(group, choice, choices_of(group)))
    return cfg


def _no_such_choice(group: str, choice: str, options: Sequence[str]) -> str:
    if group in ("hydra/sweeper", "hydra/launcher"):
        plugin = f"hydra-{choice.partition('_')[0]}-{group.partition('/')[2]}"
        there = ", ".join(options)
        return f"{group}={choice}: not installed (there are {there}): pip install {plugin}"
    near = _nearest(choice, options)
    return f"{group}={choice}: no such choice{near} (there are {', '.join(options)})"


def _explain(config: str, words: list[str], error: Exception) -> str:
    """Name the choice that was not made, or the word whose key does not exist: Hydra says which."""
    said = str(error)
    if unmade := re.search(r"You must specify '(\w+)'", said):
        options = ", ".join(choices_of(unmade[1]))
        return (
            f"{unmade[1]} has no default here: give {unmade[1]}=CHOICE, one of your own "
            f"(docs/extending.md; shipped are {options})"
        )
    if taken := re.search(r"'(\S+)' is validated against ConfigStore", said):
        return f"{taken[1]}.yaml: a choice of this name is shipped; give your file another name"
    no_name = "override must be a string" in said  # of one of the words
    for word in words:
        key, _, value = word.partition("=")
        odd = value in ("null", "") or value[:1] == "["
        odd = odd or (no_name and (value in ("true", "false") or not value[:1].isalpha()))
        if (group := group_of(key)) and odd:
            return f"{word}: give one of {', '.join(choices_of(group))}, or leave it out"
    if unlike := re.search(r"Error merging override (.+)", said):
        return f"{unlike[1]}: a list, a mapping or a plain value does not go where another stands"
    refused = re.search(r"Could not override '([^']+)'", said)
    if not refused:
        return one_line(error)
    word = next((word for word in words if word.partition("=")[0] == refused[1]), refused[1])
    if now := old_name(word):
        return now
    if "default list" in said:  # a group that exists, but that nothing chooses from
        near = re.search(r"Did you mean to override (.+)\?", said)
        hint = f"; did you mean {near[1]}?" if near else ""
        return f"{word}: with the other choices there is no {refused[1]} to choose{hint}"
    return _no_such_setting(config, words, word)


def _no_such_setting(config: str, words: list[str], word: str) -> str:
    """What is wrong with a word that Hydra refused, by what the choices among the words have."""
    key = word.partition("=")[0]
    if group := group_of(key):  # of which nothing is chosen yet
        return f"{word}: choose one of {', '.join(choices_of(group))}, or add settings with +{word}"
    choices = [one for one in words if group_of(one.partition("=")[0])]
    places = [one for one in words if one.startswith("hydra.searchpath=")]
    cfg = compose(config, [*choices, *places])
    known = _keys(cfg)
    if key in known:  # a mapping, which Hydra merges into the one that is there
        names = ", ".join(map(str, OmegaConf.select(cfg, key)))
        return f"{word}: {key} has {names} and no other names; add a new one with +{word}"
    chosen = [one for one in choices if one.partition("=")[0] == key.partition(".")[0]]
    beside = f" with {chosen[-1]}" if chosen else ""
    within = [path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")]
    groups = [] if "." in key else within
    alike = [one for one in [*known, *groups] if "._" not in one and not key.startswith(f"{one}.")]
    near = _nearest(key, alike)
    return f"{word}: there is no setting {key!r}{beside}{near}; add a new one with +{word}"


def group_of(key: str) -> str:
    """The group of an override's key that is a choice, as ``+critic/vlm@critic.vlm``; else ''."""
    group = key.lstrip("+~").partition("@")[0]
    return group if group and (CONF / group).is_dir() else ""


def _keys(cfg: Any, prefix: str = "") -> list[str]:
    found = []
    for key in cfg:
        found.append(f"{prefix}{key}")
        if not OmegaConf.is_missing(cfg, key) and OmegaConf.is_dict(cfg._get_node(key)):
            found += _keys(cfg._get_node(key), f"{prefix}{key}.")
    return found


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def one_line(error: BaseException) -> str:
    """The beginning of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])


@contextmanager
def composer() -> Iterator[None]:
    """Hydra's compose API, leaving no trace for `hydra.main`."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield
    GlobalHydra.instance().clear()
