"""The one exception that means "the input is at fault, not the program"."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """A wrong setting, file or combination.

    Its message says what, where, which value and what to do, in one to three lines. The entry
    points print it without a traceback (``debug=true`` shows one) and end with status 1.
    """


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


def cause_of(error: BaseException) -> str:
    """The beginning of an error's message, on one line; its kind where it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:297]}..."
    named = isinstance(error, InputError | OSError | RuntimeError) or type(error) is ValueError
    return said if named and said else f"{type(error).__name__} {said}".strip()
