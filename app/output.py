"""What the programs print: text for people or, with ``log=json``, a JSON object a line."""

import json
from typing import Any

from omegaconf import DictConfig


class Output:
    """How this process prints; nothing is computed from it."""

    as_json = False


def in_json(cfg: DictConfig) -> bool:
    """Whether ``cfg`` asks for JSON lines."""
    return cfg.get("log") == "json"


def choose(cfg: DictConfig) -> None:
    """Print from now on as ``cfg`` says."""
    Output.as_json = in_json(cfg)


def emit(event: str, **facts: Any) -> None:
    """Print a JSON line: what happened, and what is known of it."""
    print(json.dumps({"event": event, **facts}), flush=True)  # noqa: T201 - a program's output


def show(text: str, event: str = "message", **facts: Any) -> None:
    """Print what a person at the terminal reads; with ``log=json`` its facts, or else the text."""
    if Output.as_json:
        emit(event, **(facts or {"text": text.strip()}))
    else:
        print(text, flush=True)  # noqa: T201 - a program's output


def end(**facts: Any) -> None:
    """Print the last line of ``log=json``; people see that it is over."""
    if Output.as_json:
        emit("end", **facts)
