"""An ordered, bounded parallel map: threads work ahead, and the caller takes the results in order."""

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
"""Bytes of disk per work item: any block fits, and passing a span between threads (50 us) costs little compared with
compressing it (10 ms)."""

BUFFER_BYTES_MAX: Final = 64 * MIB
"""Limit of all span buffers of a pipeline; results that don't fit their buffers may take as much again."""

JOBS_MAX: Final = 256
"""More than any machine can use: it keeps a mistyped number from starting a million threads."""

_SPANS_MAX: Final = BUFFER_BYTES_MAX // SPAN_BYTES


def job_count(jobs: int | None) -> int:
    """Return the number of worker threads: ``jobs`` (default: the number of CPUs), at most one per span buffer.

    Raises:
        ConfigurationError: ``jobs`` is out of its range.
    """
    if jobs is None:
        return min(len(os.sched_getaffinity(0)), _SPANS_MAX)
    if not 1 <= jobs <= JOBS_MAX:
        raise ConfigurationError(f"--jobs can't be {jobs}: choose 1 to {JOBS_MAX}")
    return min(jobs, _SPANS_MAX)


def ordered_map(
    work: Callable[[_Item, memoryview], _Result], items: Iterable[_Item], *, jobs: int
) -> Generator[_Result, None, None]:
    """Yield ``work(item, buffer)`` of each item, in order, computed by ``jobs`` threads.

    A result may refer to its buffer until the next result is requested. At most two spans per thread, and
    :data:`BUFFER_BYTES_MAX` in total, are in progress; when the caller is slow, the threads wait.

    Close the generator (``contextlib.closing``) if it may be left early: closing waits for running work. Close files
    that ``work`` uses only after that.

    Args:
        work: called in a worker thread with a buffer of :data:`SPAN_BYTES` and arbitrary content.
        items: consumed in the caller's thread, shortly before they are processed.
        jobs: as :func:`job_count` returns it.
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
