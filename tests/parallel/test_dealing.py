"""Units go to the next rank that is free: a slow rank gets fewer, and each unit is done once."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from ipo_lightning.parallel.workers import Workers

WORLD = 2


class Meeting:
    """Two ranks that are threads of this process."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(WORLD, timeout=20)
        self.lock, self.numbers = threading.Lock(), Counter[str]()
        self.told: list[Any] = []

    def rank(self, number: int, **more: Any) -> Workers:
        def broadcast(value: Any) -> Any:
            if number == 0:
                self.told.append(value)
            self.barrier.wait()
            heard = self.told[-1]
            self.barrier.wait()
            return heard

        return Workers(
            number,
            WORLD,
            lambda: self.barrier.wait() and None,
            broadcast,
            counter=self.count,
            bars=False,
            **more,
        )

    def count(self, name: str) -> int:
        with self.lock:
            self.numbers[name] += 1
            return self.numbers[name] - 1


def ranks(work: Callable[[int, Workers], None], **more: Any) -> None:
    """Have both ranks do it."""
    meeting = Meeting()
    jobs = [threading.Thread(target=work, args=(k, meeting.rank(k, **more))) for k in range(WORLD)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("finishes", [False, True])
def test_a_slow_rank_gets_fewer_units(threads: int, finishes: bool) -> None:
    units, done = list(range(20)), list[tuple[int, int]]()
    others_are_done = threading.Event()

    def run(rank: int, workers: Workers) -> None:
        def work(unit: int) -> int:
            if rank == 1:
                others_are_done.wait(20)  # its first units take as long as all others
            return unit

        def finish(unit: int) -> None:
            done.append((rank, unit))
            if len(done) == len(units) - threads:
                others_are_done.set()

        if finishes:
            workers.run_finishing(units, work, finish, "test", "units")
        else:
            workers.run(units, lambda one: finish(work(one)), "test", "units", together=True)

    ranks(run, threads=threads)
    assert sorted(unit for _, unit in done) == units
    assert sum(rank == 1 for rank, _ in done) <= threads


def test_each_job_is_dealt_anew() -> None:
    done = list[int]()

    def run(rank: int, workers: Workers) -> None:
        for _ in range(3):
            workers.run(range(5), done.append, "test", "units")

    ranks(run)
    assert Counter(done) == dict.fromkeys(range(5), 3)
