"""Blocking work on a bounded number of threads, with progress reports and an orderly stop on errors."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

_Item = TypeVar("_Item")

THREAD_COUNT_MAX: Final = 8
"""More threads don't help: the disk is the bottleneck by then, and every thread has its buffers."""

_PROGRESS_INTERVAL_S: Final = 0.1


def thread_count() -> int:
    """Return the number of threads for disk and hash work: one per usable processor, up to the maximum."""
    return min(THREAD_COUNT_MAX, len(os.sched_getaffinity(0)))


def run_parallel(
    items: Iterable[_Item],
    work: Callable[[_Item], int],
    *,
    threads: int,
    on_progress: Callable[[int], None],
) -> int:
    """Call ``work`` with every item, started in order, on ``threads`` threads.

    Each thread takes the next item when it has finished one, so there is no queue. After an error or an interrupt no
    new item is started, and running items are finished before it is raised.

    Args:
        items: consumed by the threads, one at a time.
        work: processes an item and returns the amount of work done, in any unit.
        threads: number of threads.
        on_progress: called on the calling thread with the sum so far, about ten times a second and at the end.

    Returns:
        The sum of all amounts.
    """
    iterator = iter(items)
    lock = threading.Lock()
    stopping = threading.Event()
    done = 0

    def run() -> None:
        nonlocal done
        while not stopping.is_set():
            with lock:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            try:
                count = work(item)
            except BaseException:
                stopping.set()
                raise
            with lock:
                done += count

    with concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="disk") as executor:
        futures = [executor.submit(run) for _ in range(threads)]
        try:
            pending = set(futures)
            while pending:
                _, pending = concurrent.futures.wait(pending, timeout=_PROGRESS_INTERVAL_S)
                on_progress(done)
        finally:
            stopping.set()
        for future in futures:
            future.result()
    return done
