"""``python train.py seeds=1,2,3``: a run for each training seed, and what they reached together.

It is a sweep over ``seed``, beside which others may be swept over; the runs share the store.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from app.quoting import QUOTED
from ipo_lightning.errors import InputError

SEEDS = re.compile(r"-?\d+(,-?\d+)+")
OWN = ("seed", "name")
"""Settings that tell the runs of a group apart."""


class SeedRun(NamedTuple):
    """A run of this process's sweep."""

    folder: Path
    seed: int
    settings: str
    """The overrides that it does not share with all other runs, such as ``loss=kto``."""
    line: Mapping[str, Any]
    """Its last line of rounds.jsonl."""


RUNS: list[SeedRun] = []
"""The runs of this process's sweep that finished a round."""


def with_seeds(config: str, arguments: Sequence[str]) -> list[str]:
    """The command line with a sweep over ``seed`` in place of ``seeds``; see `asks_for_seeds`.

    A name that is given gets each run's seed, so that each has a folder of its own.

    Raises:
        InputError: there are fewer than two seeds, or something else says which seeds there are.
    """
    if not asks_for_seeds(arguments):
        return list(arguments)
    values = [word.partition("=")[2] for word in arguments if _key(word) == "seeds"]
    given = values[-1].replace(" ", "")
    if config != "train":
        raise InputError(f"seeds={given}: seeds are for task=policy; here give seed=")
    _refuse_others(arguments, given)
    seeds = given.split(",")
    if not SEEDS.fullmatch(given) or len({*map(int, seeds)}) < len(seeds):
        expected = "give two different whole numbers or more, as seeds=1,2,3"
        raise InputError(setting="seeds", value=given, expected=expected)
    words = [_seeded(word) for word in arguments if _key(word) != "seeds"]
    sweep = [] if {"-m", "--multirun"} & {*words} else ["-m"]
    return [*sweep, *words, f"seed={given}"]


def asks_for_seeds(arguments: Sequence[str]) -> bool:
    """Whether ``seeds=`` is among the words of a command line."""
    return any(_key(word) == "seeds" and "=" in word for word in arguments)


def _refuse_others(arguments: Sequence[str], given: str) -> None:
    for word in arguments:
        if _key(word) == "seed":
            raise InputError(f"seeds={given} and {word}: give one of them")
        if _key(word) in ("hparams_search", "hydra/sweeper"):
            raise InputError(
                f"seeds={given} and {word}: a search would choose among the seeds; search with one "
                "seed, and train what it finds with several"
            )


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _seeded(word: str) -> str:
    """A word of the command line; a name for all runs with the seed added."""
    key, _, value = word.partition("=")
    if _key(word) != "name" or not value:
        return word
    if QUOTED.fullmatch(value):
        return f"{key}={value[:-1]}-s${{seed}}{value[-1]}"
    return f"{key}=" + ",".join(f"{one}-s${{seed}}" for one in value.split(","))


# -------------------------------------------------------------------- what they reached


def remember(cfg: DictConfig, line: Mapping[str, Any]) -> None:
    """Keep what a run of a sweep reached."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    words = [word for word in HydraConfig.get().overrides.task if _key(word) not in OWN]
    RUNS.append(SeedRun(Path(cfg.paths.outputs, cfg.name), int(cfg.seed), " ".join(words), line))


def told(runs: Sequence[SeedRun], command: str) -> str:
    """Write the table of runs beside them, and return it as text; "" where there are none."""
    from ipo_lightning.report import table
    from ipo_lightning.storage.store import fingerprint, write_atomically

    if not runs:
        return ""
    runs = _apart(runs)
    found = {"command": command, "runs": [*map(_run, runs)], "groups": _groups(runs)}
    name = fingerprint(sorted(run.folder.name for run in runs))[:6]
    file = runs[0].folder.parent / f"seeds-{name}.json"
    write_atomically(file, json.dumps(found, indent=1).encode())
    rows = _rows(found)
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    return f"\n{table(rows, columns)}\n\n{NOTE}\nseeds: {file}"


NOTE = (
    "mean: over training seeds, with Student's 95 % interval over the seeds' values; it holds for\n"
    "other seeds on these prompts. A seed's own interval is over prompts."
)


def _apart(runs: Sequence[SeedRun]) -> list[SeedRun]:
    """The runs with the settings alone in which they differ, by group."""
    words = [run.settings.split(" ") for run in runs]
    common = set.intersection(*map(set, words))
    own = [" ".join(one for one in some if one not in common) for some in words]
    named = [run._replace(settings=text) for run, text in zip(runs, own, strict=True)]
    order = list(dict.fromkeys(own))
    return sorted(named, key=lambda run: order.index(run.settings))


def _run(run: SeedRun) -> dict[str, Any]:
    line, gain = run.line, run.line.get("gain")
    if not isinstance(gain, Mapping):
        low, high = line.get("gain_ci") or (None, None)
        gain = {"mean": gain, "low": low, "high": high}
    low, high = line.get("win_rate_ci") or (None, None)
    return {
        "name": run.folder.name,
        "settings": run.settings,
        "seed": run.seed,
        "round": line["round"],
        "gain": dict(gain),
        "win_rate": {"mean": line.get("win_rate"), "low": low, "high": high},
    }


def _groups(runs: Sequence[SeedRun]) -> list[dict[str, Any]]:
    """The means over the seeds of equal settings and rounds, with the interval between seeds."""
    rows = [*map(_run, runs)]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["settings"], row["round"]), []).append(row)
    return [
        {
            "settings": settings,
            "round": number,
            "seeds": [row["seed"] for row in some],
            "gain": _mean([row["gain"]["mean"] for row in some]),
            "win_rate": _mean([row["win_rate"]["mean"] for row in some], 0.0, 1.0),
        }
        for (settings, number), some in groups.items()
    ]


def _mean(
    values: Sequence[float | None], least: float = -math.inf, most: float = math.inf
) -> dict[str, float | None]:
    """The mean of one value a seed, with its interval; seeds without one are left out.

    Args:
        least, most: between which values lie.
    """
    import torch

    from ipo_lightning.metrics.intervals import mean_interval

    known = torch.tensor([one for one in values if one is not None], dtype=torch.float64)
    found = mean_interval(known, torch.arange(len(known)))
    low, high = found.low, found.high
    if not math.isnan(low):
        low, high = max(low, least), min(high, most)
    numbers = {"mean": found.value, "low": low, "high": high}
    return {name: None if math.isnan(one) else round(one, 6) for name, one in numbers.items()}


def _rows(found: Mapping[str, Any]) -> list[dict[str, str]]:
    """The table: each group's seeds, and below them their mean."""
    rows = []
    for group in found["groups"]:
        key = group["settings"], group["round"]
        own = [one for one in found["runs"] if (one["settings"], one["round"]) == key]
        rows += [_row(one, str(one["seed"]), one["name"]) for one in own]
        rows.append(_row(group, f"mean of {len(own)}", ""))
    return rows


def _row(one: Mapping[str, Any], seed: str, name: str) -> dict[str, str]:
    from ipo_lightning.report.tables import interval

    gain, wins = one["gain"], one["win_rate"]
    return {
        "settings": one["settings"],
        "seed": seed,
        "round": str(one["round"]),
        "gain": interval(gain["mean"], (gain["low"], gain["high"]), "+.3f"),
        "win rate": interval(wins["mean"], (wins["low"], wins["high"])),
        "run": name,
    }
