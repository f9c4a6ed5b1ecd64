"""Work on several threads: every item is done once, an error stops it in order, progress is reported."""

from __future__ import annotations

import itertools
import threading

import pytest

from protocol.errors import StorageError
from receiver.shared.parallel import run_parallel
from tests.support.network.lab import LIMIT_S


@pytest.mark.parametrize("threads", [1, 4])
def test_everything_is_done_once(threads: int) -> None:
    done: list[int] = []
    told: list[int] = []

    def work(item: int) -> int:
        done.append(item)
        return 2

    assert run_parallel(iter(range(100)), work, threads=threads, on_progress=told.append) == 200
    assert sorted(done) == list(range(100))
    assert told == sorted(told)
    assert told[-1] == 200


def test_items_run_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=LIMIT_S)

    def work(_item: int) -> int:
        together.wait()
        return 1

    assert run_parallel(range(6), work, threads=3, on_progress=lambda _done: None) == 6


def test_an_error_stops_new_items_and_lets_running_ones_end() -> None:
    """A half-written block is finished before the error ends the program; the items never run out."""
    failed = threading.Event()
    started: list[int] = []
    ended: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        if item == 0:
            failed.set()
            raise StorageError("the disk is gone")
        failed.wait(LIMIT_S)
        ended.append(item)
        return 1

    with pytest.raises(StorageError, match="gone"):
        run_parallel(itertools.count(), work, threads=2, on_progress=lambda _done: None)
    assert set(ended) == set(started) - {0}


def test_an_interrupt_lets_running_items_end() -> None:
    """The items never run out: only the interrupt ends it."""
    release = threading.Event()
    started: list[int] = []
    ended: list[int] = []

    def interrupt(_done: int) -> None:
        release.set()
        raise KeyboardInterrupt

    def work(item: int) -> int:
        started.append(item)
        release.wait(LIMIT_S)
        ended.append(item)
        return 1

    with pytest.raises(KeyboardInterrupt):
        run_parallel(itertools.count(), work, threads=2, on_progress=interrupt)
    assert set(ended) == set(started)
