"""CONTRIBUTING says where things are: the files exist and define what they are said to."""

import re
from pathlib import Path

import pytest

from app.entry import REPO
from tests.test_layers import LAYERS

GUIDE = (REPO / "CONTRIBUTING.md").read_text()
LOOK_UPS = re.findall(r"^\| (.+) \| (.+) \| `(\w+)` \|$", GUIDE.split("## Where is")[1], re.M)


def paths(text: str) -> list[Path]:
    """Files and folders of this repository that a text names."""
    named = re.findall(r"`((?:ipo_lightning|app|callbacks|conf|data|docs|tests)/[^`]*)`", text)
    return [REPO / name for name in named if "NAME" not in name]


@pytest.mark.parametrize(("what", "place", "name"), LOOK_UPS, ids=[row[0] for row in LOOK_UPS])
def test_look_ups_lead_to_a_definition(what: str, place: str, name: str) -> None:
    files = paths(place)
    assert files
    for file in files:
        assert re.search(rf"\b(?:def|class) {name}\b", file.read_text()), f"{file} has no {name}"


def test_there_are_ten_look_ups() -> None:
    assert len(LOOK_UPS) == 10


def test_every_layer_is_in_the_table() -> None:
    table = GUIDE.split("## Layers")[1].split("## ")[0]
    assert set(LAYERS) <= set(re.findall(r"`([\w.]+)`", table))


def test_named_files_exist() -> None:
    assert [path for path in set(paths(GUIDE)) if not path.exists()] == []
