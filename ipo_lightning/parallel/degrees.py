"""How many ranks make a forward together, and what that must divide; nothing heavy is imported."""

from dataclasses import dataclass

from ipo_lightning.errors import InputError
from ipo_lightning.settings import Count, checked

LARGEST = 64
"""The largest group that is proposed."""


@checked
@dataclass(frozen=True)
class Degrees:
    """How many ranks make a forward together."""

    ulysses: Count = 1
    """Ranks that attention's heads are divided by: four exchanges a block, all at full speed."""
    ring: Count = 1
    """Ranks that keys and values are passed round; needs a flash kernel on a GPU."""

    @property
    def size(self) -> int:
        """Ranks of a group."""
        return self.ulysses * self.ring

    def __str__(self) -> str:
        return f"ulysses {self.ulysses}, ring {self.ring}"


def check_world(degrees: Degrees, world: int) -> None:
    """Refuse a number of ranks that is no multiple of a group's.

    Raises:
        InputError: says which degrees there could be.
    """
    if world % degrees.size:
        raise InputError(
            setting="trainer.strategy",
            value=str(degrees),
            expected=f"groups of {degrees.size} devices, and there are {world}: give degrees whose "
            "product divides the number of devices",
        )


def check_divisible(degrees: Degrees, tokens: int, heads: int) -> None:
    """Refuse degrees that do not divide a network's tokens and heads evenly.

    Raises:
        InputError: says which do.
    """
    if heads % degrees.ulysses:
        fitting = [k for k in range(2, heads + 1) if not heads % k and not tokens % k]
        raise InputError(
            setting="trainer.strategy.ulysses",
            value=degrees.ulysses,
            expected=f"the network has {heads} attention heads; give a divisor: {_listed(fitting)}",
        )
    if tokens % degrees.size:
        fitting = [k for k in range(2, LARGEST + 1) if not tokens % k]
        raise InputError(
            setting="trainer.strategy",
            value=str(degrees),
            expected=f"a video of this size has {tokens} tokens in attention, which "
            f"{degrees.size} devices cannot share evenly; give ulysses and ring whose product is "
            f"{_listed(fitting)}, or another size of the videos",
        )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) if numbers else "1"
