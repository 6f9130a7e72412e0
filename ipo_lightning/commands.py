"""What ``python -m ipo_lightning.NAME COMMAND KEY=VALUE ...`` of the project's parts share."""

import argparse
import difflib
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

from ipo_lightning.errors import InputError, cause_of

Defaults = Mapping[str, str | None]
"""Setting -> its default; None: it must be given."""
Command = tuple[Callable[[Mapping[str, str]], str], Defaults]
"""What makes a text of its settings, and these."""


def settings_of(words: Sequence[str], known: Defaults) -> dict[str, str]:
    """The settings of ``KEY=VALUE`` words, and the defaults of others.

    Raises:
        InputError: an unknown or a missing key.
    """
    given: dict[str, str | None] = dict(known)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}=?" if near else ""
            raise InputError(f"{word}: give {', '.join(f'{name}=' for name in known)}{hint}")
        given[key] = value
    missing = [key for key, value in given.items() if value is None]
    if missing:
        raise InputError(f"{missing[0]} has no default: give {missing[0]}=VALUE")
    return {key: str(value) for key, value in given.items()}


def by_settings(
    commands: Mapping[str, Command],
) -> dict[str, Callable[[Sequence[str]], str]]:
    """Commands that take settings, as `run` wants them."""

    def reading(command: Command) -> Callable[[Sequence[str]], str]:
        run_it, known = command
        return lambda words: run_it(settings_of(words, known))

    return {name: reading(command) for name, command in commands.items()}


def run(
    name: str,
    description: str,
    settings: str,
    commands: Mapping[str, Callable[[Sequence[str]], str]],
    arguments: Sequence[str] | None = None,
    *,
    passes_on: bool = False,
) -> int:
    """Run one command of a part and print what it says.

    Args:
        name: of the part, after ``ipo_lightning``.
        settings: of the commands, as the help shows them.
        commands: name -> what makes of the words after it the text that is printed.
        passes_on: whether flags are words too, which a command gives to another program.

    Returns:
        The exit status: 1 where a setting or a file is at fault, that of a program that failed and
        said why, 130 of Ctrl-C.

    Raises:
        SystemExit: with status 2 where there is no such command or flag.
    """
    parser = _parser(name, description, settings, commands)
    asked, flags = parser.parse_known_args(arguments)
    if flags and not passes_on:
        parser.error(f"unrecognized arguments: {' '.join(flags)}")
    try:
        print(commands[asked.command]([*asked.words, *flags]))  # noqa: T201 - its own output
    except subprocess.CalledProcessError as error:  # it has said why
        return error.returncode if error.returncode > 0 else 128 - error.returncode
    except KeyboardInterrupt:
        return 130
    except (InputError, OSError) as error:
        print(f"error: {_fault(error)}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _parser(
    name: str, description: str, settings: str, commands: Iterable[str]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m ipo_lightning.{name}",
        description=description,
        epilog=settings,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=commands)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE")
    return parser


def _fault(error: InputError | OSError) -> str:
    """What is wrong, as a sentence; of a closed pipe nothing, see `pipe_may_close`."""
    if isinstance(error, BrokenPipeError):
        raise error
    return str(error) if isinstance(error, InputError) else cause_of(error)
