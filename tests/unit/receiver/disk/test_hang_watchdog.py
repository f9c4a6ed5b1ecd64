"""A hanging disk ends its agent with a reason; a slow disk or a stopped program doesn't."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from protocol.errors import StorageError
from receiver.disk.hang_watchdog import DISK_CALL_LIMIT_S, HangWatchdog

PATH = Path("/dev/disk")


class Clock:
    """A fake clock that advances in steps of a second, as the agent ticks."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.watch = HangWatchdog(PATH, clock=lambda: self.now)

    def pass_s(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1.0
            self.watch.tick()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_runs(clock: Clock) -> None:
    clock.pass_s(1000)
    assert clock.watch.longest() is None
    assert clock.watch.longest_s() == 0.0
    clock.watch.check()


def test_a_minute_is_survived_and_forgotten(clock: Clock) -> None:
    with clock.watch.call("writing", 4096, 1 << 20):
        clock.pass_s(60)
        assert clock.watch.longest_s() == 60
        clock.watch.check()
    assert clock.watch.longest_s() == 0.0


def test_a_call_that_does_not_return_is_named(clock: Clock) -> None:
    with clock.watch.call("writing", 7 << 20, 4 << 20):
        clock.pass_s(int(DISK_CALL_LIMIT_S) - 1)
        clock.watch.check()
        clock.pass_s(1)
        with pytest.raises(
            StorageError, match=r"/dev/disk: writing 4\.0 MiB at byte 7340032 hasn't returned for 5:00"
        ):
            clock.watch.check()


def test_a_flush_has_no_place(clock: Clock) -> None:
    with clock.watch.call("flushing"):
        clock.pass_s(400)
        with pytest.raises(StorageError, match="disk: flushing hasn't returned for 6:40"):
            clock.watch.check()


def test_many_short_calls_are_no_long_one(clock: Clock) -> None:
    for offset in range(1000):
        with clock.watch.call("reading", offset):
            clock.pass_s(1)
            clock.watch.check()


def test_the_oldest_call_counts_while_others_return(clock: Clock) -> None:
    first, second, third = (clock.watch.call("writing", offset) for offset in range(3))
    with second:
        clock.pass_s(10)
        with first:
            clock.pass_s(5)
            with third:
                clock.pass_s(1)
                oldest = clock.watch.longest()
                assert oldest is not None
                assert (oldest.offset_bytes, oldest.seconds) == (1, 16)
    with first:
        clock.pass_s(2)
        assert clock.watch.longest_s() == 2


def test_a_program_that_was_stopped_blames_no_disk(clock: Clock) -> None:
    """A stopped virtual machine is the same: the call may have returned at once."""
    with clock.watch.call("writing", 0):
        clock.now += 3600
        clock.watch.tick()
        clock.watch.check()
        assert clock.watch.longest_s() <= 5


def test_a_call_that_fails_is_over(clock: Clock) -> None:
    with pytest.raises(OSError, match="gone"), clock.watch.call("reading", 0):
        raise OSError("gone")
    clock.pass_s(1000)
    clock.watch.check()


def test_calls_of_many_threads_are_all_taken_out_again() -> None:
    watch = HangWatchdog(PATH)

    def work() -> None:
        for offset in range(2000):
            with watch.call("writing", offset), watch.call("flushing"):
                watch.longest_s()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert watch.longest() is None
