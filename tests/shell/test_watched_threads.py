"""Cancellation never cuts disk work short, and never waits for a disk that hangs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from protocol.errors import StorageError
from receiver.disk.hang_watchdog import DISK_CALL_LIMIT_S, HangWatchdog
from receiver.disk.watched_threads import WatchedThreads
from receiver.shared.nursery_errors import single_error

pytestmark = pytest.mark.trio


def make_threads() -> tuple[HangWatchdog, WatchedThreads]:
    watch = HangWatchdog(Path("/dev/disk"), clock=trio.lowlevel.current_clock().current_time)
    return watch, WatchedThreads(watch)


async def test_results_and_errors_arrive(autojump_clock: trio.testing.MockClock) -> None:
    _watch, threads = make_threads()
    assert await threads.run_sync(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.run_sync(divmod, 7, 0, limiter=trio.CapacityLimiter(1))


async def test_a_cancellation_waits_for_the_block_that_is_being_written() -> None:
    _watch, threads = make_threads()
    started, resume, written = trio.Event(), threading.Event(), threading.Event()

    def write() -> None:
        trio.from_thread.run_sync(started.set)
        resume.wait()
        written.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(threads.run_sync, write)
        await started.wait()
        nursery.cancel_scope.cancel()
        resume.set()
    assert written.is_set()


async def test_a_hung_disk_is_not_waited_for(mock_clock: trio.testing.MockClock) -> None:
    watch, threads = make_threads()
    started, resume = trio.Event(), threading.Event()

    def write() -> None:
        with watch.call("writing", 42):
            trio.from_thread.run_sync(started.set)
            resume.wait()

    async def work() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads.run_sync, write)
            nursery.start_soon(threads.watch_until_cancelled)
            await started.wait()
            for _ in range(int(DISK_CALL_LIMIT_S) + 1):
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(1.0)

    try:
        with pytest.raises(BaseExceptionGroup) as caught:
            await work()
        error = single_error(caught.value)
        assert isinstance(error, StorageError)
        assert "writing at byte 42 hasn't returned" in str(error)
        with pytest.raises(StorageError):
            await threads.run_sync(divmod, 7, 2)
    finally:
        resume.set()
