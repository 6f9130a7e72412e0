"""Ranks on this machine, forked from a server that has imported once what each of them needs."""

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["tests.helpers.imported"])


def ranks(function: Callable[..., Any], *args: Any, count: int = 2, end: bool = True) -> int:
    """Call a function on so many ranks, with the environment that torchrun gives; arguments travel
    pickled.

    Args:
        end: end the others when one fails.

    Returns:
        0, or the exit status of the first rank that failed.
    """
    port = free_port()
    living = [SERVER.Process(target=_rank, args=(rank, count, port, function, args))
              for rank in range(count)]  # fmt: skip
    for one in living:
        one.start()
    statuses: list[int] = []
    while living:
        wait([one.sentinel for one in living])
        for one in [one for one in living if one.exitcode is not None]:
            living.remove(one)
            statuses.append(one.exitcode or 0)
        if end and any(statuses):
            for one in living:
                one.terminate()
    return next((status for status in statuses if status), 0)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _rank(
    rank: int, count: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank,
             "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0,
             "TORCHELASTIC_RUN_ID": "tests"}  # fmt: skip
    os.environ.update({name: str(value) for name, value in where.items()})
    function(*args)
