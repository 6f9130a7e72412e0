"""Print setup.cfg's requirements at their lower bounds, as constraints for pip."""

import re
from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def constraints(text: str) -> list[str]:
    """``name>=1.2; marker`` as ``name==1.2; marker``, of each requirement that has a bound.

    pytorch-lightning comes with lightning, which does not name its release.
    """
    settings = ConfigParser(interpolation=None)
    settings.read_string(text)
    lines = settings["options"]["install_requires"].splitlines()
    found = [re.sub(">=", "==", line) for line in lines if ">=" in line and line[:1] != "#"]
    return [*found, *(f"pytorch-{line}" for line in found if line.startswith("lightning="))]


if __name__ == "__main__":
    print("\n".join(constraints((ROOT / "setup.cfg").read_text())))  # noqa: T201
