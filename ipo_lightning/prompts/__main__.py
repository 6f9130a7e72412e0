"""Command line: compose a prompt set, add prompts to it, check one.

python -m ipo_lightning.prompts compose out=prompts.jsonl n=420
python -m ipo_lightning.prompts add path=captions.txt out=prompts.jsonl category=human
python -m ipo_lightning.prompts check path=prompts.jsonl against=VBench_full_info.json
"""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ipo_lightning.commands import Command, by_settings, run
from ipo_lightning.errors import InputError, pipe_may_close
from ipo_lightning.prompts.files import read_listed
from ipo_lightning.prompts.likeness import THRESHOLD, Known
from ipo_lightning.prompts.sets import (
    Entry,
    Shares,
    counts,
    crossing,
    grown,
    missing,
    read_benchmark,
    read_set,
    write_set,
)

if TYPE_CHECKING:
    from ipo_lightning.prompts.expanding import Expander

VBENCH = "VBench_full_info.json"
_SET: Mapping[str, str | None] = {
    "out": None, "select": "0.15", "final": "0.2", "likeness": str(THRESHOLD), "against": "auto"
}  # fmt: skip
COMPOSE: Mapping[str, str | None] = {
    **_SET, "n": "420", "seed": "0", "model": "", "base_url": "http://localhost:8000/v1",
    "key_variable": "OPENAI_API_KEY", "temperature": "0.7",
}  # fmt: skip
ADD: Mapping[str, str | None] = {**_SET, "path": None, "key": "prompt", "category": ""}
CHECK: Mapping[str, str | None] = {
    "path": None, "key": "prompt", "likeness": str(THRESHOLD), "against": "auto"
}  # fmt: skip
"""Settings with their defaults; None: must be given."""
HELP = f"""settings:
  compose out=FILE.jsonl|.csv the set; one that is there grows, and nothing in it changes
          n=420               prompts in all, equally many of each category
          seed=0              other words
          model=NAME          a language model that expands each prompt, behind
          base_url=http://localhost:8000/v1, with the key in key_variable=OPENAI_API_KEY
          temperature=0.7     of its answers
  add     path=FILE           prompts of yours: .txt, or a table with the column key=prompt
          out=FILE.jsonl|.csv the set that they are added to, with category=NAME where path has none
  check   path=FILE           near-duplicates across splits, prompts of benchmarks
  compose, add:
          select=0.15 final=0.2    shares of the new prompts that are held out
  all:    likeness={THRESHOLD}        Jaccard index of content words from which on two are alike
          against=FILE,FILE   benchmarks whose prompts must not be in the set; auto: VBench's
                              {VBENCH}, here or in the installed package
"""


def compose(settings: Mapping[str, str]) -> str:
    """Bring a set to a number of prompts, equally many of each category."""
    out, known, shares = Path(settings["out"]), _benchmarks(settings), _shares(settings)
    entries = read_set(out)
    for text in (text for one in entries for text in one.texts):
        known.add(text)
    expander = _expander(settings) if settings["model"] else None
    lacking = missing(entries, _whole("n", settings, least=1))
    new = grown(
        lacking, known, shares, seed=_whole("seed", settings), expand=expander or list
    )  # fmt: skip
    for more in new:
        entries += more
        write_set(out, entries)  # what was paid for is kept
    return "\n".join([f"{out}: {len(entries)} prompts, {sum(lacking.values())} of them new",
                      *counts(entries), *_left_out(expander), *_unchecked(settings)])  # fmt: skip


def add(settings: Mapping[str, str]) -> str:
    """Take prompts of a file into a set, without those that are like others."""
    out, known, shares = Path(settings["out"]), _benchmarks(settings), _shares(settings)
    entries = read_set(out)
    for text in (text for one in entries for text in one.texts):
        known.add(text)
    listed = read_listed(Path(settings["path"]), settings["key"])
    new = []
    for row in listed:
        if not known.like(row.prompt):
            known.add(row.prompt)
            category = row.category or settings["category"] or None
            new.append(Entry(row.prompt, category, row.split or shares.of(row.prompt)))
    if new:
        write_set(out, [*entries, *new])
    told = f"{out}: {len(new)} of {len(listed)} prompts added, the others are near-duplicates"
    return "\n".join([told, *counts([*entries, *new]), *_unchecked(settings)])


def check(settings: Mapping[str, str]) -> str:
    """What is in a file of prompts.

    Raises:
        InputError: near-duplicates are in different splits, or like a benchmark's prompts.
    """
    path, benchmarks = Path(settings["path"]), _benchmarks(settings)
    rows = read_listed(path, settings["key"])
    default = Shares(0.05, 0.05)  # of data=file
    entries = [Entry(r.prompt, r.category, r.split or default.of(r.prompt)) for r in rows]
    leaks = [(one.prompt, like[0]) for one in entries if (like := benchmarks.like(one.prompt))]
    twins = [(one.prompt, other.prompt) for one, other in crossing(entries, _likeness(settings))]
    for found, what in ((leaks, "like prompts of a benchmark"),
                        (twins, "near-duplicates of prompts in another split")):  # fmt: skip
        if found:
            shown = "; ".join(f"{one[:80]!r} and {other[:80]!r}" for one, other in found[:3])
            raise InputError(f"{path}: {len(found)} prompts are {what}: {shown}")
    return "\n".join([f"{path}: {len(entries)} prompts", *counts(entries), *_unchecked(settings)])


COMMANDS: Mapping[str, Command] = {
    "compose": (compose, COMPOSE),
    "add": (add, ADD),
    "check": (check, CHECK),
}

# -------------------------------------------------------------------- settings


def _benchmarks(settings: Mapping[str, str]) -> Known:
    """The prompts that must not be in the set."""
    files = _against(settings)
    prompts = [prompt for file in files for prompt in read_benchmark(file)]
    return Known(prompts, _likeness(settings))


def _against(settings: Mapping[str, str]) -> list[Path]:
    named = settings["against"]
    if named != "auto":
        return [Path(name) for name in named.split(",") if name]
    places = [Path()]
    if package := importlib.util.find_spec("vbench"):
        places += [Path(place) for place in package.submodule_search_locations or ()]
    return [place / VBENCH for place in places if (place / VBENCH).is_file()][:1]


def _unchecked(settings: Mapping[str, str]) -> list[str]:
    files = _against(settings)
    if files:
        return [f"no prompt is like one of {', '.join(map(str, files))}"]
    return [f"not checked against VBench's prompts: give against={VBENCH} (docs/prompts.md)"]


def _left_out(expander: "Expander | None") -> list[str]:
    faults = expander.faults if expander else {}
    return [f"{number} answers were left out: {why}" for why, number in faults.items()]


def _expander(settings: Mapping[str, str]) -> "Expander":
    from ipo_lightning.critics.vlm.endpoint import EndpointVLM
    from ipo_lightning.critics.vlm.server import Server
    from ipo_lightning.prompts.expanding import Expander

    server = Server(settings["base_url"], settings["key_variable"] or None)
    client = EndpointVLM(
        server, settings["model"], temperature=_number("temperature", settings),
        seed=_whole("seed", settings), top_logprobs=None,
    )  # fmt: skip
    client.ready()
    return Expander(client)


def _shares(settings: Mapping[str, str]) -> Shares:
    shares = Shares(_number("select", settings, below=1), _number("final", settings, below=1))
    shares.of("")  # refuses those that leave nothing to train on
    return shares


def _likeness(settings: Mapping[str, str]) -> float:
    value = _number("likeness", settings)
    if not 0 < value <= 1:
        raise InputError(setting="likeness", value=value, expected="give a number in (0, 1]")
    return value


def _number(name: str, settings: Mapping[str, str], below: float = float("inf")) -> float:
    try:
        value = float(settings[name])
    except ValueError:
        value = -1.0
    if not 0 <= value < below:
        limit = f"in [0, {below:g})" if below != float("inf") else "at least 0"
        expected = f"give a number, {limit}"
        raise InputError(setting=name, value=settings[name], expected=expected)
    return value


def _whole(name: str, settings: Mapping[str, str], least: int = 0) -> int:
    text = settings[name]
    if not (text.isascii() and text.isdecimal() and int(text) >= least):
        expected = f"give a whole number, at least {least}"
        raise InputError(setting=name, value=text, expected=expected)
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    about = "Compose a prompt set, add prompts to it, check one."
    return run("prompts", about, HELP, by_settings(COMMANDS), arguments)


if __name__ == "__main__":
    with pipe_may_close():
        sys.exit(main())
