"""Bottleneck detection, whose answer operators act on.

Lost if these fail: the wrong part is blamed, a network is slowed down for a disk, or the answer changes all the time.
"""

from __future__ import annotations

import dataclasses

import pytest

from protocol.model.bottleneck import Cause
from receiver.reception.bottleneck_watch import HOLD_S, BottleneckWatch, ReceiverLoad
from receiver.shared.thread_time import ThreadTimer

STEP_S = 0.1
IDLE = ReceiverLoad(
    held_share=0.1,
    pool_drop_count=0,
    queue_share=0.0,
    socket_drop_count=0,
    decode_s=0.0,
    write_s=0.0,
    all_received=False,
)


class Machine:
    """A receiver with a described load."""

    def __init__(self) -> None:
        self.watch = BottleneckWatch()
        self.now = 100.0
        self.load = IDLE
        self.watch.update(self.now, self.load)

    def run_for(
        self, seconds: float, *, decoding: float = 0.2, writing: float = 0.1, **load: float
    ) -> set[Cause]:
        """Continue with this load and this many threads at work; return the bottlenecks named."""
        named = set()
        pool_drops, socket_drops = load.pop("pool_drops", 0), load.pop("socket_drops", 0)
        self.load = dataclasses.replace(self.load, **load)  # type: ignore[arg-type]
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            self.load = dataclasses.replace(
                self.load,
                decode_s=self.load.decode_s + decoding * STEP_S,
                write_s=self.load.write_s + writing * STEP_S,
                pool_drop_count=self.load.pool_drop_count + int(pool_drops),
                socket_drop_count=self.load.socket_drop_count + int(socket_drops),
            )
            self.watch.update(self.now, self.load)
            named.add(self.watch.cause)
        return named


def test_a_receiver_that_keeps_up_is_limited_by_the_network() -> None:
    machine = Machine()
    assert machine.run_for(5.0) == {Cause.NETWORK}
    assert machine.watch.seconds[Cause.NETWORK] == pytest.approx(5.0)


def test_a_disk_that_stalls_is_named_until_its_backlog_is_worked_off() -> None:
    machine = Machine()
    machine.run_for(5.0, decoding=1.0, writing=0.5)
    machine.run_for(0.3, decoding=0.0, writing=4.0, held_share=0.2)
    assert machine.run_for(10.0, decoding=0.0, writing=4.0, held_share=1.0) == {Cause.DISK}
    assert machine.run_for(3.0, decoding=0.1, writing=3.0, held_share=0.3) == {Cause.DISK}
    assert machine.run_for(HOLD_S - STEP_S, decoding=0.1, writing=0.3, held_share=0.05) == {Cause.DISK}
    machine.run_for(2 * STEP_S)
    assert machine.watch.cause is Cause.NETWORK
    assert machine.watch.seconds[Cause.DISK] == pytest.approx(13.0 + HOLD_S, abs=4 * STEP_S)


def test_a_sender_that_keeps_probing_does_not_change_the_answer() -> None:
    """The rate swings around the disk's: full buffers for a moment, then none for a second."""
    machine = Machine()
    machine.run_for(1.0, decoding=0.2, writing=3.0, held_share=0.5)
    for _ in range(5):
        assert machine.run_for(1.0, decoding=0.2, writing=1.5, held_share=0.1) == {Cause.DISK}
        assert machine.run_for(0.2, decoding=0.2, writing=3.0, held_share=0.4) == {Cause.DISK}


def test_buffers_that_run_out_are_not_the_sockets_fault() -> None:
    """Most hold half-received blocks, and the processor is busy enough that the socket overflows now and then, too."""
    machine = Machine()
    named = machine.run_for(3.0, decoding=0.2, writing=3.0, held_share=0.25, pool_drops=50, socket_drops=1)
    assert named == {Cause.DISK}


def test_half_received_blocks_in_all_buffers_are_the_networks_fault() -> None:
    machine = Machine()
    assert machine.run_for(3.0, held_share=0.05, pool_drops=50) == {Cause.NETWORK}


def test_a_processor_that_cannot_decode_as_fast() -> None:
    machine = Machine()
    assert machine.run_for(3.0, decoding=3.0, writing=1.0, held_share=0.9) == {Cause.DECODE}


def test_a_receive_loop_without_processor_time_overflows_the_socket() -> None:
    machine = Machine()
    assert machine.run_for(1.0, socket_drops=3) == {Cause.SOCKET}
    assert machine.run_for(1.0, queue_share=0.8) == {Cause.SOCKET}
    assert machine.run_for(HOLD_S - STEP_S, queue_share=0.1) == {Cause.SOCKET}
    machine.run_for(2 * STEP_S)
    assert machine.watch.cause is Cause.NETWORK


def test_disk_and_processor_that_take_as_long_do_not_take_turns() -> None:
    machine = Machine()
    machine.run_for(2.0, decoding=1.0, writing=2.0, held_share=0.9)
    named = set()
    for _ in range(10):
        named |= machine.run_for(0.5, decoding=1.6, writing=1.4, held_share=0.9)
        named |= machine.run_for(0.5, decoding=1.4, writing=1.6, held_share=0.9)
    assert named == {Cause.DISK}
    assert machine.run_for(3.0, decoding=2.5, writing=0.5, held_share=0.9) == {Cause.DISK, Cause.DECODE}
    assert machine.watch.cause is Cause.DECODE


def test_once_everything_has_arrived_the_disk_is_the_bottleneck() -> None:
    machine = Machine()
    machine.run_for(1.0)
    assert machine.run_for(5.0, decoding=0.0, writing=0.0, held_share=0.0, all_received=1.0) == {Cause.DISK}


def test_a_restarted_sender() -> None:
    """Counters restart at zero, and the time without a sender isn't counted."""
    machine = Machine()
    machine.run_for(1.0, pool_drops=9, socket_drops=9, held_share=0.0)
    machine.watch.pause()
    machine.now += 60.0
    machine.load = IDLE
    assert machine.run_for(HOLD_S) == {Cause.NETWORK}
    assert sum(machine.watch.seconds.values()) == pytest.approx(1.0 + HOLD_S - STEP_S)


def test_a_step_that_hangs_is_counted_while_it_hangs() -> None:
    now = 5.0
    clock = ThreadTimer(lambda: now)
    with clock:
        now = 7.0
        assert clock.busy_s() == 2.0
        with clock:
            now = 8.0
            assert clock.busy_s() == 4.0
        now = 8.5
    now = 100.0
    assert clock.busy_s() == 4.5


def test_a_step_that_fails_is_counted_as_over() -> None:
    now = 0.0
    clock = ThreadTimer(lambda: now)
    try:
        with clock:
            now = 1.0
            raise OSError("gone")
    except OSError:
        now = 9.0
    assert clock.busy_s() == 1.0
