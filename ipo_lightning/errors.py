"""The one exception that means "the input is at fault, not the program"."""

import os
import pickle
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class InputError(ValueError):
    """A wrong setting, file or combination.

    Its message says what, where, which value and what to do, in one to three lines. The entry
    points print it without a traceback (``debug=true`` shows one) and end with status 1.

    What is about one setting is given as data, and the message is ``SETTING=VALUE: EXPECTED``:
    ``InputError(setting="frames", value=0, expected="give a whole number, at least 1")``. The
    setting has the name that the part itself knows it by; whoever holds the part adds where it
    stands (`within`). ``{setting}`` in what is expected is its full key. Anything else is a plain
    sentence: ``InputError("video a.mp4: no frames")``.
    """

    def __init__(
        self, sentence: str = "", *, setting: str = "", value: Any = ..., expected: str = ""
    ) -> None:
        super().__init__(sentence)
        self.setting, self.expected = setting, expected
        self.value = value
        """``...``: none is shown."""

    def __str__(self) -> str:
        if not self.setting:
            return printable(super().__str__(), keep="\n")
        value = "" if self.value is ... else f"={printable(str(self.value))}"
        expected = self.expected.replace("{setting}", self.setting)
        return f"{self.setting}{value}: " + printable(expected, keep="\n")


def printable(text: str, keep: str = "") -> str:
    """A text of somebody else's as a terminal may be given it: on one line, with an escape in place
    of each character that would end the line, move the cursor or turn the direction of writing.

    Args:
        keep: characters that stay as they are.
    """
    return "".join(
        one if one.isprintable() or one in keep else one.encode("unicode_escape").decode()
        for one in text
    )


@contextmanager
def within(key: str) -> Iterator[None]:
    """Say of the settings that are refused here that they stand at ``key``: ``frames`` of the
    critic at ``critic.members.clip`` is ``critic.members.clip.frames``."""
    try:
        yield
    except InputError as error:
        if error.setting:
            error.setting = f"{key}.{error.setting}"
        raise


@contextmanager
def readable(place: Path) -> Iterator[None]:
    """Say of which file or folder it is where what somebody wrote cannot be read or does not fit.

    For what the code of others reads, whose errors are of any kind; want of memory passes.

    Raises:
        InputError: names ``place`` and the cause.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError | MemoryError) or "OutOfMemory" in type(error).__name__:
            raise
        raise InputError(f"{place} cannot be read: {cause_of(error)}") from error


@contextmanager
def pipe_may_close() -> Iterator[None]:
    """End quietly, with the status of SIGPIPE, where who reads the output has left: ``| head``.

    Raises:
        SystemExit: with status 141.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # else it was another pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        raise


def cause_of(error: BaseException) -> str:
    """The beginning of an error's message, on one line; its kind where it says nothing.

    Torch's advice to open a file with code in it all the same is left out.
    """
    if refused := _refused_pickle(error):
        return refused
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:297]}..."
    named = isinstance(error, InputError | OSError | RuntimeError) or type(error) is ValueError
    return said if named and said else f"{type(error).__name__} {said}".strip()


def _refused_pickle(error: BaseException | None) -> str:
    """What torch has found in a file that it did not open, wherever an error tells of it."""
    while error is not None:
        said = str(error)
        if isinstance(error, pickle.UnpicklingError) and "weights_only" in said:
            named = re.search(r"GLOBAL ([\w.]{1,80})|(?:function|class) ([\w.]{1,80})", said)
            if not named:
                return "it is damaged, or holds code or objects: it is not opened"
            return f"it names {named[1] or named[2]}, which may be code: it is not opened"
        error = error.__cause__ or error.__context__
    return ""
