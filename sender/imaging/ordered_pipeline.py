"""Bounded parallel work in order: threads work ahead, the caller takes results as if there were one thread."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from protocol.constants import BLOCK_BYTES_MAX, MIB
from protocol.errors import ConfigurationError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

SPAN_BYTES: Final = BLOCK_BYTES_MAX
"""Disk that is worked on at a time: any block fits, and a span's hand-over between threads (50 us) is small beside
its compression (10 ms)."""

BUFFER_BYTES_MAX: Final = 64 * MIB
"""All span buffers of a pipeline together; results that don't fit their buffer may take as much again."""

JOBS_MAX: Final = 256
"""Beyond any machine's use: it only stops a mistyped number from starting a million threads."""

_SPANS_MAX: Final = BUFFER_BYTES_MAX // SPAN_BYTES


def job_count(jobs: int | None) -> int:
    """Worker threads that make sense: what was asked for (default: the CPUs), at most one for each span buffer.

    Raises:
        ConfigurationError: ``jobs`` is out of its range.
    """
    if jobs is None:
        return min(len(os.sched_getaffinity(0)), _SPANS_MAX)
    if not 1 <= jobs <= JOBS_MAX:
        raise ConfigurationError(f"{jobs} jobs can't be used: choose 1 to {JOBS_MAX}")
    return min(jobs, _SPANS_MAX)


def ordered_map(
    work: Callable[[_Item, memoryview], _Result], items: Iterable[_Item], *, jobs: int
) -> Generator[_Result, None, None]:
    """Yield ``work(item, buffer)`` of each item, in order, worked on by ``jobs`` threads.

    A result may refer to its buffer until the next one is asked for. The window is two spans a thread and never more
    than :data:`BUFFER_BYTES_MAX` in all; when the caller is slow, the threads wait.

    Close the generator (``contextlib.closing``) if it may be left early: closing waits for work that has begun, and
    only then may files that ``work`` uses be closed.

    Args:
        work: called in a worker thread with a buffer of :data:`SPAN_BYTES`, whose content is arbitrary.
        items: taken in the caller's thread, shortly before they are worked on.
        jobs: as :func:`job_count` says.
    """
    buffers = [memoryview(bytearray(SPAN_BYTES)) for _ in range(min(2 * jobs, _SPANS_MAX))]
    pending: collections.deque[tuple[Future[_Result], memoryview]] = collections.deque()
    executor = ThreadPoolExecutor(jobs, thread_name_prefix="span")

    def take_oldest() -> tuple[_Result, memoryview]:
        future, buffer = pending.popleft()
        return future.result(), buffer

    try:
        for item in items:
            if not buffers:
                result, buffer = take_oldest()
                yield result
                buffers.append(buffer)
            buffer = buffers.pop()
            pending.append((executor.submit(work, item, buffer), buffer))
        while pending:
            yield take_oldest()[0]
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
