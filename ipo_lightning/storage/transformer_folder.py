"""A transformer's folder as diffusers writes it, compared with the network that is to take it.

diffusers would fill weights that a folder lacks with random ones, and go on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ipo_lightning.errors import InputError, readable

CURE = "give the backbone= that it was trained from"


def check_transformer(network: nn.Module, folder: Path, named: str, model: str) -> None:
    """Refuse a folder whose config, files or weights are not those of a network.

    Args:
        named: the folder in messages, such as ``ckpt=FOLDER``. model: the network's.

    Raises:
        InputError: says what differs.
    """
    with readable(folder / "config.json"):
        config = json.loads((folder / "config.json").read_bytes())
        found = config.get("_class_name")
    refuse_missing_shards(folder, named)
    wanted = type(network).__name__
    if found != wanted:
        raise InputError(f"{named} is a {found}; {model} has a {wanted}: {CURE}")
    own = json.loads(json.dumps(dict(cast(Any, network).config)))
    for key in sorted(own.keys() & config.keys()):
        size = key.startswith(("_", "sample_"))  # where it came from, and which videos it is for
        if not size and own[key] != config[key]:
            raise InputError(
                f"{named} does not fit its base model: its {key} is {config[key]}, not {own[key]}; "
                f"{CURE}"
            )
    refuse_unlike(network, shapes_of(folder), named)


def refuse_missing_shards(folder: Path, named: str) -> None:
    """Refuse a folder that lacks files which its own index names."""
    for index in folder.glob("*.safetensors.index.json"):
        with readable(index):
            files = {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
        lost = sorted(name for name in files if not (folder / name).is_file())
        if lost:
            raise InputError(
                f"{named}: {len(lost)} of the {len(files)} files that {index.name} names are "
                f"missing, as {lost[0]}; copy them too"
            )


def shapes_of(folder: Path) -> dict[str, torch.Size]:
    """Names and shapes of the tensors in a folder's files, from their headers alone."""
    shapes = {}
    try:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                    shapes[name] = torch.Size(tensors.get_slice(name).get_shape())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    return shapes


def refuse_unlike(network: nn.Module, shapes: Mapping[str, torch.Size], named: str) -> None:
    """Refuse weights that lack one that the network trains, or have one that it cannot take."""
    wanted = {name: p.shape for name, p in network.named_parameters() if p.requires_grad}
    there = {name: value.shape for name, value in network.state_dict().items()}
    odd = sorted(
        {name for name, shape in wanted.items() if shapes.get(name) != shape}
        | {name for name, shape in shapes.items() if there.get(name) != shape}
    )
    if odd:
        raise InputError(
            f"{named} does not fit its base model: {len(odd)} weights have other names or shapes, "
            f"as {odd[0]}; {CURE}"
        )
