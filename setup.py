"""The wheel's description: the README with absolute links, for it is shown far from the tree."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent


def absolute(text: str, repository: str) -> str:
    """A page whose links into the tree lead to the repository, and its pictures too."""
    text = re.sub(r"!\[([^]]*)\]\((?!https?:)([^)]+)\)", rf"![\1]({repository}/raw/main/\2)", text)
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({repository}/blob/main/\1)", text)


def description() -> str:
    """The README for an index of packages."""
    settings = ConfigParser(interpolation=None)
    settings.read(HERE / "setup.cfg", encoding="utf-8")
    return absolute(
        (HERE / "README.md").read_text(encoding="utf-8"), settings["metadata"]["url"].strip()
    )


if __name__ == "__main__":
    setup(long_description=description(), long_description_content_type="text/markdown")
