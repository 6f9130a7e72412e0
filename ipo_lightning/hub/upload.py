"""Publishing a round's policy on a model hub: on an explicit wish, and nothing but the policy.

What goes up is the weights, their config and the model card. Samples, verdicts, settings of the
machine and its paths stay where they are. The token comes from the environment or from what
``hf auth login`` kept; it is handed to the hub alone, never written and never shown.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from ipo_lightning.errors import InputError
from ipo_lightning.hub.cards import without_paths
from ipo_lightning.storage.run_files import read_object

CARD = "README.md"
PUBLIC = (CARD, "config.json", "*.safetensors", "*.safetensors.index.json")
"""The files of a policy's folder that are published."""


def check_hub(repo: str) -> None:
    """Refuse, before anything is computed, an upload that would fail at its end.

    Raises:
        InputError: the id is none, there is no token, or the network is switched off.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"push_to_hub={repo}: {one_sentence(error)}") from error
    if "/" not in repo:
        raise InputError(f"push_to_hub={repo}: give OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"push_to_hub={repo}: HF_HUB_OFFLINE is set; unset it, or give null")
    if get_token() is None:
        raise InputError(
            f"push_to_hub={repo}: there is no token; set HF_TOKEN or run `hf auth login`"
        )


def published(policy: Path) -> list[CommitOperationAdd]:
    """What would go up: the policy's own files, after a look at what they say.

    Raises:
        InputError: there is no card or no weights, or a file names a folder of this machine.
    """
    files = sorted({file for pattern in PUBLIC for file in policy.glob(pattern)})
    if not (policy / CARD).is_file() or not list(policy.glob("*.safetensors")):
        raise InputError(f"{policy}: no {CARD} or no weights; a round is published when finished")
    for file in files:
        for name, value in said(file):
            if without_paths(value) != value:
                raise InputError(
                    f"{file}: its {name} names a folder of this machine ({value}); remove that "
                    "entry before it is published"
                )
    return [CommitOperationAdd(file.name, file) for file in files]


def said(file: Path) -> Iterator[tuple[str, str]]:
    """The texts in a config or in the header of a weights file, by name."""
    content: dict[str, Any] = {}
    if file.suffix == ".json":
        content = read_object(file, "export it again")
    elif file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            content = dict(tensors.metadata() or {})
    for name, value in content.items():
        nested = _parsed(value)
        for key, text in nested.items() if isinstance(nested, dict) else [("", nested)]:
            if isinstance(text, str) and text:
                yield f"{name} {key}".strip(), text


def _parsed(value: Any) -> Any:
    """A header's values are texts; some of them are JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def publish(policy: Path, repo: str, message: str, *, private: bool = True) -> str:
    """Upload a policy's folder as one commit.

    Args:
        policy: the folder ``round_K/policy`` of a finished round.
        repo: ``OWNER/NAME``; made where it does not exist.
        message: of the commit.
        private: whether a repository that is made is seen by its owner alone; one that exists
            stays as it is.

    Returns:
        The address of the repository.

    Raises:
        InputError: see `check_hub` and `published`, or the hub refused.
    """
    check_hub(repo)
    operations, api = published(policy), HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.create_commit(repo, operations, commit_message=message)
    except (OSError, ValueError, RuntimeError) as error:  # refused, or no network
        raise InputError(
            f"push_to_hub={repo}: {one_sentence(error)}; nothing is lost, the policy is in {policy}"
        ) from error
    return str(address)


def one_sentence(error: Exception) -> str:
    """The first line of an error that has one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
